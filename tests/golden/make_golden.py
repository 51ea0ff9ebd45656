"""Writes the golden data that tests/golden/*_test.c compare with. See README.md.

    python3 tests/golden/make_golden.py --out tests/golden/data            # all parts
    python3 tests/golden/make_golden.py --out DIR --only vision,text       # some
    python3 tests/golden/make_golden.py --check tests/golden/data          # regenerate, compare

Needs the packages of requirements.txt, 20 seconds of one core and 2.5 GB (the full shapes).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file

import golden_encoders as ge
import golden_head as gh

HERE = os.path.dirname(os.path.abspath(__file__))
REAL_VIT = os.path.join(HERE, "..", "..", "..", "shared", "data", "vit_tiny")
TOLERANCE = 1e-6  # of --check, relative to the tensor's root mean square


def real_vit(out):
    if not os.path.isdir(REAL_VIT):
        print(f"skipped vit_tiny_real: no {os.path.normpath(REAL_VIT)}")
        return
    ge.make_real_vit(out, REAL_VIT)


PARTS = {"vision": ge.make_vision, "text": ge.make_text, "positions": ge.make_positions,
         "pseg": gh.make_pseg, "sam": gh.make_sam, "preprocess": gh.make_preprocess,
         "full": ge.make_full_encoders, "full_head": gh.make_full_head, "real": real_vit}


def files_of(folder):
    return sorted(os.path.relpath(os.path.join(d, f), folder)
                  for d, _, files in os.walk(folder) for f in files)


def differs(old: str, new: str) -> str:
    """What is different between two files, or an empty string."""
    if not old.endswith(".safetensors"):
        with open(old, "rb") as a, open(new, "rb") as b:
            return "" if a.read() == b.read() else "bytes differ"
    a, b = load_file(old), load_file(new)
    if a.keys() != b.keys():
        return f"tensors {sorted(a.keys() ^ b.keys())[:4]}"
    for k, x in a.items():
        y = b[k]
        if x.shape != y.shape or x.dtype != y.dtype:
            return f"{k}: {x.dtype} {tuple(x.shape)} against {y.dtype} {tuple(y.shape)}"
        if not x.is_floating_point():
            if not torch.equal(x, y):
                return f"{k}: integers differ"
            continue
        x, y = x.double(), y.double()
        limit = TOLERANCE * max(x.square().mean().sqrt().item(), 1e-30)
        worst = (x - y).abs().max().item()
        if not worst <= limit:
            return f"{k}: differs by {worst:.3g}, allowed {limit:.3g}"
    return ""


def check(data: str, parts) -> int:
    bad = 0
    with tempfile.TemporaryDirectory() as fresh:
        for p in parts:
            PARTS[p](fresh)
        have, want = files_of(data), files_of(fresh)
        for f in want:
            what = differs(os.path.join(data, f), os.path.join(fresh, f)) if f in have \
                else "missing"
            if what:
                bad += 1
                print(f"FAIL {f}: {what}")
        if len(parts) == len(PARTS):
            for f in sorted(set(have) - set(want)):
                if not f.startswith("vit_tiny_real") or os.path.isdir(REAL_VIT):
                    bad += 1
                    print(f"FAIL {f}: is no longer made")
    print(f"{len(want)} files, {bad} differ")
    return 1 if bad else 0


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    where = ap.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", help="folder to write")
    where.add_argument("--check", help="folder to compare with")
    ap.add_argument("--only", help=f"parts, by comma, of {','.join(PARTS)}")
    ap.add_argument("--threads", type=int, default=1)
    args = ap.parse_args()
    parts = args.only.split(",") if args.only else list(PARTS)
    if unknown := [p for p in parts if p not in PARTS]:
        ap.error(f"unknown parts {unknown}: there are {','.join(PARTS)}")
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.check:
        return check(args.check, parts)
    for p in parts:
        PARTS[p](args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
