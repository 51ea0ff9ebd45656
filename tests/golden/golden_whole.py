"""Gradients and ten optimiser steps of a whole small model, encoders included, by PyTorch and
Hugging Face's modules: tests/golden/data/whole_*.safetensors.

    python3 tests/golden/golden_whole.py --out tests/golden/data   # 10 s; torch >= 1.13, transformers

The encoders are Dinov2Model and CLIPTextModelWithProjection, in float64 and with weights by
golden_fill's formula; neck, decoder, loss and optimiser are golden_train.py's. "whole_gelu" has taps
through the encoder's last norm and a decoder that reads every word, "whole_swiglu" has taps as they
are and pooled text. Files hold what golden_train.py's hold.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, Dinov2Config, Dinov2Model

import golden_train as gt
from golden_fill import fill, head_shapes

PATCH, LENGTH, VOCAB = 4, 5, 40
IDS = [[38, 3, 39, 39, 39], [38, 7, 3, 11, 39], [38, 21, 7, 39, 39]]
LENS = [3, 5, 4]
LR = {"neck": 1e-3, "decoder": 2e-3, "vision": 5e-4, "text": 8e-4}
gt.GRID = (2, 2)


def encoders(swiglu):
    vision = Dinov2Model(Dinov2Config(
        hidden_size=gt.VISION, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2,
        image_size=PATCH * gt.GRID[0], patch_size=PATCH, layer_norm_eps=1e-3,
        use_swiglu_ffn=swiglu)).double().eval()
    text = CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=VOCAB, hidden_size=gt.HIDDEN, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=LENGTH, projection_dim=gt.TEXT,
        hidden_act="quick_gelu", layer_norm_eps=1e-4, bos_token_id=38,
        eos_token_id=39)).double().eval()
    return vision, text


def group_of(name):
    return next((g for g in ("vision", "text", "neck") if name.startswith(g + ".")), "decoder")


def is_matrix(name, t):
    return name.endswith(".weight") and t.dim() > 1 and not name.endswith("embedding.weight")


def run(name, mode, swiglu, normed):
    vision, text = encoders(swiglu)
    p = {k: fill(name, k, s).double().requires_grad_()
         for k, s in head_shapes(gt.Config(mode)).items()}
    for under, model in (("vision.", vision), ("text.", text)):
        for k, t in model.named_parameters():
            if k.endswith("mask_token") or (k.startswith("layernorm.") and not normed):
                continue
            with torch.no_grad():
                t.copy_(fill(name, under + k, tuple(t.shape)).double())
            p[under + k] = t
    b, pixels = len(gt.IMAGE_OF), [g << len(gt.UP) for g in gt.GRID]

    def given(what, shape, c=0.0, a=1.0):
        return fill(name, "input." + what, shape, c, a).double()

    images = given("images", (gt.IMAGES, 3, PATCH * gt.GRID[0], PATCH * gt.GRID[1]))
    ids = torch.tensor(IDS)
    target = given("target", (b, *pixels), 0.5, 0.5)
    weight = torch.tensor(gt.WEIGHT, dtype=torch.float32).double()
    head, out = gt.Head(p), {}
    gt.PROMPTS[:] = LENS if mode == "tokens" else [1] * b

    def forward():
        hidden = vision(images, output_hidden_states=True).hidden_states
        taps = []
        for i in (1, 2):
            h = vision.layernorm(hidden[i]) if normed else hidden[i]
            taps.append(h[:, 1:].transpose(1, 2).reshape(gt.IMAGES, gt.VISION, *gt.GRID))
        t = text(input_ids=ids)
        words = t.last_hidden_state[:, 1:] if mode == "tokens" else None
        return head(taps, F.normalize(t.text_embeds, dim=1), words)

    groups = []
    for g in LR:
        for decay in (True, False):
            mine = [t for k, t in p.items() if group_of(k) == g and is_matrix(k, t) == decay]
            groups.append({"params": mine, "lr": LR[g],
                           "weight_decay": gt.DECAY if decay else 0.0})
    adam = torch.optim.AdamW(groups, betas=gt.BETAS, eps=gt.EPS)
    steps = []
    for step in range(gt.STEPS):
        logits, iou = forward()
        bce, dice, miss, actual = gt.losses(logits, iou, target)
        total = (weight * (gt.LOSS["bce"] * bce + gt.LOSS["dice"] * dice
                           + gt.LOSS["iou"] * miss)).sum()
        adam.zero_grad()
        total.backward()
        if step == 0:
            assert logits.detach().abs().min() > 1e-5, "a logit at the threshold"
            out |= {"logits": logits, "iou": iou,
                    "parts": torch.stack([bce, dice, miss, actual, iou.sigmoid()], 1)}
            out |= {"grad." + k: t.grad.clone() for k, t in p.items()}
        norm = torch.nn.utils.clip_grad_norm_(list(p.values()), gt.CLIP)
        steps.append([total.item(), float(norm)])
        for i, g in enumerate(adam.param_groups):
            g["lr"] = list(LR.values())[i // 2] * min(1.0, (step + 1) / 4)
        adam.step()
    out["steps"] = torch.tensor(steps)
    out |= {"final." + k: t for k, t in p.items()}
    return {k: t.detach().numpy().astype(np.float32) for k, t in out.items()}


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", required=True, help="folder for the two files")
    args = ap.parse_args()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)  # an older transformers fills its mask in this type
    for name, mode, swiglu, normed in (("whole_gelu", "tokens", False, True),
                                       ("whole_swiglu", "pooled", True, False)):
        path = os.path.join(args.out, name + ".stages.safetensors")
        gt.write(path, run(name, mode, swiglu, normed))
        print(path, os.path.getsize(path))


if __name__ == "__main__":
    main()
