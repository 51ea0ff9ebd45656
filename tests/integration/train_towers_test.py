#!/usr/bin/env python3
"""`pseg train --train`: encoders that are trained too, what is exported of them, and what they read.

Usage: train_towers_test.py BIN_DIR SOURCE_DIR PART"""
import json
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import time

from lib_train import BIN, MODEL, SOURCE, command, figures, floats, good, log, log_lines, main, refused, run, table, tensors

sys.path.append(str(SOURCE / "tests/golden"))
import timm_names  # noqa: E402


def opens(tmp, out, name):
    r = json.loads(good([str(BIN / "pseg-run"), "--model", str(out), "--image", str(SOURCE / "docs/example/scene.png"),
                         "--prompt", "the red circle", "--out", str(tmp / name), "--json"]))
    return r["results"][0]["predicted_iou"]


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
                         (["--train", "text", "--text", table(tmp / "table", "the red circle")], "table of phrases"),
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


def shares(tmp, data, n):
    """A set comes as often as its weight says, without the images that are validated on."""
    records = [json.loads(x) for x in (data / "scenes.jsonl").read_text().splitlines()]
    held = max(records, key=lambda x: x["image"])  # last:1
    n_held = sum(len(s["sentences"]) for s in held["samples"])
    for weight, copies in (("1", 1), ("2", 2), ("0.5", 0.5)):
        out = tmp / f"shares-{weight}"
        good(command(out, "--val-images", "last:1", "--batch", "1", "--epochs", "1", "--seed", "5",
                     "--features", str(tmp / "features"), data=f"{data},weight={weight}", val=str(data)))
        found = [x for x in log(out) if x["type"] == "step"]
        assert len(found) == int(copies * (n - n_held) + 0.5), (weight, len(found), n, n_held)
    refused(command(tmp / "all", "--val-images", "all", data=str(data), val=str(data)), 2,
            "all its images are held out for validation, none is left to train on")


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
    shares(tmp, data, n)
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


def timm(tmp):
    """timm's names are trained as Hugging Face's are, to the last bit, and come out as they went in."""
    hf, folder = MODEL / "vision", tmp / "timm"
    timm_names.convert(str(hf), str(folder))
    base = ["--batch", "4", "--images", "2", "--epochs", "2", "--seed", "3", "--warm-epochs", "0", "--train", "vision",
            "--lr-vision", "1e-3"]
    for name, more in (("all", []), ("lora", ["--lora-rank", "2", "--train-layers", "2", "--half"]), ("last", ["--train-layers", "1"])):
        a, b = tmp / f"{name}-hf", tmp / f"{name}-timm"
        good(command(a, *base, *more, data="scenes:4,fixed"))
        good([*command(b, *base, *more, data="scenes:4,fixed"), "--vision", str(folder)])
        assert figures(log(a)) == figures(log(b)), name
        want = timm_names.renamed(timm_names.read(a / "vision/model.safetensors"))
        got = timm_names.read(b / "vision/model.safetensors")
        assert sorted(got) == sorted(timm_names.read(folder / "model.safetensors")), name
        assert got == want, (name, [k for k in want if got[k] != want[k]])
        assert got != timm_names.read(folder / "model.safetensors"), name
        assert opens(tmp, a, "a") == opens(tmp, b, "b"), name


def floats_of(tensors):
    form = {"F32": "f", "F16": "e"}
    return {k: (v[1], struct.unpack(f"<{len(v[2]) // struct.calcsize(form[v[0]])}{form[v[0]]}", v[2]))
            for k, v in tensors.items()}


def forms(tmp):
    """The same of encoders with registers and with SwiGLU, for which Meta's and timm's names differ, and timm
    has the position of CLS in the CLS token."""
    base = ["--batch", "4", "--images", "2", "--epochs", "2", "--seed", "3", "--warm-epochs", "0", "--train", "vision",
            "--image-size", "70"]
    moving = ["--lr-vision", "1e-3"]
    still = ["--lr-neck", "0", "--lr-decoder", "0", "--lr-vision", "0", "--weight-decay", "0"]

    def trained(name, folder, *more):
        out = tmp / name
        good([*command(out, *base, *more, data="scenes:4,fixed"), "--vision", str(folder)])
        return out

    for kind in ("reg", "swiglu"):
        hf = SOURCE / f"tests/golden/data/models/dinov2_{kind}_tiny"
        a = trained(f"{kind}-hf", hf, *moving)
        want = timm_names.renamed(timm_names.read(a / "vision/model.safetensors"))
        for form in ("meta", "timm"):
            folder, is_timm = tmp / f"{kind}-{form}", form == "timm"
            timm_names.convert(str(hf), str(folder), is_timm)
            was = floats_of(timm_names.read(folder / "model.safetensors"))
            # Nothing moves: everything comes out as it went in, but for positions at another grid than theirs.
            out = trained(f"{kind}-{form}-still", folder, *still)
            got = floats_of(timm_names.read(out / "vision/model.safetensors"))
            assert sorted(got) == sorted(was), (kind, form)
            assert [k for k in was if got[k] != was[k]] == ([] if kind == "reg" else ["pos_embed"]), (kind, form)
            b = trained(f"{kind}-{form}-moved", folder, *moving)
            got = timm_names.read(b / "vision/model.safetensors")
            sums_cls = is_timm and kind == "reg"  # else no number is another
            assert (figures(log(a)) == figures(log(b))) != sums_cls, (kind, form)
            for x, y in zip(log(a), log(b)):
                assert abs(x["loss"] - y["loss"]) < 1e-5, (kind, form, x, y)
            # Masks that nothing reads are left as they were, and timm has none.
            expected = floats_of(timm_names.as_timm(want) if is_timm else want)
            got = floats_of(got)
            assert sorted(got) == sorted(expected) == sorted(was), (kind, form)
            for k, (shape, values) in got.items():
                assert shape == expected[k][0], k
                assert max(abs(x - y) for x, y in zip(values, expected[k][1])) < (1e-4 if sums_cls else 1e-30), k
            for k in ("cls_token", "pos_embed", *(["reg_token" if is_timm else "register_tokens"] if kind == "reg" else [])):
                assert got[k][1] != was[k][1], k
            assert abs(opens(tmp, a, "a") - opens(tmp, b, "b")) < 1e-4, (kind, form)
            # At another grid than the folder's, too.
            large = ["--image-size", "112", *moving]
            x, y = (log(trained(f"{kind}-{form}-{n}-large", f, *large)) for n, f in ((0, hf), (1, folder)))
            for p, q in zip(x, y):
                assert abs(p["loss"] - q["loss"]) < 1e-5, (kind, form, p, q)
            opens(tmp, tmp / f"{kind}-{form}-1-large", "c")


sys.exit(main({"towers": towers, "pixels": pixels, "timm": timm, "forms": forms}))
