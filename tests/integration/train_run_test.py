#!/usr/bin/env python3
"""`pseg train` from the outside, on scenes: what it leaves, what it refuses, and that a run killed at
any moment goes on with the very same losses.

Usage: train_run_test.py BIN_DIR SOURCE_DIR PART"""
import json
import os
import pathlib
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

BIN, SOURCE = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
MODEL = SOURCE / "deploy/models/scenes"
TINY = ["--image-size", "112", "--dim", "32", "--heads", "2", "--depth", "1", "--mlp-dim", "64", "--upsample", "16,8"]


def command(out, *more, data="scenes:8,fixed", val="scenes:0"):
    return [str(BIN / "pseg-train"), "--data", data, "--val", val, "--vision", str(MODEL / "vision"),
            "--text", str(MODEL / "text"), "--out", str(out), *TINY, *more]


def run(args, **kw):
    return subprocess.run(args, capture_output=True, text=True, timeout=240, **kw)


def good(args):
    r = run(args)
    assert r.returncode == 0, (args, r.returncode, r.stderr[-2000:])
    return r.stdout


def refused(args, status, *texts):
    r = run(args)
    assert r.returncode == status, (args, r.returncode, r.stderr[-2000:])
    line = [x for x in r.stderr.splitlines() if x.startswith("error:")]
    assert len(line) == 1, r.stderr
    for text in texts:
        assert text in line[0], (text, line[0])


def log(out):
    with open(out / "log.jsonl") as f:
        return [json.loads(x) for x in f]


def figures(lines):
    """What must be the same, whenever a run was interrupted."""
    timed = ("seconds", "images_per_s")
    return [{k: v for k, v in x.items() if k not in timed} for x in lines]


def tensors(path):
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    head = json.loads(data[8:8 + n])
    meta = head.pop("__metadata__")
    return meta, {k: data[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]] for k, v in head.items()}


# ---- it learns ----

def learn(tmp):
    """A small head learns four scenes by heart, and inference opens what it left."""
    out = tmp / "learn"
    stdout = good(command(out, "--batch", "8", "--images", "4", "--epochs", "100", "--lr-neck", "2e-3", "--lr-decoder", "2e-3",
                          "--text-mode", "tokens", "--warm-epochs", "5", "--save-every", "1000", "--json",
                          data="scenes:4,fixed"))
    told = json.loads(stdout)
    steps = [x for x in log(out) if x["type"] == "step"]
    first = sum(x["iou"] for x in steps[:5]) / 5
    last = sum(x["iou"] for x in steps[-5:]) / 5
    print(f"IoU {first:.3f} -> {last:.3f}, loss {steps[0]['loss']:.3f} -> {steps[-1]['loss']:.3f}")
    assert last > 0.7 and last > first + 0.4, (first, last)
    assert told["done"] and told["steps"] == 100 and told["skipped_steps"] == 0, told
    assert told["params"] > 10000 and told["graph_mib"] > 0.1, told
    svg = (out / "curves.svg").read_text()
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>") and svg.count("<circle") == 200, svg.count("<circle")
    # The very scenes: what inference makes of the files agrees with what training saw.
    png = tmp / "scene"
    good([str(BIN / "pseg-scenes"), "--seed", "1000000", "--count", "1", "--out", str(png)])
    scene = json.loads((png / "scenes.jsonl").read_text())
    phrase = scene["samples"][0]["sentences"][0]
    r = json.loads(good([str(BIN / "pseg-run"), "--model", str(out), "--image", str(png / scene["image"]), "--prompt", phrase,
                         "--out", str(tmp / "seg"), "--json"]))
    assert r["model"] == "trained" and 0 <= r["results"][0]["predicted_iou"] <= 1, r
    meta, t = tensors(out / "last.safetensors")
    assert meta["text_mode"] == "tokens" and meta["state.epoch"] == "100", meta
    names = [k for k in t if not k.startswith("adam.")]
    assert all("adam.mean." + k in t and "adam.square." + k in t for k in names) and len(t) == 3 * len(names)
    best_meta, best = tensors(out / "best.safetensors")
    assert sorted(best) == sorted(names) and best_meta["format"] == "pseg-1"


# ---- several phrases of one photo ----

def batch(tmp):
    """What a batch gives is what its samples give one by one, also where several are of one photo and
    where the photos come mirrored."""
    data, found = tmp / "set", {}
    good([str(BIN / "pseg-scenes"), "--seed", "3", "--count", "2", "--out", str(data)])
    for mirror in ([], ["--mirror"]):
        for name, sizes in (("whole", ["--batch", "8"]), ("single", ["--batch", "1", "--accumulate", "8"])):
            out = tmp / (name + "".join(mirror))
            good(command(out, *sizes, "--epochs", "1", *mirror, "--features", str(tmp / "features"),
                         data=str(data / "scenes.jsonl"), val="none"))
            found[name] = next(x for x in log(out) if x["type"] == "step")
        for figure in ("loss", "bce", "dice", "iou_loss", "norm"):
            a, b = (found[name][figure] for name in ("whole", "single"))
            assert abs(a - b) < 1e-4 * abs(b), (mirror, figure, a, b)


# ---- encoders too ----

def floats(path):
    """Tensors of a file as lists of numbers, with their shapes."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    out = {}
    for k, v in json.loads(data[8:8 + n]).items():
        if k != "__metadata__":
            b = data[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]]
            code = {"F32": "f", "F16": "e"}[v["dtype"]]
            out[k] = v["shape"], struct.unpack(f"<{len(b) // struct.calcsize(code)}{code}", b), v["dtype"]
    return out


def opens(tmp, out, name):
    r = json.loads(good([str(BIN / "pseg-run"), "--model", str(out), "--image", str(SOURCE / "docs/example/scene.png"),
                         "--prompt", "the red circle", "--out", str(tmp / name), "--json"]))
    return r["results"][0]["predicted_iou"]


def table(folder):
    folder.mkdir()
    (folder / "names.json").write_text('["the red circle"]')
    head = json.dumps({"embeddings": {"dtype": "F32", "shape": [1, 8], "data_offsets": [0, 32]}}).encode()
    (folder / "embeddings.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + struct.pack("<8f", *range(8)))
    return str(folder)


def frozen_like(tmp, few, base):
    out = tmp / "float"
    good(few(out, *base))
    return out


def towers(tmp):
    """Encoders in the graph: what is exported is what was trained, and inference opens it."""
    def few(out, *more):
        return command(out, *more, data="scenes:4,fixed")

    base = ["--batch", "4", "--images", "2", "--epochs", "1", "--text-mode", "tokens", "--seed", "3", "--warm-epochs", "0"]
    still = ["--lr-neck", "0", "--lr-decoder", "0", "--lr-vision", "0", "--lr-text", "0", "--weight-decay", "0"]
    # Nothing moves: the encoders come out as they went in, positions at the grid that was trained.
    out = tmp / "still"
    good(few(out, *base, *still, "--train", "vision,text"))
    for part in ("vision", "text"):
        was, now = floats(MODEL / part / "model.safetensors"), floats(out / part / "model.safetensors")
        assert sorted(was) == sorted(now)
        for k in was:
            if k == "embeddings.position_embeddings":
                assert now[k][0] == [1, 65, 192], now[k][0]  # 112 px in patches of 14
            else:
                assert was[k][:2] == now[k][:2] and now[k][2] == "F32", k
    assert json.loads((out / "vision/config.json").read_text())["image_size"] == 112
    # The frozen run of the same seed predicts the same.
    frozen = tmp / "frozen"
    good(few(frozen, *base, *still))
    a, b = opens(tmp, out, "a"), opens(tmp, frozen, "b")
    assert abs(a - b) < 1e-5, (a, b)
    # LoRA: the products are added up, in float16 on demand; everything else is as it was.
    out = tmp / "lora"
    moving = ["--lr-vision", "1e-2", "--lr-text", "1e-2", "--train", "vision,text"]
    good(few(out, *base, *moving, "--epochs", "2", "--lora-rank", "2", "--train-layers", "1", "--half"))
    best = floats(out / "best.safetensors")
    was, now = floats(MODEL / "vision/model.safetensors"), floats(out / "vision/model.safetensors")
    changed = sorted(k for k in was if was[k][1] != now[k][1])
    stem = "encoder.layer.5.attention.attention."
    assert changed == [stem + "query.weight", stem + "value.weight"], changed
    assert all(v[2] == "F16" for v in now.values())
    (n, k), w, _ = was[stem + "query.weight"]
    _, a, _ = best["vision." + stem + "query.lora_a.weight"]
    _, b, _ = best["vision." + stem + "query.lora_b.weight"]
    assert max(map(abs, b)) > 1e-3
    for i in range(0, n, 7):
        for j in range(0, k, 5):
            want = w[i * k + j] + sum(b[i * 2 + r] * a[r * k + j] for r in range(2))
            got = now[stem + "query.weight"][1][i * k + j]
            assert abs(got - want) <= 1e-6 + 1e-3 * abs(want), (i, j, got, want)
    opens(tmp, out, "c")
    # A killed run goes on: the last block of each, with an average.
    args = [*base, *moving, "--epochs", "2", "--train-layers", "1", "--ema", "0.9", "--save-every", "1"]
    whole, out = tmp / "whole", tmp / "killed"
    good(few(whole, *args))
    p = subprocess.Popen(few(out, *args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while p.poll() is None and len(log_lines(out)) < 3:
        time.sleep(0.002)
    p.send_signal(signal.SIGKILL)
    p.wait()
    good(few(out, *args, "--resume"))
    assert figures(log(out)) == figures(log(whole))
    for name in ("last.safetensors", "vision/model.safetensors", "text/model.safetensors", "pseg.safetensors"):
        assert tensors(whole / name)[1] == tensors(out / name)[1], name
    moved = [k for k, v in floats(out / "vision/model.safetensors").items()
             if v[1] != floats(MODEL / "vision/model.safetensors")[k][1]]
    assert len(moved) == 18 and all(".layer.5." in k for k in moved), moved
    # What cannot be is said.
    refused(few(tmp / "r", "--train", "audio"), 2, "--train", "vision, text, or vision,text")
    refused(few(tmp / "r", "--lora-rank", "4"), 2, "--lora-rank 4", "--train")
    refused(few(tmp / "r", "--train-layers", "1"), 2, "--train-layers 1", "--train vision")
    # And before hours are spent on data.
    for more, *texts in ((["--train", "text", "--max-tokens", "40"], "--max-tokens 40", "positions for 32", "--max-tokens 32"),
                         (["--train", "text", "--text", table(tmp / "table")], "table of phrases"),
                         (["--out", str(whole)], "holds a run already", "--resume")):
        refused([*command(tmp / "r", data="no-such-set", val="none"), *more], 2, *texts)
    # Without --train it is the head that is exported in float16.
    out = tmp / "half"
    good(few(out, *base, "--half"))
    assert all(v[2] == "F16" for v in floats(out / "pseg.safetensors").values())
    assert all(v[2] == "F32" for v in floats(out / "best.safetensors").values())
    assert json.loads((out / "pseg.json").read_text())["decoder"] == "pseg.safetensors" and not (out / "vision").exists()
    a, b = opens(tmp, out, "h"), opens(tmp, frozen_like(tmp, few, base), "f")
    assert abs(a - b) < 5e-3, (a, b)


# ---- an image encoder on a data set ----

def spoil(data):
    """A set of scenes with three more records: no file, a file of another size, half a file."""
    path = data / "scenes.jsonl"
    records = [json.loads(x) for x in path.read_text().splitlines()]
    for name in ("missing", "small", "half"):
        more = dict(records[0], image=f"images/{name}.png")
        if name == "small":
            shutil.copy(SOURCE / "docs/example/scene.png", data / more["image"])
        elif name == "half":
            whole = (data / records[0]["image"]).read_bytes()
            (data / more["image"]).write_bytes(whole[:len(whole) // 2])
        records.append(more)
    path.write_text("".join(json.dumps(x) + "\n" for x in records))


def pixels(tmp):
    """An encoder that is trained reads the photos themselves: what it sees is what features are made of,
    mirrored or not; and what cannot be decoded is left out, whenever that shows."""
    data, found = tmp / "set", {}
    good([str(BIN / "pseg-scenes"), "--seed", "3", "--count", "3", "--size", "160", "--out", str(data)])
    still = ["--lr-neck", "0", "--lr-decoder", "0", "--lr-vision", "0", "--weight-decay", "0"]
    for fit in ("squash", "letterbox"):
        for mirror in ([], ["--mirror"]):
            for name, more in (("kept", ["--features", str(tmp / "features")]), ("seen", ["--train", "vision"])):
                out = tmp / "-".join([name, fit, *mirror])
                good(command(out, *more, *still, *mirror, "--preprocess", fit, "--batch", "8", "--epochs", "1",
                             data=str(data / "scenes.jsonl"), val="none"))
                found[name] = [x for x in log(out) if x["type"] == "step"]
            assert len(found["kept"]) == len(found["seen"]) > 1
            for a, b in zip(found["kept"], found["seen"]):
                for figure in ("loss", "bce", "dice", "iou_loss"):  # features are kept in float16
                    assert abs(a[figure] - b[figure]) < 2e-3 * abs(a[figure]), (fit, mirror, figure, a, b)
    n = sum(len(s["sentences"]) for x in (data / "scenes.jsonl").read_text().splitlines()
            for s in json.loads(x)["samples"])
    spoil(data)
    out = tmp / "moved"
    args = ["--train", "vision", "--lr-vision", "1e-3", "--warm-epochs", "0", "--batch", "4", "--epochs", "2", "--save-every", "1"]
    r = run(command(out, *args, data=str(data), val="none"))
    assert r.returncode == 0, r.stderr[-2000:]
    for text in ("missing.png", "the image has 224 x 224 pixels, its masks 160 x 160", "image_missing", "image_broken"):
        assert r.stderr.count(text) == 1, (text, r.stderr)
    was, now = floats(MODEL / "vision/model.safetensors"), floats(out / "vision/model.safetensors")
    assert was["encoder.layer.0.attention.attention.query.weight"][1] != now["encoder.layer.0.attention.attention.query.weight"][1]
    opens(tmp, out, "p")
    # A header tells nothing of half a file until it is decoded, so its phrases count among the steps.
    steps = [x for x in log(out) if x["type"] == "step"]
    per_epoch = len([x for x in steps if x["epoch"] == 0])
    assert per_epoch >= -(-n // 4) and len(steps) == 2 * per_epoch, (n, per_epoch)
    # Killed and gone on with, the same.
    killed = tmp / "killed"
    p = subprocess.Popen(command(killed, *args, data=str(data), val="none"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while p.poll() is None and len(log_lines(killed)) < 2:
        time.sleep(0.002)
    p.send_signal(signal.SIGKILL)
    p.wait()
    good(command(killed, *args, "--resume", data=str(data), val="none"))
    assert figures(log(killed)) == figures(log(out))
    # Nothing is left of a set without photos.
    shutil.rmtree(data / "images")
    refused(command(tmp / "none", *args, data=str(data), val="none"), 2, "none of 6 images can be used")


# ---- it goes on ----

MORE = ["--batch", "6", "--images", "3", "--epochs", "4", "--accumulate", "2", "--ema", "0.9", "--text-mode", "tokens",
        "--save-every", "2", "--seed", "7"]
DATA = {"data": "scenes:21", "val": "scenes:6"}  # 7 batches, 4 steps an epoch; 2 validation batches


def resume(tmp):
    """Killed at random moments, again and again, a run comes to the very same figures and weights."""
    whole = tmp / "whole"
    good(command(whole, *MORE, **DATA))
    want = figures(log(whole))
    assert len([x for x in want if x["type"] == "step"]) == 16 and len([x for x in want if x["type"] == "epoch"]) == 4
    rng = random.Random(5)
    for attempt in range(3):
        out, kills = tmp / f"killed{attempt}", 0
        while True:
            p = subprocess.Popen(command(out, *MORE, "--resume", **DATA), stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE)
            # From a moment drawn on: somewhere in a step, a validation or a save. Lines of the log are
            # the clock, so that the machine's speed does not matter.
            seen = len(log_lines(out))
            until = seen + rng.randint(1, 6) if kills < 4 else 10 ** 9
            while p.poll() is None and len(log_lines(out)) < until:
                time.sleep(0.002)
            if p.poll() is None:
                time.sleep(rng.random() * 0.05)
                p.send_signal(signal.SIGKILL)
                kills += 1
            stderr = p.communicate()[1].decode()
            if p.returncode == 0:
                break
            assert p.returncode == -signal.SIGKILL, stderr[-2000:]
        got = figures(log(out))
        assert kills >= 2, kills
        assert got == want, first_difference(got, want)
        for name in ("last.safetensors", "best.safetensors"):
            a, b = tensors(whole / name), tensors(out / name)
            assert a[1] == b[1], name
            drop = ("state.seconds",)
            assert {k: v for k, v in a[0].items() if k not in drop} == {k: v for k, v in b[0].items() if k not in drop}
        assert not list(out.glob("*.new")), list(out.iterdir())
        print(f"{kills} kills: the same {len(want)} lines and the same weights")


def log_lines(out):
    try:
        return (out / "log.jsonl").read_bytes().splitlines()
    except FileNotFoundError:
        return []


def first_difference(got, want):
    for a, b in zip(got, want):
        if a != b:
            return a, b
    return len(got), len(want)


def stop(tmp):
    """Ctrl-C saves and ends in order, and the rest is as if nothing had been; --patience ends for good."""
    whole, out = tmp / "whole", tmp / "stopped"
    good(command(whole, *MORE, **DATA))
    p = subprocess.Popen(command(out, *MORE, **DATA), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while p.poll() is None and len(log_lines(out)) < 3:
        time.sleep(0.002)
    p.send_signal(signal.SIGINT)
    stdout = p.communicate(timeout=120)[0].decode()
    assert p.returncode == 0 and "stopped after" in stdout and "--resume" in stdout, (p.returncode, stdout)
    refused(command(out, *MORE, **DATA), 2, "holds a run already", "--resume")
    good(command(out, *MORE, "--resume", **DATA))
    assert figures(log(out)) == figures(log(whole))
    # Weights that do not change are best in the first epoch: two more without a better one, and it ends.
    few = ["--batch", "4", "--epochs", "9", "--patience", "2", "--lr-neck", "0", "--lr-decoder", "0"]
    out = tmp / "patient"
    p = run(command(out, *few, "--json", data="scenes:4,fixed", val="scenes:4"))
    assert p.returncode == 0 and p.stderr.count("no better validation") == 1, p.stderr
    told, epochs = json.loads(p.stdout), [x for x in log(out) if x["type"] == "epoch"]
    assert told["done"] and told["epochs"] == 3 and told["best_epoch"] == 1, told
    assert [x["best"] for x in epochs] == [True, False, False], epochs
    assert len({x["val_iou"] for x in epochs}) == 1, epochs
    # It is over: going on adds nothing.
    good(command(out, *few, "--resume", data="scenes:4,fixed", val="scenes:4"))
    assert len([x for x in log(out) if x["type"] == "epoch"]) == 3


# ---- it refuses ----

def refuse(tmp):
    out = tmp / "refuse"
    few = ["--batch", "4", "--images", "2", "--epochs", "1"]
    good(command(out, *few))
    for more, *texts in (
            (["--dim", "64"], "dim is 32 there and 64 here"),
            (["--text-mode", "tokens"], "text_mode is pooled there and tokens here"),
            (["--epochs", "2"], "epochs is 1 there and 2 here"),
            (["--lr-neck", "1e-3"], "lr_neck", "there", "here"),
            (["--ema", "0.9"], "ema is 0 there"),
            (["--seed", "1"], "seed is 0 there and 1 here")):
        refused(command(out, *few, *more, "--resume"), 2, "last.safetensors", *texts)
    refused(command(out, *few, "--resume", data="scenes:9"), 2, "data is scenes:8,fixed", "scenes:9")
    refused(command(tmp / "x", data="no-such-set", val="none"), 3, "no-such-set")
    refused(command(tmp / "x", data="x,weight=0", val="none"), 2, "weight=W")
    refused(command(tmp / "x", data="scenes:many"), 2, "scenes:N")
    refused(command(tmp / "x", data="scenes:0"), 2, "nothing to train on")
    refused(command(tmp / "x", "--dim", "33"), 2, "--dim 33")
    refused(command(tmp / "x", "--image-size", "113"), 2, "113", "patch, 14 px")
    refused(command(tmp / "x", "--taps", "3,99"), 2, "--taps")
    refused(command(tmp / "x", "--batch", "4", "--images", "3"), 2, "--images 3 must divide --batch 4")
    refused(command(tmp / "x", "--init", str(MODEL / "vision/model.safetensors")), 1, "not a PSEG decoder")
    refused(command("/proc/no/such"), 3, "/proc/no")
    # A damaged checkpoint is named, and the folder is left as it is.
    path = out / "last.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    refused(command(out, *few, "--resume"), 1, "last.safetensors")
    assert path.read_bytes() == whole[:len(whole) // 2]
    path.write_bytes(whole)
    good(command(out, *few, "--resume"))
    # From a model that is there, of another shape than the options say: its own is taken.
    good(command(tmp / "init", *few, "--init", str(out / "best.safetensors"), "--dim", "256"))
    assert tensors(tmp / "init/last.safetensors")[0]["dim"] == "32"


def blow_up(tmp):
    """A learning rate that makes no sense ends in numbers that are none: named, counted, fatal after
    a while, and what was saved before is still there."""
    out = tmp / "nan"
    few = ["--batch", "4", "--images", "2", "--epochs", "40", "--lr-neck", "1", "--lr-decoder", "1", "--warm-epochs", "0",
           "--clip", "0", "--save-every", "1", "--max-skips", "3", "--weight-decay", "0"]
    # Weights of 1e30 overflow in the first product.
    seed = tmp / "seed"
    good(command(seed, "--batch", "4", "--images", "2", "--epochs", "1"))
    path = seed / "best.safetensors"
    data = bytearray(path.read_bytes())
    n = int.from_bytes(data[:8], "little")
    head = json.loads(data[8:8 + n])
    at = 8 + n + head["decoder.mask_mlp.proj_out.weight"]["data_offsets"][0]
    data[at:at + 4] = b"\x00\x00\xc0\x7f"  # a NaN
    path.write_bytes(bytes(data))
    r = run(command(out, *few, "--init", str(path)))
    assert r.returncode == 1, (r.returncode, r.stderr[-1000:])
    assert "3 steps in a row gave no number" in r.stderr and "scene 10000" in r.stderr, r.stderr[-1000:]
    assert r.stderr.count("skipped, its loss is not a number: scene") == 3, r.stderr[-1000:]
    skips = [x for x in log(out) if x["type"] == "skip"]
    assert len(skips) == 3 and all(re.match(r"scene \d+, phrase \d", s) for x in skips for s in x["samples"]), skips


def full_disk(tmp):
    """No room for a checkpoint: one clear line, and the last good one is as it was."""
    if os.geteuid() != 0 or run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(tmp)]).returncode != 0:
        print("skipped: no file system of a small size can be mounted here")
        return 77
    try:
        out = tmp / "run"
        few = ["--batch", "4", "--images", "2", "--epochs", "2", "--save-every", "1"]
        p = subprocess.Popen(command(out, *few), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        while p.poll() is None and not (out / "last.safetensors").exists():
            time.sleep(0.002)
        try:
            with open(tmp / "filler", "wb") as f:
                while True:
                    f.write(b"x" * 4096)
                    f.flush()
        except OSError:
            pass
        stderr = p.communicate(timeout=120)[1].decode()
        assert p.returncode == 1, (p.returncode, stderr)
        assert "No space left on device" in stderr and stderr.count("error:") == 1, stderr
        (tmp / "filler").unlink()
        assert not list(out.glob("*.new")), list(out.iterdir())
        tensors(out / "last.safetensors")
        good(command(out, *few, "--resume"))
    finally:
        run(["umount", "-l", str(tmp)])
    return 0


def main():
    part = {"learn": learn, "batch": batch, "towers": towers, "pixels": pixels, "resume": resume, "stop": stop, "refuse": refuse,
            "blow_up": blow_up, "full_disk": full_disk}[sys.argv[3]]
    tmp = pathlib.Path(tempfile.mkdtemp(prefix="pseg-train-"))
    try:
        return part(tmp) or 0
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


sys.exit(main())
