#!/usr/bin/env python3
"""What `pseg bench` tells: a roofline whose figures fit each other, a step's parts, and a trace that
chrome://tracing and ui.perfetto.dev open.

    python3 bench_test.py BIN ROOT"""
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

BIN, ROOT = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
ENV = {k: v for k, v in os.environ.items() if not k.startswith("PSEG_")}
MODEL = str(ROOT / "deploy/models/scenes")


def run(*argv, timeout=200):
    p = subprocess.run([BIN / "pseg", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV, timeout=timeout)
    assert p.returncode == 0, f"{argv}: {p.stderr.decode()}"
    return p.stdout.decode()


def near(a, b, rel=1e-3):
    return math.isclose(a, b, rel_tol=rel, abs_tol=1e-6)


def check_row(row, peaks):
    """GFLOP/s, GB/s, operations a byte, what is attainable and the share of it are one story."""
    for name in ("gflops", "gbytes_per_s", "flops_per_byte", "attainable_gflops", "share"):
        assert math.isfinite(row[name]) and row[name] >= 0, (name, row)
    if row["gflops"] > 0:
        assert near(row["flops_per_byte"], row["gflops"] / row["gbytes_per_s"]), row
        assert near(row["share"], row["gflops"] / row["attainable_gflops"]), row
        roof = row["flops_per_byte"] * peaks["read_gbytes_per_s"]
        top = max(peaks["fp32_gflops"], peaks["bf16_gflops"])
        assert row["attainable_gflops"] <= min(roof, top) * 1.001, (row, peaks)
    else:
        assert near(row["share"], row["gbytes_per_s"] / peaks["read_gbytes_per_s"]), row


def check_profile():
    d = json.loads(run("bench", "engine", "--model", MODEL, "--profile", "--seconds", "0.1", "--json"))
    assert all(v > 0 for v in d["peaks"].values()) and len(d["peaks"]) == 3, d["peaks"]
    assert {(r["step"], r["n"]) for r in d["profile"]} == {("images", 1), ("images", 8), ("phrases", 1), ("phrases", 8),
                                                            ("masks", 8)}
    for row in d["profile"]:
        check_row(row, d["peaks"])
    gemm = [r for r in d["profile"] if r["op"] == "gemm"]
    assert gemm and all(r["gflops"] > 0 and r["share"] > 0 for r in gemm)


def check_job(folder):
    """A whole job takes more than its image alone (by processor time, which a busy machine leaves as it is), and a model of random weights runs wherever one from a folder does."""
    d = json.loads(run("bench", "engine", "--model", MODEL, "--batch", "1", "--seconds", "0.1", "--json"))
    job, image = d["job"], d["encode_image"][0]
    assert near(job["jobs_per_s"], 1000 / job["ms"]) and 0.7 < job["cpu_ms"] / image["cpu_ms"] < 7, d
    found = json.loads(run("run", "--model", "random:dinov2-small@56", "--image", str(ROOT / "docs/example/scene.png"),
                           "--prompt", "a circle", "--out", str(folder / "out"), "--json"))
    assert found["model"] == "random-dinov2-small@56", found
    assert len(found["results"]) == 1 and math.isfinite(found["results"][0]["predicted_iou"]), found
    p = subprocess.run([BIN / "pseg", "run", "--model", "random:dinov2-small", "--image-size", "224", "--image",
                        str(ROOT / "docs/example/scene.png"), "--prompt", "a circle"], capture_output=True, env=ENV, timeout=600)
    assert p.returncode == 2 and b"random:dinov2-small" in p.stderr and b"--image-size" in p.stderr, p


def check_ops():
    d = json.loads(run("bench", "ops", "--only", "gemm", "--case", "decoder", "--seconds", "0.01", "--json"))
    (row,) = d["ops"]
    check_row(row, d["peaks"])
    assert row["variant"], row
    forced = json.loads(run("bench", "ops", "--only", "gemm", "--case", "decoder", "--seconds", "0.01", "--json",
                            "--variant", "f32-2x1"))
    assert forced["ops"][0]["variant"] in ("f32-2x1", "portable"), forced["ops"]
    bad = subprocess.run([BIN / "pseg", "bench", "ops", "--variant", "f32-99x1"], stderr=subprocess.PIPE, env=ENV)
    assert bad.returncode == 2 and b'--variant "f32-99x1"' in bad.stderr, bad.stderr


def check_train():
    """A step is the sum of its parts, and its gradient a number; what cannot be is refused."""
    d = json.loads(run("bench", "train", "--batch", "2", "--words", "3", "--steps", "1", "--profile", "--json"))
    ms = d["median_ms"]
    assert set(ms) == {"put", "forward", "backward", "optim", "step", "cpu"}, ms
    assert all(v > 0 for v in ms.values()), ms
    assert near(ms["step"], ms["put"] + ms["forward"] + ms["backward"] + ms["optim"]), ms
    assert math.isfinite(d["last_norm"]) and d["last_norm"] > 0, d
    kernels = {r["kernel"]: r for r in d["profile"]}
    assert kernels["conv3"]["launches"] == 10 and kernels["weight_grad"]["gflops"] > 0, kernels
    bad = subprocess.run([BIN / "pseg", "bench", "train", "--batch", "2", "--images", "3"], stderr=subprocess.PIPE,
                         env=ENV)
    assert bad.returncode == 2 and b"--images 3: at most --batch 2" in bad.stderr, bad.stderr


def check_trace(folder):
    """The JSON Array Format of the Trace Event Format: complete events ("X") with a name, a begin and
    a length in microseconds, a process and a thread. One thread is one queue: nothing overlaps."""
    path = folder / "trace.json"
    run("bench", "engine", "--model", MODEL, "--trace", str(path))
    events = json.loads(path.read_text())
    assert isinstance(events, list) and len(events) > 100
    end = {}
    for e in events:
        assert isinstance(e["name"], str) and e["name"] and e["ph"] == "X", e
        for key in ("ts", "dur"):
            assert isinstance(e[key], (int, float)) and math.isfinite(e[key]) and e[key] >= 0, e
        for key in ("pid", "tid"):
            assert isinstance(e[key], int) and not isinstance(e[key], bool), e
        at = (e["pid"], e["tid"])
        # a microsecond in hours of them is what a double's JSON may lose
        assert e["ts"] >= end.get(at, 0) - 2, (e, end[at])
        end[at] = e["ts"] + e["dur"]
    names = {e["name"] for e in events}
    assert {"gemm", "layernorm"} <= names, names


def main():
    listed = subprocess.run([BIN / "pseg", "devices"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV)
    if b"DEVICE_NOT_FOUND" in listed.stderr:
        print("skipped: no OpenCL device")
        sys.exit(77)
    check_profile()
    check_ops()
    check_train()
    with tempfile.TemporaryDirectory() as folder:
        check_job(pathlib.Path(folder))
        check_trace(pathlib.Path(folder))
    print("roofline and trace are sound")


main()
