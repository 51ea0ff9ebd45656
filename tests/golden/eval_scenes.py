"""Scores a model folder on the project's own scenes; prints JSON.

    python3 tests/golden/eval_scenes.py --scenes BUILD/bin/pseg-scenes --model deploy/models/scenes
        [--seed 0] [--count 1000]

IoU is taken at the scene's size: the mask logits are upsampled bilinearly (align_corners False),
thresholded at 0, and compared with the visible pixels of the object that the phrase means.

  miou        mean over all phrases; relational, attribute, superlative: by the phrase's kind
  swapped     for each phrase: the mask that a phrase about another object of the same scene gives
              (the phrase's own `other` where some phrase means it, else any other target), against
              this phrase's object. A model that reads the phrase scores near 0, a text-blind one
              scores as high as miou.
  iou_error   mean |predicted IoU - IoU|
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import time

import numpy as np
import torch
import torch.nn.functional as F

SIZE = 224
KINDS = ("attribute", "relational", "superlative")


class Scene:
    """One record of the stream. rgb u8 [H, W, 3]; ids u8 [H, W]; phrases (text, target, other,
    kind) with kind 0 attribute, 1 relation, 2 superlative. looks: object id -> its size, texture,
    colour and shape, in words (only with --describe, where the stream has them as kind 3)."""

    __slots__ = ("seed", "rgb", "ids", "phrases", "looks")


def read_scenes(program: str, seed: int, count: int, size: int = SIZE, describe: bool = False):
    """Yields Scenes seed, seed + 1, ...; closes the generator's process when dropped."""
    cmd = [program, "--seed", str(seed), "--count", str(count), "--size", str(size), "--raw"]
    cmd += ["--describe"] if describe else []
    proc = subprocess.Popen(cmd, stdout=subprocess.PIPE, bufsize=1 << 20)

    def take(n):
        data = proc.stdout.read(n)
        if len(data) != n:
            raise EOFError("scene stream ended inside a record")
        return data

    try:
        for _ in range(count):
            magic, version, s, w, h, _, n = struct.unpack("<4sIQHHHH", take(24))
            if magic != b"PSCN" or version != 1:
                raise ValueError(f"scene stream: magic {magic!r} version {version}")
            sc = Scene()
            sc.seed = s
            sc.rgb = np.frombuffer(take(h * w * 3), np.uint8).reshape(h, w, 3)
            sc.ids = np.frombuffer(take(h * w), np.uint8).reshape(h, w)
            sc.phrases, sc.looks = [], {}
            for _ in range(n):
                target, other, kind, _, length = struct.unpack("<BBBBH", take(6))
                text = take(length).decode()
                if kind == 3:
                    sc.looks[target] = text.split()
                else:
                    sc.phrases.append((text, target, other, kind))
            yield sc
    finally:
        proc.stdout.close()
        proc.terminate()
        proc.wait()


def pick_swap(phrases, i):
    """Index of the phrase put in place of phrase i: it means another object; None if none does."""
    _, target, other, _ = phrases[i]
    of_other = [j for j, p in enumerate(phrases) if p[1] == other and p[1] != target]
    rest = [j for j, p in enumerate(phrases) if p[1] != target]
    pool = of_other or rest
    return pool[i % len(pool)] if pool else None


@torch.no_grad()
def evaluate(model, encode, program, seed, count, autocast=False, batch=8):
    """model: Pseg in eval mode; encode: phrase -> ids with BOS and EOS. Returns the figures."""
    cfg = model.cfg
    mean = torch.tensor(cfg.image_mean).view(1, 3, 1, 1) * 255
    std = torch.tensor(cfg.image_std).view(1, 3, 1, 1) * 255
    eos = model.text.config.eos_token_id
    ious, kinds, swapped, errors = [], [], [], []

    def flush(scenes):
        rgb = torch.from_numpy(np.stack([s.rgb for s in scenes])).permute(0, 3, 1, 2).float()
        rows = [encode(p[0]) for s in scenes for p in s.phrases]
        longest = max(map(len, rows))
        ids = torch.tensor([r + [eos] * (longest - len(r)) for r in rows])
        image_of = torch.tensor([k for k, s in enumerate(scenes) for _ in s.phrases])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits, guess = model((rgb - mean) / std, ids, image_of)
        at = 0
        for s in scenes:
            n = len(s.phrases)
            up = F.interpolate(logits[at:at + n, None].float(), size=s.ids.shape, mode="bilinear",
                               align_corners=False)[:, 0] > 0
            targets = torch.tensor([p[1] for p in s.phrases])[:, None, None]
            want = torch.from_numpy(s.ids.copy())[None] == targets
            for i, p in enumerate(s.phrases):
                iou = overlap(up[i], want[i])
                ious.append(iou)
                kinds.append(p[3])
                errors.append(abs(iou - float(guess[at + i])))
                j = pick_swap(s.phrases, i)
                if j is not None:
                    swapped.append(overlap(up[j], want[i]))
            at += n

    held = []
    for sc in read_scenes(program, seed, count, cfg.image_size[0]):
        if sc.phrases:
            held.append(sc)
        if len(held) == batch:
            flush(held)
            held = []
    if held:
        flush(held)
    ious, kinds = np.array(ious), np.array(kinds)
    out = {"miou": ious.mean()}
    for k, name in enumerate(KINDS):
        out[name] = ious[kinds == k].mean() if (kinds == k).any() else None
    out |= {"swapped": np.mean(swapped), "iou_at_0.5": (ious > 0.5).mean(),
            "iou_error": np.mean(errors), "phrases": len(ious), "scenes": count}
    return {k: round(float(v), 4) if isinstance(v, float) else v for k, v in out.items()}


def overlap(a, b) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def main():
    from pseg_reference import load_model, load_tokenizer, tokenize

    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--scenes", required=True, help="the pseg-scenes program")
    ap.add_argument("--model", required=True, help="model folder")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--count", type=int, default=1000)
    args = ap.parse_args()
    model, tok = load_model(args.model), load_tokenizer(args.model)
    limit = model.text.config.max_position_embeddings
    start = time.time()
    out = evaluate(model, lambda p: tokenize(tok, [p], limit)[0].tolist(), args.scenes, args.seed,
                   args.count)
    out["seconds"] = round(time.time() - start, 1)
    print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
