"""PyTorch's counterpart of `pseg train` on photos with a table of phrases: the same head, features,
schedule and loss, so that both can be scored by `pseg eval`, and compared pair by pair.

    pseg train --data SET --val none --kind class --vision VIT --text TABLE ... \\
        --features CACHE --out A                                     # fills CACHE
    python tests/bench/photos_peer.py --like A --data SET --features CACHE --text TABLE \\
        --batch 16 --epochs 30 --lr-neck 5e-4 --lr-decoder 1e-3 --seed 0 --out B
    pseg eval --data ALL --split last:46 --kind class --model A --records --out ea
    pseg eval --data ALL --split last:46 --kind class --model B --compare ea/report.json --out eb

--like: a folder of `pseg train`, whose configuration is taken (not its weights, which begin as
PyTorch's modules do). SET: JSON lines as docs/data.md has them. Needs torch, transformers,
safetensors, numpy and pycocotools.
"""

import argparse
import glob
import hashlib
import json
import math
import os
import pathlib
import struct
import sys
import time

HERE = pathlib.Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "golden"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from pycocotools import mask as coco  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from pseg_reference import PsegConfig, PsegHead, save_head  # noqa: E402


def area_rows(out, first, length, size):
    """[out, length]: each of `out` equal parts of 0..size as means over `length` pixels that lie from
    `first` to size - first; pixels at a border count by their share."""
    scale, step = (size - 2 * first) / length, size / out
    lo = torch.arange(out, dtype=torch.float64)[:, None] * step
    a = first + torch.arange(length, dtype=torch.float64)[None, :] * scale
    cover = torch.minimum(lo + step, a + scale) - torch.maximum(lo, a)
    return (cover.clamp(min=0) / step).float()


class Features:
    """The cache of worker/data/features.h: 64 bytes an entry in `index`, numbers in taps-000000."""

    def __init__(self, folder, cfg):
        (path,) = glob.glob(os.path.join(folder, "*", "taps-000000"))
        n = len(cfg.taps) * cfg.grid[0] * cfg.grid[1] * cfg.vision_dim
        slot = -(-2 * n // 4096) * 4096
        self.shape = (len(cfg.taps), *cfg.grid, cfg.vision_dim)
        self.numbers, self.of = np.memmap(path, np.float16, "r"), {}
        self.n, self.slot = n, slot // 2
        index = pathlib.Path(path).with_name("index").read_bytes()
        for at in range(0, len(index), 64):
            _, number, of_bytes, _, _, _, is_mirrored, _, _ = struct.unpack("<II24sIIQIIQ", index[at:at + 64])
            if not is_mirrored:
                self.of[of_bytes] = number

    def get(self, path):
        at = self.of[hashlib.sha256(pathlib.Path(path).read_bytes()).digest()[:24]] * self.slot
        x = np.array(self.numbers[at:at + self.n], np.float32).reshape(self.shape)
        return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()


def read(a, cfg):
    """Photos' taps, and samples: (photo, row of the text table, target)."""
    folder = pathlib.Path(a.data).parent
    features = Features(a.features, cfg)
    names = json.loads((pathlib.Path(a.text) / "names.json").read_text())
    side = cfg.grid[0] << len(cfg.upsample)
    taps, samples = [], []
    for line in open(a.data):
        photo = json.loads(line)
        taps.append(features.get(folder / "images" / photo["image"]))
        for s in photo["samples"]:
            if s["kind"] != "class":
                continue
            h, w = s["mask"]["size"]
            m = torch.from_numpy(coco.decode(s["mask"]).astype(np.float32))
            scale = min(cfg.image_size[1] / w, cfg.image_size[0] / h) if cfg.preprocess == "letterbox" else 0
            edges = []
            for size, length in ((cfg.image_size[0], h), (cfg.image_size[1], w)):
                inside = round(length * scale) if scale else size
                edges.append(area_rows(side, (size - inside) // 2, length, size))
            samples += [(len(taps) - 1, names.index(p), edges[0] @ m @ edges[1].t()) for p in s["sentences"]]
    table = next(iter(load_file(os.path.join(a.text, "embeddings.safetensors")).values()))
    return taps, samples, F.normalize(torch.from_numpy(table.astype(np.float32)), dim=1)


def mask_losses(logits, target, iou_logit):
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((1, 2)) + 1) / (p.sum((1, 2)) + target.sum((1, 2)) + 1)
    with torch.no_grad():
        x, y = logits > 0, target > 0.5
        iou = (x & y).sum((1, 2)) / (x | y).sum((1, 2)).clamp(min=1)
    return (bce + dice + 0.2 * (iou_logit.sigmoid() - iou) ** 2).mean(), iou.mean()


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("like", "data", "features", "text", "out"):
        ap.add_argument("--" + name, required=True)
    ap.add_argument("--batch", type=int, default=32)
    ap.add_argument("--epochs", type=int, default=20)
    ap.add_argument("--warm-epochs", type=int, default=2)
    ap.add_argument("--lr-neck", type=float, default=1e-4)
    ap.add_argument("--lr-decoder", type=float, default=2e-4)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--threads", type=int, default=2)
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    about = json.loads((pathlib.Path(a.like) / "pseg.json").read_text())
    with safe_open(os.path.join(a.like, about["decoder"]), "pt") as f:
        cfg = PsegConfig.from_metadata(f.metadata())
    head = PsegHead(cfg).train()
    taps, samples, table = read(a, cfg)
    groups = []
    for is_neck in (True, False):
        for has_decay in (True, False):
            mine = [p for n, p in head.named_parameters() if n.startswith("neck.") == is_neck and
                    (n.endswith(".weight") and p.dim() > 1) == has_decay]
            groups.append({"params": mine, "lr": a.lr_neck if is_neck else a.lr_decoder,
                           "weight_decay": 1e-2 if has_decay else 0.0})
    top = [g["lr"] for g in groups]
    adam = torch.optim.AdamW(groups, foreach=True)
    per = -(-len(samples) // a.batch)
    warm, total, step, begin = a.warm_epochs * per, a.epochs * per, 0, time.time()
    for epoch in range(a.epochs):
        order, sums = torch.randperm(len(samples)).tolist(), [0.0, 0.0]
        for at in range(0, len(order), a.batch):
            some = [samples[i] for i in order[at:at + a.batch]]
            x = [torch.stack([taps[s[0]][k] for s in some]) for k in range(len(cfg.taps))]
            text = table[[s[1] for s in some]]
            logits, iou = head.decoder(head.neck(x), head.text_proj(text).unsqueeze(1))
            loss, hit = mask_losses(logits, torch.stack([s[2] for s in some]), iou)
            adam.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            rate = (step + 1) / warm if step < warm else \
                0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
            for g, lr in zip(adam.param_groups, top):
                g["lr"] = lr * rate
            adam.step()
            step += 1
            sums = [sums[0] + loss.item() * len(some), sums[1] + hit.item() * len(some)]
        print(f"epoch {epoch + 1}/{a.epochs} loss {sums[0] / len(order):.4f} IoU {sums[1] / len(order):.4f} "
              f"{time.time() - begin:.0f} s", flush=True)
    os.makedirs(a.out, exist_ok=True)
    save_head(head, os.path.join(a.out, "pseg.safetensors"), torch.float32)
    about |= {"decoder": "pseg.safetensors", "description": "Trained by PyTorch."}
    (pathlib.Path(a.out) / "pseg.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
