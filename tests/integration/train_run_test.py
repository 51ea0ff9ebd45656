#!/usr/bin/env python3
"""`pseg train` from the outside, on scenes: what it leaves, what it refuses, and that a run killed at
any moment goes on with the very same losses.

Usage: train_run_test.py BIN_DIR SOURCE_DIR PART"""
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import lib_events
from lib_train import BIN, MODEL, SOURCE, command, figures, good, log, log_lines, main, refused, run, table, tensors


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
    lib_events.check(out, log(out))
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


def uneven(folder, seed, count):
    """A set of scenes whose images have from one phrase to hundreds. Returns how many there are in all."""
    good([str(BIN / "pseg-scenes"), "--seed", str(seed), "--count", str(count), "--size", "112", "--out", str(folder)])
    path = folder / "scenes.jsonl"
    records = [json.loads(x) for x in path.read_text().splitlines()]
    records[0]["samples"] = records[0]["samples"][:1]
    records[1]["samples"][0]["sentences"] *= 130
    path.write_text("".join(json.dumps(x) + "\n" for x in records))
    return sum(len(s["sentences"]) for x in records for s in x["samples"])


def images(tmp):
    """Several phrases of an image in a batch: each phrase has the same loss as alone, all come once an
    epoch, and places without a phrase count nowhere."""
    data, still, found = tmp / "set", ["--lr-neck", "0", "--lr-decoder", "0", "--weight-decay", "0"], {}
    n = uneven(data, 3, 8)
    for name, sizes in (("0", []), ("4", ["--images", "4"]), ("1", ["--images", "1", "--accumulate", "3"])):
        out = tmp / name
        good(command(out, "--batch", "16", *sizes, *still, "--epochs", "2", "--features", str(tmp / "features"), data=str(data),
                     val=str(data)) + ["--val-images", "last:2"])
        found[name] = [x for x in log(out) if x["type"] == "epoch"]
        steps = [x for x in log(out) if x["type"] == "step"]
        assert len(steps) % 2 == 0 and len([x for x in steps if x["epoch"] == 0]) >= 4, steps
    for name in ("4", "1"):
        for a, b in zip(found["0"], found[name]):
            for figure in ("loss", "iou", "val_loss", "val_iou", "val_iou_50", "val_pred_off"):
                assert abs(a[figure] - b[figure]) <= 1e-4 * abs(a[figure]), (name, figure, a, b)
    # Where batches stay half empty it is said.
    for most, is_told in (("8", False), ("1", True)):
        r = run(command(tmp / f"few{most}", "--batch", "16", "--images", most, *still, "--epochs", "1", "--kind", "superlative",
                        "--features", str(tmp / "features"), data=str(data), val="none"))
        assert r.returncode == 0 and ("of 16 phrases on average" in r.stderr) == is_told, (most, r.stderr)
    # From features and from pixels the same batches come, mirrored too, and a seed gives them again.
    args = ["--batch", "8", "--images", "2", "--epochs", "1", "--mirror", *still]
    for name, more in (("kept", ["--features", str(tmp / "features")]), ("seen", ["--train", "vision", "--lr-vision", "0"]),
                       ("again", ["--features", str(tmp / "features")]),
                       ("other", ["--features", str(tmp / "features"), "--seed", "1"])):
        out = tmp / name
        good(command(out, *args, *more, data=str(data), val="none"))
        found[name] = [x for x in figures(log(out)) if x["type"] == "step"]
    assert found["kept"] == found["again"] and found["kept"] != found["other"]
    assert len(found["kept"]) == len(found["seen"]) == len(found["other"]) >= n / 8
    for a, b in zip(found["kept"], found["seen"]):
        for figure in ("loss", "bce", "dice", "iou_loss"):  # features are kept in float16
            assert abs(a[figure] - b[figure]) < 2e-3 * abs(a[figure]), (figure, a, b)


# ---- it goes on ----

MORE = ["--batch", "6", "--images", "3", "--epochs", "4", "--accumulate", "2", "--ema", "0.9", "--text-mode", "tokens",
        "--save-every", "2", "--seed", "7"]
DATA = {"data": "scenes:21", "val": "scenes:6"}  # 7 batches, 4 steps an epoch; 2 validation batches


def killed(tmp, args, attempts):
    """Killed at random moments, again and again, a run comes to the very same figures and weights."""
    whole = tmp / "whole"
    good([*args, "--out", str(whole)])
    want = figures(log(whole))
    rng = random.Random(5)
    for attempt in range(attempts):
        out, kills = tmp / f"killed{attempt}", 0
        while True:
            p = subprocess.Popen([*args, "--out", str(out), "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
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
        assert len(list(out.glob("events.out.tfevents.*"))) == kills + 1
        lib_events.check(out, log(out))
        for name in ("last.safetensors", "best.safetensors"):
            a, b = tensors(whole / name), tensors(out / name)
            assert a[1] == b[1], name
            drop = ("state.seconds",)
            assert {k: v for k, v in a[0].items() if k not in drop} == {k: v for k, v in b[0].items() if k not in drop}
        assert not list(out.glob("*.new")), list(out.iterdir())
        print(f"{kills} kills: the same {len(want)} lines and the same weights")
    return want


def resume(tmp):
    want = killed(tmp, command(tmp, *MORE, **DATA), 3)
    assert len([x for x in want if x["type"] == "step"]) == 16 and len([x for x in want if x["type"] == "epoch"]) == 4


def resume_data(tmp):
    """The same of two data sets with weights, several phrases an image, half of them mirrored, of
    features and of an encoder that is trained."""
    for name, seed in (("a", 3), ("b", 40)):
        uneven(tmp / name, seed, 6)
    for name, more in (("kept", ["--features", str(tmp / "features")]), ("seen", ["--train", "vision", "--train-layers", "1"])):
        (tmp / name).mkdir()
        args = command(tmp, "--data", f"{tmp / 'b'},weight=0.3", "--batch", "32", "--images", "4", "--epochs", "2", "--mirror",
                       "--warm-epochs", "0", "--save-every", "2", "--seed", "7", *more, data=f"{tmp / 'a'},weight=1.4",
                       val=str(tmp / "a"))
        want = killed(tmp / name, [*args, "--val-images", "last:1"], 1)
        steps = [sum(x["type"] == "step" and x["epoch"] == epoch for x in want) for epoch in range(2)]
        assert steps[0] == steps[1] >= 4, steps


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
    stdout = p.communicate(timeout=600)[0].decode()
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
            (["--optimizer", "muon"], "lr_muon is 0 there"),
            (["--loss-at", "input"], "loss_at_input is 0 there and 1 here"),
            (["--loss-deep", "1"], "loss_deep is 0 there and 1 here"),
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
    refused(command(tmp / "x", "--optimizer", "sgd"), 2, '"sgd"', "adamw or muon")
    refused(command(tmp / "x", "--loss-at", "photo"), 2, '"photo"', "logits or input")
    for weights in ("near", "near=0", "near=101", "near=", "far=2", "near=2,", "nea=2"):
        refused(command(tmp / "x", "--kind-weight", weights), 2, weights, "0.01 to 100")
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


def unknown(tmp):
    """A phrase that a table of embeddings lacks is named with its record before any feature is made,
    and so is what mirroring would make of one."""
    data = tmp / "set"
    good([str(BIN / "pseg-scenes"), "--count", "2", "--size", "112", "--out", str(data)])
    path = data / "scenes.jsonl"
    records = [json.loads(x) for x in path.read_text().splitlines()]
    for record, phrase in zip(records, ("a cup", "the left cup")):
        record["samples"] = [dict(record["samples"][0], sentences=[phrase], kind="class")]
    path.write_text("".join(json.dumps(x) + "\n" for x in records))
    few = ["--batch", "2", "--epochs", "1", "--features", str(tmp / "features")]
    tables = {n: table(tmp / f"table{n}", *("a cup", "the left cup", "the right cup")[:n]) for n in (1, 2, 3)}
    for n, more, texts in ((1, [], ("scenes.jsonl:2: ", "table of 1 phrases lacks \"the left cup\"")),
                           (2, ["--mirror"], ("scenes.jsonl:2: ", "lacks \"the right cup\""))):
        refused([*command(tmp / "x", *few, *more, data=str(data), val="none"), "--text", tables[n]], 2, *texts)
    assert not (tmp / "features").exists()
    for n, more in ((2, []), (3, ["--mirror"])):
        good([*command(tmp / f"good{n}", *few, *more, data=str(data), val="none"), "--text", tables[n]])
    refused([*command(tmp / "x", *few, "--kind", "other", data=str(data), val="none"), "--text", tables[1]], 2,
            "no phrase is left")


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
        stderr = p.communicate(timeout=600)[1].decode()
        assert p.returncode == 1, (p.returncode, stderr)
        assert "No space left on device" in stderr and stderr.count("error:") == 1, stderr
        (tmp / "filler").unlink()
        assert not list(out.glob("*.new")), list(out.iterdir())
        tensors(out / "last.safetensors")
        good(command(out, *few, "--resume"))
    finally:
        run(["umount", "-l", str(tmp)])
    return 0


sys.exit(main({"learn": learn, "batch": batch, "images": images, "resume": resume, "resume_data": resume_data,
               "stop": stop, "refuse": refuse, "unknown": unknown, "blow_up": blow_up, "full_disk": full_disk}))
