"""Gradients and ten optimiser steps of a small head, by PyTorch: tests/golden/data/train_*.safetensors.

    python3 tests/golden/golden_train.py --out tests/golden/data      # 10 s; torch >= 1.13, numpy

PSEG-1's neck and decoder are written out here with torch's own operations (linear, conv2d,
conv_transpose2d, group_norm, layer_norm, gelu, softmax), everything in float64; autograd gives the
gradients, torch.optim.AdamW and torch.nn.utils.clip_grad_norm_ the steps. It needs none of the other
generators' packages. Weights and inputs come from golden_fill's formula, so the files hold results
only: the loss's parts per sample, every gradient of the first step, the loss and the gradient's norm
of each step, and all weights after the last.

Four cases: "train_pooled" and "train_tokens" (phrases of different lengths), each with two images for
three samples, a grid of 2 x 3, and weights of samples that are not equal; and "train_deep", as
train_tokens, but with the loss of logits enlarged to an input of 19 x 30 (interpolate, bilinear,
align_corners=False) and with deep supervision: the mask read off the keys after each two-way block;
"train_muon" is train_tokens with Muon for matrices with both sides above 16 (its width is 24).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F

from golden_fill import fill, head_shapes

TAPS, DIM, HEADS, DEPTH, MLP, DOWN, GROUPS = 2, 16, 2, 2, 40, 2, 4
GRID, UP, VISION, TEXT, HIDDEN = (2, 3), (12, 8), 20, 24, 20
GN_EPS, UP_EPS, LN_EPS, FINAL_EPS = 1e-5, 1e-6, 1e-6, 1e-5
IMAGES, IMAGE_OF, PROMPTS, MAX_PROMPT = 2, [0, 1, 1], [3, 5, 4], 5
WEIGHT = [0.5, 0.3, 0.2]
LOSS = {"bce": 1.0, "dice": 1.0, "iou": 0.5}
LR = {"neck": 1e-3, "decoder": 2e-3, "probe": 3e-3}
INPUT, DEEP = (19, 30), 0.7
LR_MUON, BETA = 0.02, 0.95
DECAY, BETAS, EPS, CLIP, STEPS = 1e-2, (0.9, 0.999), 1e-8, 1.0, 10


class Config:  # what golden_fill.head_shapes looks at
    def __init__(self, mode):
        self.taps, self.dim, self.heads, self.depth = tuple(range(1, TAPS + 1)), DIM, HEADS, DEPTH
        self.mlp_dim, self.downsample, self.gn_groups = MLP, DOWN, GROUPS
        self.grid, self.upsample, self.text_mode = GRID, UP, mode
        self.vision_dim, self.text_dim, self.text_hidden = VISION, TEXT, HIDDEN


class Head:
    """p: the tensors of pseg.safetensors."""

    def __init__(self, p):
        self.p = p

    def lin(self, name, x):
        return F.linear(x, self.p[name + ".weight"], self.p[name + ".bias"])

    def norm(self, name, x, eps):
        return F.layer_norm(x, x.shape[-1:], self.p[name + ".weight"], self.p[name + ".bias"], eps)

    def unit(self, name, x):
        w = self.p[name + ".conv.weight"]
        y = F.conv2d(x, w, self.p[name + ".conv.bias"], padding=w.shape[2] // 2)
        return F.gelu(F.group_norm(y, GROUPS, self.p[name + ".norm.weight"],
                                   self.p[name + ".norm.bias"], GN_EPS))

    def neck(self, taps):
        levels = [self.unit(f"neck.lateral.{i}", t) for i, t in enumerate(taps)]
        for i in range(TAPS - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + levels[i]
        return self.unit("neck.fuse", sum(self.unit(f"neck.smooth.{i}", x)
                                          for i, x in enumerate(levels)))

    def attend(self, name, q, k, v, mask=None):
        def split(x):
            return x.reshape(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)

        q, k, v = (split(self.lin(f"{name}.{n}_proj", x)) for n, x in zip("qkv", (q, k, v)))
        a = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        if mask is not None:
            a = a + mask
        out = (a.softmax(-1) @ v).transpose(1, 2)
        return self.lin(f"{name}.out_proj", out.reshape(out.shape[0], out.shape[1], -1))

    def block(self, i, q, k, pe, kpe, mask):
        n = f"decoder.layers.{i}."
        if i == 0:
            q = self.attend(n + "self_attn", q, q, q, mask)
        else:
            q = q + self.attend(n + "self_attn", q + pe, q + pe, q, mask)
        q = self.norm(n + "layer_norm1", q, LN_EPS)
        q = self.norm(n + "layer_norm2",
                      q + self.attend(n + "cross_attn_token_to_image", q + pe, k + kpe, k), LN_EPS)
        q = self.norm(n + "layer_norm3",
                      q + self.lin(n + "mlp.lin2", self.lin(n + "mlp.lin1", q).relu()), LN_EPS)
        k = k + self.attend(n + "cross_attn_image_to_token", k + kpe, q + pe, q, mask)
        return q, self.norm(n + "layer_norm4", k, LN_EPS)

    def mlp(self, name, x):
        x = self.lin(name + ".proj_in", x).relu()
        return self.lin(name + ".proj_out", self.lin(name + ".layers.0", x).relu())

    def __call__(self, taps, text, words):
        feat = self.neck(taps)[IMAGE_OF]
        b = len(IMAGE_OF)
        prompt, mask = self.lin("text_proj", text).unsqueeze(1), None
        if words is not None:
            prompt = torch.cat([prompt, self.lin("text_token_proj", words)], 1)
            mask = torch.zeros(b, 1, 1, 2 + MAX_PROMPT, dtype=text.dtype)
            for i, n in enumerate(PROMPTS):
                mask[i, :, :, 2 + n:] = -torch.inf
        lead = torch.cat([self.p["decoder.iou_token"], self.p["decoder.mask_token"]])
        pe = q = torch.cat([lead.unsqueeze(0).expand(b, -1, -1), prompt], 1)
        k = feat.flatten(2).transpose(1, 2)
        kpe = self.p["decoder.pos_embed"].flatten(2).transpose(1, 2)
        self.read = []
        for i in range(DEPTH):
            q, k = self.block(i, q, k, pe, kpe, mask)
            if f"probe.{i}.weight" in self.p:
                self.read.append(self.lin(f"probe.{i}", k).reshape(b, *GRID))
        q = self.norm("decoder.layer_norm_final_attn",
                      q + self.attend("decoder.final_attn_token_to_image", q + pe, k + kpe, k),
                      FINAL_EPS)
        up = k.transpose(1, 2).reshape(b, DIM, *GRID)
        for i in range(len(UP)):
            n = f"decoder.upsample.{i}."
            up = F.conv_transpose2d(up, self.p[n + "conv.weight"], self.p[n + "conv.bias"], stride=2)
            if i + 1 < len(UP):
                up = self.norm(n + "norm", up.permute(0, 2, 3, 1), UP_EPS).permute(0, 3, 1, 2)
            up = F.gelu(up)
        logits = torch.einsum("bc,bchw->bhw", self.mlp("decoder.mask_mlp", q[:, 1]), up)
        return logits, self.mlp("decoder.iou_head", q[:, 0]).squeeze(-1)


def losses(logits, iou, target):
    """Per sample: bce, dice, miss, the actual IoU."""
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((1, 2)) + 1) / (p.sum((1, 2)) + target.sum((1, 2)) + 1)
    on, want = logits.detach() > 0, target > 0.5
    actual = (on & want).sum((1, 2)) / (on | want).sum((1, 2)).clamp(min=1)
    return bce, dice, (iou.sigmoid() - actual.to(iou.dtype)) ** 2, actual.to(iou.dtype)


def orthogonal(g):
    """Muon's Newton-Schulz, in the gradient's own precision."""
    x = g.t() if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.t()
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.t() if g.shape[0] > g.shape[1] else x


def is_muon(name, t):
    k = t.numel() // t.shape[0]
    return (name.endswith(".weight") and t.dim() > 1 and min(t.shape[0], k) > 16
            and "upsample" not in name)


def muon_step(p, state, lr):
    for name, t in p.items():
        if not is_muon(name, t):
            continue
        m = state.setdefault(name, torch.zeros_like(t))
        m.lerp_(t.grad, 1 - BETA)
        u = torch.lerp(t.grad, m, BETA).reshape(t.shape[0], -1)
        step = orthogonal(u) * max(1.0, u.shape[0] / u.shape[1]) ** 0.5
        with torch.no_grad():
            t.mul_(1 - lr * DECAY).sub_(step.reshape(t.shape), alpha=lr)


def run(name, mode, deep=False, muon=False):
    shapes = dict(head_shapes(Config(mode)))
    if deep:
        for i in range(DEPTH):
            shapes |= {f"probe.{i}.weight": (1, DIM), f"probe.{i}.bias": (1,)}
    p = {k: fill(name, k, s).double().requires_grad_() for k, s in shapes.items()}
    b, pixels = len(IMAGE_OF), [g << len(UP) for g in GRID]

    def given(what, shape, c=0.0, a=1.0):
        return fill(name, "input." + what, shape, c, a).double()

    # Token-major, as the engine has them; a target is a fraction of a pixel.
    taps = [given(f"tap.{i}", (IMAGES, GRID[0] * GRID[1], VISION)).transpose(1, 2)
            .reshape(IMAGES, VISION, *GRID) for i in range(TAPS)]
    text = F.normalize(given("text", (b, TEXT)), dim=1)
    text = text.float().double()
    words = given("words", (b, MAX_PROMPT - 1, HIDDEN)) if mode == "tokens" else None
    target = given("target", (b, *(INPUT if deep else pixels)), 0.5, 0.5)
    coarse = given("coarse", (b, *GRID), 0.5, 0.5)
    weight = torch.tensor(WEIGHT, dtype=torch.float32).double()
    head, out = Head(p), {}
    groups = []
    for group in LR:
        for decay in (True, False):
            mine = [t for k, t in p.items()
                    if (k.split(".")[0] if k.startswith(("neck.", "probe.")) else "decoder") == group
                    and not (muon and is_muon(k, t)) and (k.endswith(".weight") and t.dim() > 1) == decay]
            groups.append({"params": mine, "lr": LR[group], "weight_decay": DECAY if decay else 0.0})
    adam = torch.optim.AdamW(groups, betas=BETAS, eps=EPS)
    steps, momentum = [], {}
    for step in range(STEPS):
        logits, iou = head(taps, text, words)
        full = logits
        if deep:
            full = F.interpolate(logits.unsqueeze(1), INPUT, mode="bilinear").squeeze(1)
        bce, dice, miss, actual = losses(full, iou, target)
        total = (weight * (LOSS["bce"] * bce + LOSS["dice"] * dice + LOSS["iou"] * miss)).sum()
        told = total.item()  # without deep supervision's part
        for read in head.read:
            of_bce, of_dice = losses(read, iou, coarse)[:2]
            total = total + DEEP / DEPTH * (
                weight * (LOSS["bce"] * of_bce + LOSS["dice"] * of_dice)).sum()
        for t in p.values():  # not all of them are AdamW's
            t.grad = None
        total.backward()
        if step == 0:
            assert full.detach().abs().min() > 1e-5, "a logit at the threshold"
            out |= {"logits": logits, "iou": iou,
                    "parts": torch.stack([bce, dice, miss, actual, iou.sigmoid()], 1)}
            out |= {"grad." + k: t.grad.clone() for k, t in p.items()}
        norm = torch.nn.utils.clip_grad_norm_(list(p.values()), CLIP)
        steps.append([told, float(norm)])
        for i, g in enumerate(adam.param_groups):
            g["lr"] = list(LR.values())[i // 2] * min(1.0, (step + 1) / 4)
        adam.step()
        if muon:
            muon_step(p, momentum, LR_MUON * min(1.0, (step + 1) / 4))
    out["steps"] = torch.tensor(steps)
    out |= {"final." + k: t for k, t in p.items()}
    return {k: t.detach().numpy().astype(np.float32) for k, t in out.items()}


def write(path, tensors):
    with open(__file__, "rb") as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    header = {"__metadata__": {"generator": "golden_train.py", "generator_sha256": digest,
                               "torch": torch.__version__}}
    at = 0
    for k, t in tensors.items():
        header[k] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for t in tensors.values():
            f.write(np.ascontiguousarray(t).tobytes())


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", required=True)
    ap.add_argument("--only", default="", help="cases whose names hold this text")
    args = ap.parse_args()
    torch.manual_seed(0)
    for name, mode, deep, muon in (("train_pooled", "pooled", False, False),
                                   ("train_tokens", "tokens", False, False),
                                   ("train_deep", "tokens", True, False),
                                   ("train_muon", "tokens", False, True)):
        if args.only not in name:
            continue
        global DIM
        DIM = 24 if muon else 16
        tensors = run(name, mode, deep, muon)
        path = os.path.join(args.out, name + ".stages.safetensors")
        write(path, tensors)
        print(path, os.path.getsize(path), "bytes", tensors["steps"][:, 0].round(4).tolist(),
              file=sys.stderr)


if __name__ == "__main__":
    main()
