#!/usr/bin/env python3
"""Writes what tests/unit/mask_test.c compares with: enlarge.bin by PyTorch and rle.bin by
pycocotools. Usage: make_masks.py FOLDER. The committed files were made with Python 3.11.7,
torch 2.15.0, numpy 2.4.6 and pycocotools 2.0.11; other versions give the same counts and the same
logits to within 1e-6.

All numbers are little-endian. enlarge.bin, a case after the other:
    u32 grid_width, grid_height, width, height; f32 x0, y0, x1, y1
    f16 [grid_height, grid_width]   logits
    f32 [height, width]             logits of the photo's size; NaN where the grid does not reach
rle.bin, likewise:
    u32 width, height, x0, y0, x1, y1, n_bits, n_counts
    n_bits bytes     the mask, rows to bytes (numpy.packbits); 0: it is the box x0..x1, y0..y1
    n_counts bytes   COCO's compressed counts, a NUL behind them
"""
import pathlib
import struct
import sys

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco

rng = np.random.default_rng(7)


def enlarge(grid, width, height, rect):
    """interpolate(align_corners=False) where the grid covers whole pixels of the photo, and the
    same by grid_sample, which takes any place, where it does not. In float64."""
    x0, y0, x1, y1 = rect
    t = torch.from_numpy(grid.astype(np.float64))[None, None]
    out = np.full((height, width), np.nan)
    if all(v == int(v) for v in rect):
        w, h = int(x1 - x0), int(y1 - y0)
        big = F.interpolate(t, size=(h, w), mode="bilinear", align_corners=False)[0, 0].numpy()
        ax, ay = max(0, int(x0)), max(0, int(y0))
        bx, by = min(width, int(x1)), min(height, int(y1))
        out[ay:by, ax:bx] = big[ay - int(y0):by - int(y0), ax - int(x0):bx - int(x0)]
        return out
    gx = 2 * (np.arange(width) + 0.5 - x0) / (x1 - x0) - 1
    gy = 2 * (np.arange(height) + 0.5 - y0) / (y1 - y0) - 1
    at = torch.from_numpy(np.stack(np.meshgrid(gx, gy), -1))[None]
    big = F.grid_sample(t, at, mode="bilinear", padding_mode="border", align_corners=False)[0, 0].numpy()
    out[np.ix_(abs(gy) <= 1, abs(gx) <= 1)] = big[np.ix_(abs(gy) <= 1, abs(gx) <= 1)]
    return out


def write_enlarge(path):
    cases = [  # grid width, height, photo width, height, rectangle
        (1, 1, 1, 1, None), (1, 1, 7, 5, None), (4, 4, 1, 1, None), (2, 3, 3, 2, None),
        (8, 8, 8, 8, None), (7, 5, 64, 48, None), (16, 16, 61, 83, None), (64, 64, 90, 60, None),
        (32, 32, 20, 9, None), (3, 1, 50, 2, None), (1, 9, 2, 40, None),
        (16, 16, 60, 40, (0, -10, 60, 50)),      # letterbox
        (16, 16, 45, 70, (-12.5, 0, 57.5, 70)),
        (16, 16, 50, 37, (0, -6.5, 50, 43.5)),
        (16, 16, 60, 40, (10, 0, 50, 40)),       # centre crop
        (14, 14, 41, 57, (4.25, 12.25, 36.75, 44.75)),
        (8, 8, 20, 20, (40, 40, 60, 60)),        # nowhere in the photo
    ]
    with open(path, "wb") as f:
        for gw, gh, w, h, rect in cases:
            rect = rect or (0, 0, w, h)
            grid = rng.normal(0, 4, (gh, gw)).astype(np.float16)
            f.write(struct.pack("<4I4f", gw, gh, w, h, *rect))
            f.write(grid.astype("<f2").tobytes())
            f.write(enlarge(grid, w, h, rect).astype("<f4").tobytes())


def disc(w, h, x, y, r, hole=0):
    v, u = np.mgrid[:h, :w]
    d = np.hypot(u - x, v - y)
    return (d < r) & (d >= hole)


def write_rle(path):
    masks = [rng.random((h, w)) < p for w, h, p in
             [(1, 1, 1), (1, 1, 0), (5, 3, 0.5), (8, 8, 0.5), (31, 17, 0.3), (64, 64, 0.5),
              (65, 9, 0.9), (100, 75, 0.02), (3, 200, 0.5), (200, 3, 0.5), (130, 70, 0.5)]]
    masks += [np.zeros((20, 30), bool), np.ones((20, 30), bool), np.ones((300, 200), bool)]
    masks += [np.indices((h, w)).sum(0) % 2 == k for h, w in [(8, 8), (9, 7), (1, 6), (6, 1)] for k in (0, 1)]
    masks += [disc(160, 120, 70, 50, 40), disc(300, 200, 150, 90, 70, 30),
              disc(97, 101, 20, 20, 15) | disc(97, 101, 60, 70, 25, 9) | disc(97, 101, 96, 50, 12)]
    boxes = [(2500, 2000, 0, 0, 0, 0), (2500, 2000, 0, 0, 2500, 2000), (2500, 2000, 600, 7, 2499, 1999),
             (4000, 300, 100, 0, 3000, 300), (1, 200000, 0, 70000, 1, 150000), (4000, 2, 300, 1, 3900, 2)]
    with open(path, "wb") as f:
        def put(w, h, box, bits, m):
            counts = coco.encode(np.asfortranarray(m.astype(np.uint8)))["counts"]
            f.write(struct.pack("<8I", w, h, *box, len(bits), len(counts) + 1) + bits + counts + b"\0")
        for m in masks:
            put(m.shape[1], m.shape[0], (0, 0, 0, 0), np.packbits(m, axis=1).tobytes(), m)
        for w, h, *box in boxes:
            m = np.zeros((h, w), bool)
            m[box[1]:box[3], box[0]:box[2]] = True
            put(w, h, box, b"", m)


folder = pathlib.Path(sys.argv[1])
write_enlarge(folder / "enlarge.bin")
write_rle(folder / "rle.bin")
