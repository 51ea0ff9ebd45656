#!/usr/bin/env python3
"""The command line as docs/command-line.md describes it: help, exit statuses, one line for each
mistake, one JSON document, progress only on a terminal, and what happens when things are missing.

    python3 cli_test.py BIN ROOT [NAME ...]     (NAME: parts of the names of tests to run)

Every wait has a deadline; everything started here ends with it."""
import contextlib
import hashlib
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

BIN, ROOT = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
PSEG = str(BIN / "pseg")
IMAGE = str(ROOT / "docs/example/scene.png")
ENV = {k: v for k, v in os.environ.items() if not k.startswith("PSEG_")}
SLOWER = int(os.environ.get("TEST_SLOWER", 1))
CLIENT = ["segment", "batch", "submit", "get", "wait", "cancel", "list", "models", "watch", "top"]
PROGRAMS = ["run", "devices", "eval", "scenes"]
BENCHES = ["engine", "ops", "service"]
JOB = {"name", "state", "request_id", "model", "image_sha256", "mask_threshold", "attempts", "prompts",
       "labels", "create_time", "deadline"}
DONE = JOB | {"expire_time", "start_time", "finish_time", "stages_ms", "receipt", "image_width", "image_height", "results"}


def run(*argv, env=None, stdin=subprocess.DEVNULL, timeout=90 * SLOWER, **more):
    """(status, stdout, stderr), both as bytes. A signal is 128 + its number, as in a shell."""
    p = subprocess.run([PSEG, *argv] if not str(argv[0]).startswith("/") else argv, stdin=stdin,
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**ENV, **(env or {})},
                       timeout=timeout, **more)
    return p.returncode if p.returncode >= 0 else 128 - p.returncode, p.stdout, p.stderr


def refused(status, reason, words, *argv, **more):
    """One line with the reason on standard error, nothing on standard output; with --json the error
    as the only document, and the same line."""
    got, out, err = run(*argv, **more)
    text = err.decode("utf-8", "replace")
    assert got == status, f"{argv}: status {got}, not {status}: {text}"
    assert re.fullmatch(rf"error: [^\n]+ \({reason}\)\n", text), f"{argv}: {text!r} is not one line of {reason}"
    assert words in text, f"{argv}: {words!r} is not in {text!r}"
    if "--json" in argv:
        e = json.loads(out)["error"]
        assert e["reason"] == reason and isinstance(e["retryable"], bool), e
        assert e["retryable"] or status != 4, e
        assert words in e["message"] or words in e.get("field", ""), e
    else:
        assert out == b"", f"{argv}: printed {out!r}"


def document(*argv, status=0, has=(), **more):
    got, out, err = run(*argv, **more)
    assert got == status, f"{argv}: status {got}: {err}"
    assert status or err == b"", f"{argv}: said {err!r}"
    j = json.loads(out.decode("utf-8"))
    missing = set(has) - set(j)
    assert not missing, f"{argv}: {missing} are not in {sorted(j)}"
    return j


def until(seconds, what, check):
    seconds *= SLOWER
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


def on_terminal(argv, seconds, until_seen=None, send=None, extra=None):
    """Runs with standard error on a terminal; returns (status, what the terminal showed)."""
    master, slave = pty.openpty()
    p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=slave,
                         env={**ENV, **(extra or {})})
    os.close(slave)
    seen, end = b"", time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            if select.select([master], [], [], 0.05)[0]:
                try:
                    part = os.read(master, 4096)
                except OSError:
                    break
                if not part:
                    break
                seen += part
            if until_seen and until_seen in seen:
                if send is None:
                    p.kill()
                else:
                    p.send_signal(send)
                until_seen = None
            if p.poll() is not None and not select.select([master], [], [], 0)[0]:
                break
        assert until_seen is None, f"{argv} did not show {until_seen!r} within {seconds} s but {seen!r}"
        return p.wait(max(1.0, end - time.monotonic())), seen
    finally:
        p.kill()
        p.wait()
        os.close(master)


# ---- without a service -----------------------------------------------------------------------


def test_every_command_teaches(tmp):
    for words in [[c] for c in [*CLIENT, *PROGRAMS, "quarantine", "key"]] + [["bench", b] for b in BENCHES]:
        status, out, err = run(*words, "--help")
        text = out.decode()
        assert status == 0 and err == b"", (words, status, err)
        assert text.startswith(f"usage: pseg {' '.join(words)} "), text[:80]
        assert re.search(rf"^  pseg {' '.join(words)} ?[^\n]*$", text, re.M), f"no example in the help of {words}"
        assert "--json" in text, words
        assert run(*words, "-h")[1] == out
    assert run("bench", "--help")[0] == 0
    for c in [*CLIENT, *PROGRAMS, "quarantine", "key"]:
        assert run("help", c)[1] == run(c, "--help")[1], c
    status, out, err = run("--help")
    assert status == 0 and err == b""
    listed = re.findall(r"^  (\w+) +\S", out.decode(), re.M)
    assert set(CLIENT + PROGRAMS + ["bench", "quarantine", "key"]) <= set(listed), listed
    assert b"Exit status: 0 good, 2 a mistake" in run("segment", "--help")[1]


def test_no_command_and_versions(tmp):
    status, out, err = run("/bin/sh", "-c", f"exec {PSEG}")
    assert status == 2 and out == b"" and b"usage: pseg COMMAND" in err
    status, out, err = run("bench")
    assert status == 2 and out == b"" and b"usage: pseg bench WHAT" in err
    version = run("--version")[1]
    assert re.fullmatch(rb"pseg \d+\.\d+\.\d+\n", version), version
    number = version.split()[-1]
    for program in ("pseg-scheduler", "pseg-worker", "pseg-run", "pseg-bench"):
        assert run(str(BIN / program), "--version")[1].split()[-1] == number, program


def test_slips_are_recognised(tmp):
    refused(2, "CONFIG_INVALID", "did you mean segment?", "segmnt")
    refused(2, "CONFIG_INVALID", "did you mean devices?", "device")
    refused(2, "CONFIG_INVALID", "`pseg --help` lists all", "frobnicate")
    refused(2, "CONFIG_INVALID", "did you mean --prompt?", "run", "--promt", "x")
    refused(2, "CONFIG_INVALID", "did you mean --side-by-side?", "segment", "--side")
    refused(2, "CONFIG_INVALID", "did you mean --timeout-ms?", "list", "--timeout", "5s", "--json")
    refused(2, "CONFIG_INVALID", "--colour (--help lists all)", "run", "--colour", "--json")
    refused(2, "CONFIG_INVALID", "did you mean --redis?", str(BIN / "pseg-scheduler"), "--reddis=x")
    refused(2, "CONFIG_INVALID", "engin", "bench", "engin")


def test_mistakes_in_arguments(tmp):
    refused(2, "CONFIG_INVALID", "--image FILE and --prompt TEXT", "segment")
    refused(2, "CONFIG_INVALID", "--image FILE and --prompt TEXT", "run", "--image", IMAGE, "--json")
    refused(2, "CONFIG_INVALID", 'unexpected argument "a.png"', "segment", "a.png", "-p", "x")
    refused(2, "CONFIG_INVALID", 'unexpected argument "b"', "get", "a", "b")
    refused(2, "CONFIG_INVALID", "unexpected argument", "devices", "gpu", "--json")
    refused(2, "CONFIG_INVALID", "unexpected argument", str(BIN / "pseg-worker"), "models")
    refused(2, "CONFIG_INVALID", "name one job", "wait")
    refused(2, "CONFIG_INVALID", "--image needs a value", "run", "--image")
    refused(2, "CONFIG_INVALID", "--threshold: 2 is outside", "run", "-i", IMAGE, "-p", "x", "--threshold", "2")
    refused(2, "CONFIG_INVALID", '"soon" is not a whole number', "list", "--timeout-ms", "soon")
    refused(2, "CONFIG_INVALID", "PSEG_TIMEOUT_MS", "list", env={"PSEG_TIMEOUT_MS": "soon"})
    refused(2, "PROMPT_EMPTY", "blank", "run", "-i", IMAGE, "-p", " \t", "--json")
    refused(2, "PROMPT_TOO_LONG", "1024", "run", "-i", IMAGE, "-p", "word " * 1000)
    refused(2, "CONFIG_INVALID", "KEY=VALUE", "submit", "-i", IMAGE, "-p", "x", "--label", "alone")
    refused(2, "CONFIG_INVALID", "--encoding", "get", "jobs/x", "--mask", "0", "--encoding", "gif")
    refused(2, "CONFIG_INVALID", "--state", "list", "--state", "running?")


def test_images_that_are_none(tmp):
    cut, text = tmp / "cut.png", tmp / "text.png"
    cut.write_bytes(pathlib.Path(IMAGE).read_bytes()[:2000])
    text.write_text("not an image\n")
    (tmp / "empty.png").touch()
    for command in ("run", "segment"):
        args = ["-p", "x", "--out", str(tmp / "none")]
        refused(3, "FILE_NOT_FOUND", "/no/such.png", command, "-i", "/no/such.png", *args)
        refused(1, "FILE_IO", str(tmp), command, "-i", str(tmp), *args, "--json")
        refused(2, "IMAGE_UNDECODABLE", "", command, "-i", str(cut), *args, "--json")
        refused(2, "IMAGE_FORMAT_UNSUPPORTED", "PNG", command, "-i", str(text), *args)
        refused(2, "IMAGE_(MISSING|FORMAT_UNSUPPORTED)", "", command, "-i", str(tmp / "empty.png"), *args)
    refused(2, "IMAGE_TOO_MANY_PIXELS", "1000", "run", "-i", IMAGE, "-p", "x", "--max-pixels", "1000",
            "--out", str(tmp / "none"))
    assert not (tmp / "none").exists(), "a refused command made its folder"


def test_models_that_are_none(tmp):
    args = ["-i", IMAGE, "-p", "x", "--out", str(tmp / "none")]
    refused(2, "MODEL_MISSING", "/no/model", "run", *args, "--model", "/no/model")
    refused(2, "MODEL_MISSING", 'no model "sceens"', "run", *args, "--model", "sceens", "--json")
    refused(2, "MODEL_MISSING", "", "run", *args, "--model", str(tmp))
    model = tmp / "model"
    shutil.copytree(ROOT / "deploy/models/scenes", model)
    weights = model / "vision/model.safetensors"
    good = weights.read_bytes()

    weights.write_bytes(good[:len(good) // 2])
    refused(1, "MODEL_CORRUPT", "model.safetensors", "run", *args, "--model", str(model))
    weights.write_bytes(b"\xff" * 8 + good[8:])
    refused(1, "MODEL_CORRUPT", "model.safetensors", "run", *args, "--model", str(model), "--json")
    weights.write_bytes(good.replace(b'"shape":[', b'"shape":[9', 1))
    refused(1, "MODEL_CORRUPT", "model.safetensors", "run", *args, "--model", str(model))
    name = re.search(rb'"([\w.]+\.weight)"', good).group(1)
    weights.write_bytes(good.replace(name, name[:-1] + b"X", 1))
    refused(2, "MODEL_MISMATCH", name.decode(), "run", *args, "--model", str(model))
    weights.write_bytes(b"")
    refused(1, "MODEL_CORRUPT", "model.safetensors", "run", *args, "--model", str(model))
    weights.unlink()
    refused(2, "MODEL_MISSING", "vision", "run", *args, "--model", str(model))
    weights.write_bytes(good)
    (model / "pseg.json").write_text('{"format": ')
    refused(1, "MODEL_CORRUPT", "pseg.json", "run", *args, "--model", str(model), "--json")
    refused(1, "MODEL_CORRUPT", "pseg.json", str(BIN / "pseg-worker"), "--model", str(model), "--log-level", "error")
    assert not (tmp / "none").exists()


def test_keys(tmp):
    """Made, added to a file, and told whose they are; what is wrong with a file is told by its line."""
    file = str(tmp / "keys")
    status, out, _ = run("key", "new", "team")
    key, line = out.decode().splitlines()
    assert status == 0 and re.fullmatch(r"pseg_[0-9a-f]{64}", key), out
    assert line == f"{hashlib.sha256(key.encode()).hexdigest()} team", line
    made = [run("key", "new", t, "--keys", file)[1].decode().strip() for t in ("team", "other")]
    assert len({key, *made}) == 3, "no two are the same"
    assert not any(k in (tmp / "keys").read_text() for k in made), "keys are not stored"
    for k, tenant in zip(made, ("team", "other")):
        assert document("key", "check", "--json", "--keys", file, env={"PSEG_KEY": k}) == {"tenant": tenant}
        p = subprocess.run([PSEG, "key", "check", "--keys", file, "--key", "-"], input=f"{k}\n".encode(),
                           capture_output=True, env=ENV, timeout=30 * SLOWER)
        assert (p.returncode, p.stdout) == (0, f"{tenant}\n".encode()), p
    assert document("key", "check", "--json", "--keys", file) == {"keys": 2}
    (tmp / "keys").write_text((tmp / "keys").read_text() + line)  # no newline at its end
    got = document("key", "new", "third", "--json", "--keys", file)
    assert (got["tenant"], got["sha256"]) == ("third", hashlib.sha256(got["key"].encode()).hexdigest()), got
    assert document("key", "check", "--json", "--keys", file) == {"keys": 4}
    refused(1, "UNAUTHENTICATED", "does not hold this key", "key", "check", "--keys", file, "--key", key[:-1])
    refused(3, "FILE_NOT_FOUND", "/no/keys", "key", "check", "--keys", "/no/keys")
    for bad in ("Team", "", "a b", "x" * 64):
        refused(2, "CONFIG_INVALID", "1 to 63", "key", "new", bad)
    for argv in (["key"], ["key", "old"], ["key", "check", "x"], ["key", "check"]):
        refused(2, "CONFIG_INVALID", "", *argv)
    before = "nonsense\n"
    (tmp / "keys").write_text(before)
    refused(2, "CONFIG_INVALID", "keys:1", "key", "new", "team", "--keys", file)
    assert (tmp / "keys").read_text() == before, "a file that is none is left alone"


def test_no_device(tmp):
    env = {"OCL_ICD_VENDORS": "/nonexistent"}
    args = ["-i", IMAGE, "-p", "x", "--out", str(tmp / "none")]
    refused(2, "DEVICE_NOT_FOUND", "pocl-opencl-icd", "devices", env=env)
    refused(2, "DEVICE_NOT_FOUND", "pocl-opencl-icd", "devices", "--json", env=env)
    refused(2, "DEVICE_NOT_FOUND", "pocl-opencl-icd", "run", *args, env=env)
    refused(2, "DEVICE_NOT_FOUND", "pocl-opencl-icd", str(BIN / "pseg-worker"), "--log-level", "error", env=env)
    refused(2, "DEVICE_NOT_FOUND", "nonesuch", "run", *args, "--device", "nonesuch")


def test_text_that_is_not_utf8(tmp):
    bad = os.fsdecode(b"a\xff\xc3(")
    for command in ("run",):
        refused(2, "PROMPT_NOT_TEXT", "", command, "-i", IMAGE, "-p", bad, "--json", "--out", str(tmp / "none"))
    refused(3, "FILE_NOT_FOUND", "?", "run", "-i", bad, "-p", "x", "--json")
    refused(3, "FILE_NOT_FOUND", "?", "segment", "-i", bad, "-p", "x", "--json")
    refused(2, "CONFIG_INVALID", "", bad)
    refused(2, "CONFIG_INVALID", "?", "run", "--" + bad, "--json")
    # A name on disk may be any bytes: the files are written, and the document is still UTF-8.
    folder = os.fsencode(tmp) + b"/out\xff"
    j = document("run", "-i", IMAGE, "-p", "a star", "--json", "--out", os.fsdecode(folder), has=["original"])
    assert j["original"].endswith("/out?/original.png"), j["original"]
    assert os.path.exists(folder + b"/mask.png")
    j = document("scenes", "--out", os.fsdecode(folder), "--count", "1", "--size", "64", "--json")
    assert j["out"].endswith("out?"), j


def test_folders_that_cannot_be_written(tmp):
    (tmp / "file").touch()
    for out in (tmp / "file", tmp / "file/sub", pathlib.Path("/proc/none")):
        for command, more in (("run", ["-i", IMAGE, "-p", "a star"]), ("scenes", ["--count", "1", "--size", "64"])):
            status, stdout, err = run(command, *more, "--out", str(out))
            assert status in (1, 3) and err.count(b"\n") == 1, (command, out, status, err)
            assert str(out).encode().split(b"/sub")[0] in err and stdout == b"", err


def test_documents_of_the_programs(tmp):
    j = document("devices", "--json", has=["devices"])
    assert sum(d["chosen"] for d in j["devices"]) == 1
    assert set(j["devices"][0]) == {
        "id", "type", "name", "vendor", "driver", "version", "platform", "compute_units", "clock_mhz",
        "memory_bytes", "max_alloc_bytes", "local_bytes", "chosen", "instructions"}
    j = document("run", "-i", IMAGE, "-p", "a star", "-p", "the small red circle", "--side-by-side", "--json",
                 "--out", str(tmp / "run"))
    assert set(j) == {"model", "model_digest", "device", "image_width", "image_height", "original", "stages_ms",
                      "results"}, sorted(j)
    assert [r["prompt_index"] for r in j["results"]] == [0, 1]
    for r in j["results"]:
        assert set(r) - {"box", "truncated"} == {"prompt_index", "prompt", "predicted_iou", "area_px", "mask",
                                                 "overlay", "side_by_side"}, r
        assert os.path.exists(r["mask"]) and os.path.exists(r["overlay"]) and os.path.exists(r["side_by_side"])
    j = document("scenes", "--out", str(tmp / "scenes"), "--count", "2", "--size", "64", "--json")
    assert set(j) == {"out", "seed", "count", "size", "phrases", "kinds", "seconds"}, sorted(j)
    assert sum(j["kinds"].values()) == j["phrases"] and j["count"] == 2
    j = document("bench", "ops", "--only", "layernorm", "--seconds", "0.01", "--json", has=["machine", "ops"])
    assert set(j["machine"]) == {"cpu", "cores", "memory", "pseg"} and j["ops"], j["machine"]
    refused(2, "CONFIG_INVALID", "nonesuch", "bench", "ops", "--only", "nonesuch", "--json")
    # An image from standard input.
    with open(IMAGE, "rb") as f:
        status, out, err = run("run", "-i", "-", "-p", "a star", "--out", str(tmp / "stdin"), stdin=f)
    assert status == 0 and err == b"" and b"predicted IoU" in out, err
    assert (tmp / "stdin/mask.png").read_bytes() == (tmp / "run/mask-0.png").read_bytes()


def test_output_that_is_lost(tmp):
    for argv in (["--help"], ["run", "--help"], ["list", "--help"], ["devices"], ["--version"], ["bench", "--help"]):
        with open("/dev/full", "wb") as full:
            p = subprocess.run([PSEG, *argv], stdout=full, stderr=subprocess.PIPE, env=ENV, timeout=60 * SLOWER)
        assert p.returncode == 1 and re.fullmatch(rb"error: cannot write to standard output: .*\(FILE_IO\)\n", p.stderr), \
            (argv, p.returncode, p.stderr)
    for argv in (["--help"], ["run", "--help"], ["segment", "--help"], ["devices", "--json"],
                 ["scenes", "--raw", "--count", "1000000"]):
        p = subprocess.Popen([PSEG, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV)
        p.stdout.read(1)
        p.stdout.close()
        err = p.stderr.read()
        p.wait(60)
        assert err == b"" and p.returncode in (0, -signal.SIGPIPE), (argv, p.returncode, err)


def test_interrupts(tmp):
    for sig in (signal.SIGINT, signal.SIGTERM):
        p = subprocess.Popen([PSEG, "scenes", "--raw", "--count", "100000000"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env=ENV)
        p.stdout.read(1000)
        p.send_signal(sig)
        p.stdout.close()
        assert p.wait(20) == -sig and p.stderr.read() == b""


def test_progress_on_a_terminal_only(tmp):
    scenes = [PSEG, "scenes", "--out", str(tmp / "many"), "--count", "100000", "--size", "64"]
    _, seen = on_terminal(scenes, 30, until_seen=b"scenes/s")
    assert b"\r" in seen
    # With nothing compiled yet pseg run takes seconds.
    cold = [PSEG, "run", "-i", IMAGE, "-p", "a star", "--out", str(tmp / "out"), "--cache", str(tmp / "cache")]
    _, seen = on_terminal(cold, 60, until_seen=b"opening the model", extra={"POCL_CACHE_DIR": str(tmp / "pocl")})
    assert b" s " in seen, seen
    p = subprocess.Popen(scenes, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV)
    assert not select.select([p.stderr], [], [], 2.5)[0], "progress without a terminal within 2.5 s"
    p.terminate()
    p.communicate(timeout=20 * SLOWER)


def test_no_server(tmp):
    for command in (["models"], ["list", "--json"], ["get", "jobs/" + "0" * 32], ["submit", "-i", IMAGE, "-p", "x"]):
        refused(4, "SERVER_UNAVAILABLE", "127.0.0.1:1", *command, "--server", "127.0.0.1:1", "--timeout-ms", "5s")
    refused(4, "SERVER_UNAVAILABLE", str(tmp), "models", "--server", f"unix:{tmp}/none.sock", "--timeout-ms", "5s")
    refused(3, "FILE_NOT_FOUND", "/no/ca.pem", "models", "--ca", "/no/ca.pem")
    refused(2, "(CONFIG_INVALID|INVALID_ARGUMENT)", "", "models", "--server", "")


# ---- with a service --------------------------------------------------------------------------


@contextlib.contextmanager
def process(argv, log, extra=None):
    with open(log, "ab") as f:
        p = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=f, stderr=f,
                             env={**ENV, **(extra or {})})
    try:
        yield p
    finally:
        p.kill()
        p.wait()


@contextlib.contextmanager
def ready(tmp, program, *argv):
    """A scheduler or worker that is ready: (process, what its ready file holds)."""
    file = tmp / (program + ".ready")
    file.unlink(missing_ok=True)
    with process([BIN / program, *argv, "--ready-file", file], tmp / (program + ".log")) as p:
        def check():
            assert p.poll() is None, f"{program} ended: " + (tmp / (program + ".log")).read_text()[-500:]
            return file.exists() and file.stat().st_size > 0
        until(60, program + " getting ready", check)
        yield p, file.read_text()


@contextlib.contextmanager
def redis(tmp):
    sock = tmp / "redis.sock"
    with process(["redis-server", "--port", "0", "--unixsocket", sock, "--dir", tmp, "--save", ""],
                 tmp / "redis.log") as p:
        def answers():
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as s:
                s.connect(str(sock))
                s.sendall(b"PING\r\n")
                return s.recv(16) == b"+PONG\r\n"
            return False
        until(20, "redis getting ready", answers)
        yield p, f"unix:{sock}"


def test_documents_of_the_client(tmp):
    with redis(tmp) as (_, url), ready(tmp, "pseg-scheduler", "--redis", url, "--listen", "127.0.0.1:0") as (_, at):
        server = ["--server", at]
        assert document("models", "--json", *server) == {"models": []}
        status, out, err = run("models", *server)
        assert (status, out, err) == (0, b"no worker is alive\n", b"")
        j = document("list", "--json", *server)
        assert j == {"jobs": [], "next_page_token": ""}, j

        # No worker: waiting shows progress on a terminal, and an interrupt tells how to go on.
        job = document("submit", "-i", IMAGE, "-p", "a star", "--label", "a=b", "--json", *server, has=JOB)
        assert job["state"] == "QUEUED" and job["labels"] == {"a": "b"} and job["prompts"] == ["a star"]
        name = job["name"]
        got, seen = on_terminal([PSEG, "wait", name, *server], 20, until_seen=b"waits in line", send=signal.SIGINT)
        assert got == -signal.SIGINT and f"{name} goes on; `pseg wait {name}`".encode() in seen, (got, seen)
        refused(4, "DEADLINE_EXCEEDED", f"`pseg wait {name}`", "wait", name, "--timeout-ms", "1500", *server)
        refused(4, "DEADLINE_EXCEEDED", "not done", "wait", name, "--timeout-ms", "100", "--json", *server)
        j = document("cancel", name, "--json", *server, has=JOB)
        assert j["state"] == "CANCELLED"
        # One document, although the status is not 0.
        j = document("wait", name, "--json", *server, status=5, has=JOB)
        assert j["state"] == "CANCELLED"

        with ready(tmp, "pseg-worker", "--redis", url, "--model", "scenes"):
            j = document("models", "--json", *server)["models"]
            assert len(j) == 1 and set(j[0]) == {"name", "digest", "workers", "default"} and j[0]["default"] is True
            j = document("segment", "-i", IMAGE, "-p", "a star", "--side-by-side", "--json", "--out",
                         str(tmp / "out"), *server, has=DONE | {"original", "files"})
            assert j["state"] == "SUCCEEDED"
            assert set(j["receipt"]) == {"model", "model_digest", "kernel_digest", "device", "driver", "precision",
                                         "worker", "worker_version", "scheduler_version"}, j["receipt"]
            assert set(j["results"][0]) - {"box", "truncated"} == {"prompt_index", "prompt", "predicted_iou", "area_px"}
            assert all(os.path.exists(p) for f in j["files"] for p in (f["mask"], f["overlay"], f["side_by_side"]))
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", j["create_time"]), j["create_time"]
            name = j["name"]
            for command in ("get", "wait"):
                assert document(command, name.split("/")[1], "--json", *server, has=DONE)["name"] == name
            j = document("get", name, "--mask", "0", "--out", str(tmp / "m.png"), "--json", *server)
            assert set(j) == {"file", "bytes", "width", "height"} and j["bytes"] == (tmp / "m.png").stat().st_size
            status, out, err = run("get", name, "--mask", "0", *server)
            assert status == 0 and out == (tmp / "m.png").read_bytes() and err == b""
            j = document("list", "--state", "SUCCEEDED", "--json", *server)
            assert [x["name"] for x in j["jobs"]] == [name]
            j = document("list", "--page-size", "1", "--json", *server)
            assert len(j["jobs"]) == 1 and j["next_page_token"], j["next_page_token"]
            j = document("list", "--page-size", "1", "--all", "--json", *server)
            assert len(j["jobs"]) == 2 and j["next_page_token"] == ""
            j = document("bench", "service", "--image", IMAGE, "--jobs", "4", "--clients", "2", "--json", *server,
                         has=["machine", "jobs", "failed", "jobs_per_s", "latency_ms"])
            assert j["failed"] == 0
            status, out, err = run("segment", "-i", IMAGE, "-p", "a star", "--out", str(tmp / "out"), *server)
            assert status == 0 and err == b"" and out.startswith(b"original "), err
            (tmp / "file").touch()
            refused(1, "FILE_IO", str(tmp / "file"), "segment", "-i", IMAGE, "-p", "a star", "--out",
                    str(tmp / "file"), *server, "--json")
            refused(3, "FILE_NOT_FOUND", "/proc/none", "get", name, "--mask", "0", "--out", "/proc/none", *server)
            refused(2, "PROMPT_NOT_TEXT", "prompts[0].text", "segment", "-i", IMAGE, "-p",
                    os.fsdecode(b"a\xff"), "--json", "--out", str(tmp / "none"), *server)
            refused(3, "JOB_NOT_FOUND", "0" * 32, "get", "0" * 32, "--json", *server)
            refused(2, "REQUEST_MALFORMED", "UTF-8", "get", os.fsdecode(b"\xff"), "--json", *server)
            p = subprocess.Popen([PSEG, "list", "--all", "--json", *server], stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, env=ENV)
            p.stdout.close()
            assert p.stderr.read() == b"" and p.wait(30) == 0


def test_ports_and_addresses(tmp):
    scheduler = str(BIN / "pseg-scheduler")
    with redis(tmp) as (_, url), socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        at = "127.0.0.1:%d" % taken.getsockname()[1]
        quiet = ["--redis", url, "--log-level", "error"]
        refused(2, "ADDRESS_IN_USE", at, scheduler, "--listen", at, *quiet)
        refused(2, "CONFIG_INVALID", "--insecure", scheduler, "--listen", "0.0.0.0:0", *quiet)
        refused(2, "(CONFIG_INVALID|INVALID_ARGUMENT)", "nonsense", scheduler, "--listen", "127.0.0.1:nonsense", *quiet)
        refused(2, "CONFIG_INVALID", "--tls-key", scheduler, "--tls-cert", "x.pem", *quiet)
        refused(3, "FILE_NOT_FOUND", "/no/keys", scheduler, "--listen", "127.0.0.1:0", "--keys", "/no/keys", *quiet)
        refused(2, "CONFIG_INVALID", "--log-level", scheduler, "--log-level", "loud")
        for program in (scheduler, str(BIN / "pseg-worker")):
            refused(2, "(CONFIG_INVALID|INVALID_ARGUMENT)", "gopher", program, "--redis", "gopher://x",
                    *(["--listen", "127.0.0.1:0"] if program == scheduler else ["--model", "empty"]),
                    "--log-level", "error")
            refused(3, "FILE_NOT_FOUND", "/no/such.conf", program, "--config", "/no/such.conf")
        conf = tmp / "bad.conf"
        conf.write_text("# a comment\nlisten = 127.0.0.1:0\nreddis = x\n")
        refused(2, "CONFIG_INVALID", "bad.conf:3: unknown option reddis; did you mean redis?", scheduler,
                "--config", str(conf))


def test_redis_down(tmp):
    # Both wait for it: a scheduler serves health and refuses work, a worker is not ready.
    url = f"unix:{tmp}/redis.sock"
    with ready(tmp, "pseg-scheduler", "--redis", url, "--listen", "127.0.0.1:0", "--redis-timeout-ms", "200") as \
            (scheduler, at):
        refused(4, "BROKER_UNAVAILABLE", "", "list", "--server", at, "--json")
        refused(4, "BROKER_UNAVAILABLE", "", "submit", "-i", IMAGE, "-p", "x", "--server", at)
        file = tmp / "early"
        with process([BIN / "pseg-worker", "--redis", url, "--model", "empty", "--redis-timeout-ms", "200",
                      "--ready-file", file], tmp / "worker.log") as worker:
            until(30, "the worker looking for Redis",
                  lambda: b"redis" in (tmp / "worker.log").read_bytes().split(b"opened in")[-1].lower())
            assert worker.poll() is None and not file.exists()
            with redis(tmp):
                until(30, "the worker getting ready", file.exists)
                until(30, "the scheduler coming back", lambda: run("list", "--server", at)[0] == 0)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(30) == 0
        scheduler.send_signal(signal.SIGINT)
        assert scheduler.wait(30) == 0


def test_worker_stopped_while_it_compiles(tmp):
    log = tmp / "worker.log"
    for sig in (signal.SIGTERM, signal.SIGINT):
        log.unlink(missing_ok=True)
        with process([BIN / "pseg-worker", "--model", "scenes", "--cache", tmp / f"cache{sig}"], log,
                     {"POCL_CACHE_DIR": str(tmp / f"pocl{sig}")}) as worker:
            until(30, "the worker opening its model", lambda: "model opened" in log.read_text())
            begin = time.monotonic()
            worker.send_signal(sig)
            assert worker.wait(20) == 0 and "stopped before it was ready" in log.read_text(), log.read_text()
            assert time.monotonic() - begin < 3


def main():
    tests = {k[5:]: v for k, v in globals().items() if k.startswith("test_")}
    chosen = [n for n in tests if not sys.argv[3:] or any(part in n for part in sys.argv[3:])]
    failed = skipped = 0
    for name in chosen:
        if shutil.which("redis-server") is None and any(
                word in name for word in ("client", "ports", "redis")):
            print(f"skipped {name}: no redis-server")
            skipped += 1
            continue
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                tests[name](pathlib.Path(folder))
                print(f"passed  {name} ({time.monotonic() - begin:.1f} s)")
            except Exception as e:  # a failed test must not hide those behind it
                failed += 1
                where = e.__traceback__
                while where.tb_next and where.tb_next.tb_frame.f_code.co_filename == __file__ and \
                        where.tb_next.tb_frame.f_code.co_name.startswith("test_"):
                    where = where.tb_next
                print(f"FAILED  {name}, line {where.tb_next.tb_lineno if where.tb_next else where.tb_lineno}: "
                      f"{type(e).__name__}: {e}")
        sys.stdout.flush()
    print(f"{len(chosen) - failed - skipped} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 77 if skipped else 0


sys.exit(main())
