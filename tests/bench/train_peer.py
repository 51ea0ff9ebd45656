"""A training step of neck and decoder: PyTorch beside `pseg bench train`, in turn.

    python3 -m venv ENV && ENV/bin/pip install -r tests/bench/requirements.txt
    ENV/bin/python tests/bench/train_peer.py --pseg build/release/bin/pseg [--rounds 3] [--out F.json]

Both do the same: the reference's neck, text projection and decoder (width 256, 8 heads, 3 two-way
blocks, MLP 2048) on features that are there already (four taps of DINOv2-base, 16 x 16 x 768, a text
embedding of 512), 32 samples, float32: forward, BCE + Dice + IoU loss, backward, clipping, AdamW.
PyTorch's model is tests/golden/pseg_reference.py, eager and compiled. PSEG's step has the copy of the
batch to the device besides, which it makes before each pass. Each run is a process of its own with
--threads threads, one at a time; times are medians of a run's steps, and the median of the rounds
counts. peak MiB is the largest resident set of the process; a second process of each that stops
before its first step tells what was there without it.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1] / "golden"))
PARTS = ("put", "forward", "backward", "optim", "step", "cpu")
PEERS = ("pseg", "torch-eager", "torch-channels-last", "torch-compile")


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_ms():
    u = resource.getrusage(resource.RUSAGE_SELF)
    return 1e3 * (u.ru_utime + u.ru_stime)


def mask_losses(torch, logits, target, iou_logit):
    f = torch.nn.functional
    bce = f.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((1, 2)) + 1) / (p.sum((1, 2)) + target.sum((1, 2)) + 1)
    with torch.no_grad():
        a, b = logits > 0, target > 0.5
        iou = (a & b).sum((1, 2)) / (a | b).sum((1, 2)).clamp(min=1)
    return (bce + dice + 0.2 * (iou_logit.sigmoid() - iou) ** 2).mean()


def torch_step(mode, batch, threads, steps):
    """Runs in a process of its own."""
    import torch

    from pseg_reference import PsegConfig, PsegHead

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    cfg = PsegConfig()
    head = PsegHead(cfg).train()
    decay = [p for p in head.parameters() if p.dim() > 1]
    rest = [p for p in head.parameters() if p.dim() <= 1]
    adam = torch.optim.AdamW([{"params": decay, "weight_decay": 1e-2},
                              {"params": rest, "weight_decay": 0.0}], lr=1e-4, foreach=True)
    taps = [torch.rand(batch, cfg.vision_dim, *cfg.grid) for _ in cfg.taps]
    if mode == "channels-last":
        head = head.to(memory_format=torch.channels_last)
        taps = [t.to(memory_format=torch.channels_last) for t in taps]
    side = cfg.grid[0] << len(cfg.upsample)
    target = torch.rand(batch, side, side)
    text = torch.nn.functional.normalize(torch.rand(batch, cfg.text_dim), dim=1)
    before = peak_mib()

    def forward(taps, text, target):
        logits, iou = head.decoder(head.neck(taps), head.text_proj(text).unsqueeze(1))
        return mask_losses(torch, logits, target, iou)

    if mode == "compile":
        forward = torch.compile(forward)
    times = {p: [] for p in PARTS}
    for i in range(steps + 2):
        cpu, t = cpu_ms(), [time.perf_counter()]
        loss = forward(taps, text, target)
        t.append(time.perf_counter())
        loss.backward()
        t.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)
        t.append(time.perf_counter())
        if i < 2:
            continue
        for p, ms in zip(PARTS, (0, *(1e3 * (b - a) for a, b in zip(t, t[1:])), 1e3 * (t[-1] - t[0]),
                                 cpu_ms() - cpu)):
            times[p].append(ms)
    return {"median_ms": {p: statistics.median(v) for p, v in times.items()}, "loss": loss.item(),
            "peak_rss_mib": peak_mib(), "rss_before_mib": before, "version": torch.__version__}


def run(peer, a):
    env = dict(os.environ, OMP_NUM_THREADS=str(a.threads), OMP_WAIT_POLICY="passive")
    if peer == "pseg":
        argv = [a.pseg, "bench", "train", "--json", "--batch", str(a.batch), "--threads", str(a.threads),
                "--steps", str(a.steps)]
    else:
        argv = [sys.executable, str(HERE), "--child", peer.partition("-")[2], "--batch", str(a.batch),
                "--threads", str(a.threads), "--steps", str(a.steps)]
    p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    if p.returncode != 0:
        return {"failed": p.stderr.decode().strip().splitlines()[-1:]}
    return json.loads(p.stdout.decode().strip().splitlines()[-1] if peer != "pseg" else p.stdout)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--pseg", default="build/release/bin/pseg")
    ap.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    ap.add_argument("--batch", type=int, default=32)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--steps", type=int, default=5)
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--out", help="every run, as JSON")
    ap.add_argument("--child", help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.child:
        print(json.dumps(torch_step(a.child, a.batch, a.threads, a.steps)))
        return
    found = {p: [] for p in a.peers}
    for i in range(a.rounds):
        for peer in a.peers:
            r = run(peer, a)
            found[peer].append(r)
            print(f"round {i + 1} {peer}: " + (f"failed: {r['failed']}" if "failed" in r else
                  ", ".join(f"{p} {r['median_ms'][p]:.0f}" for p in PARTS) +
                  f" ms; peak {r['peak_rss_mib']:.0f} MiB"), flush=True)
    print(f"\n{'medians of rounds, ms':22}" + "".join(f"{p:>10}" for p in PARTS) + "  peak MiB")
    for peer, runs in found.items():
        ok = [r for r in runs if "failed" not in r]
        if ok:
            print(f"{peer:22}" + "".join(f"{statistics.median(r['median_ms'][p] for r in ok):10.0f}" for p in PARTS) +
                  f"{max(r['peak_rss_mib'] for r in ok):10.0f}")
    if a.out:
        pathlib.Path(a.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
