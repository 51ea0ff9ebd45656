#!/usr/bin/env python3
"""A load that lasts, and what grows under it: memory, descriptors and threads of each process, Redis' keys and
memory, once a second.

    python3 tests/fault/soak.py BIN DESCRIPTORS --seconds 3600 --out DIR     (in the source's root)

The first quarter is warm-up. Then nothing may grow: the median of the last quarter is held against that of the
second, for each curve (see `judge`); what Redis holds may be more where jobs came faster. Writes samples.jsonl, a
line a second, and soak.svg; exit 1 if something grew, a job failed, or a batch or the watch was told wrong."""
import argparse
import collections
import json
import os
import pathlib
import statistics
import sys
import threading
import time

# What a curve may be above its earlier median: a share, and an amount that is always allowed.
ALLOWED = {"memory": (0.05, 4 << 20), "descriptors": (0, 4), "threads": (0, 2), "keys": (0.10, 200),
           "redis_memory": (0.10, 4 << 20), "left": (0, 0)}
# What goes with the rate of jobs, for Redis keeps each a while after its end.
RATED = ("keys of redis", "memory of redis", "redis_memory of redis")
NO_CURVE = {"t", "jobs"}  # seconds; how many were sent so far


def faster(samples):
    """How many times the rate of jobs in the second quarter their rate in the last one is; not below 1."""
    n = len(samples)
    rates = []
    for first, last in ((samples[n // 4], samples[n // 2 - 1]), (samples[-(n // 4)], samples[-1])):
        rates.append((last.get("jobs", 0) - first.get("jobs", 0)) / (last["t"] - first["t"] or 1))
    return max(1, rates[1] / rates[0]) if rates[0] > 0 else 1


def judge(samples):
    """samples: dicts of "t", "jobs" and of "KIND of WHOM". What grew, a line each."""
    n, grown = len(samples), []
    if n < 16:
        return ["too few samples to judge"]
    times = faster(samples)
    for name in sorted({k for s in samples for k in s} - NO_CURVE):
        share, amount = ALLOWED[name.split(" ")[0]]
        before = [s[name] for s in samples[n // 4:n // 2] if name in s]
        after = [s[name] for s in samples[-(n // 4):] if name in s]
        if not before or not after:
            grown.append(f"{name}: no samples of {'its middle' if not before else 'its end'}")
            continue
        a, b = statistics.median(before), statistics.median(after)
        if b > a * (times if name in RATED else 1) * (1 + share) + amount:
            grown.append(f"{name}: {a:.0f} -> {b:.0f}" + (f", jobs {times:.2f} times as fast" if name in RATED else ""))
    return grown


def chart(samples, title):
    """Each kind a panel, each process a line, by time: 300 samples of all."""
    samples = samples[::-(-len(samples) // 300)]
    kinds = collections.defaultdict(list)
    for name in sorted({k for s in samples for k in s} - NO_CURVE):
        kinds[name.split(" ")[0]].append(name)
    width, height, left = 900, 150, 90
    colours = ["#1f6fb4", "#d1651f", "#2a8f4c", "#8a4fbf", "#b0263a", "#6b6b6b"]
    end = max(s["t"] for s in samples) or 1
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{40 + (height + 40) * len(kinds)}" '
           f'font-family="sans-serif" font-size="12"><text x="10" y="20" font-size="15">{title}</text>']
    for row, (kind, names) in enumerate(kinds.items()):
        top = 40 + row * (height + 40)
        unit, scale = ("MiB", 1 << 20) if "memory" in kind else ("", 1)
        most = max(s[n] for s in samples for n in names if n in s) / scale or 1
        out.append(f'<text x="10" y="{top + 12}">{kind}</text><text x="10" y="{top + 28}">0 to {most:.0f} {unit}</text>'
                   f'<rect x="{left}" y="{top}" width="{width - left - 170}" height="{height}" fill="none" stroke="#ccc"/>')
        for i, name in enumerate(names):
            points = " ".join(f'{left + s["t"] / end * (width - left - 170):.1f},'
                              f'{top + height - s[name] / scale / most * (height - 8):.1f}' for s in samples if name in s)
            colour = colours[i % len(colours)]
            out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>'
                       f'<text x="{width - 160}" y="{top + 14 + 15 * i}" fill="{colour}">{name.split(" ", 1)[1]}</text>')
        out.append(f'<text x="{left}" y="{top + height + 14}">0</text><text x="{width - 210}" y="{top + height + 14}">'
                   f'{end:.0f} s</text>')
    return "\n".join([*out, "</svg>\n"])


def process_sample(pid):
    with open(f"/proc/{pid}/status") as f:
        status = dict(line.split(":", 1) for line in f)
    return {"memory": int(status["VmRSS"].split()[0]) * 1024, "threads": int(status["Threads"]),
            "descriptors": len(os.listdir(f"/proc/{pid}/fd"))}


def soak(a, log):
    import cluster as c
    import load_batch
    import soak_load
    lib = c.lib
    samples, began = [], time.monotonic()
    with c.Cluster(None, 2000, fsync="everysec") as cluster:
        for _ in range(2):
            cluster.add("scheduler", extra=("--image-ttl-ms", "20s"))
        workers = [cluster.add("worker", model=m) for m in ("empty", "scenes")]
        stubs = [cluster.stub(s) for s in cluster.schedulers]
        batch_stubs = [cluster.stub(s, service=load_batch.SERVICE) for s in cluster.schedulers]
        loads = soak_load.start(lib, stubs, batch_stubs, a.clients, a.batches, a.pause_s)
        members = {m.name: m.process.child.pid for m in [*cluster.schedulers, *workers]}
        tick = threading.Event()
        while time.monotonic() - began < a.seconds and not any(x.fault for x in loads):
            s = {"t": round(time.monotonic() - began, 1), "jobs": sum(x.done["jobs"] for x in loads)}
            for name, pid in members.items():
                for kind, value in process_sample(pid).items():
                    s[f"{kind} of {name}"] = value
            s["memory of redis"] = process_sample(cluster.redis.child.pid)["memory"]
            s["keys of redis"] = cluster.ask("DBSIZE") or 0
            s["redis_memory of redis"] = next(int(line.split(":")[1]) for line in cluster.ask("INFO", "memory").splitlines()
                                              if line.startswith("used_memory:"))
            samples.append(s)
            log.write(json.dumps(s) + "\n")
            tick.wait(1)
        done, faults = soak_load.stop(loads, lib)
    return samples, done, faults


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("bin")
    arguments.add_argument("descriptors")
    arguments.add_argument("--seconds", type=float, default=3600)
    arguments.add_argument("--clients", type=int, default=8)
    arguments.add_argument("--batches", type=int, default=1, help="clients that send a batch after the other")
    arguments.add_argument("--pause-s", type=float, default=0.05, help="of a client between its jobs")
    arguments.add_argument("--out", type=pathlib.Path, default=pathlib.Path("soak"))
    a = arguments.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    with open(a.out / "samples.jsonl", "w", 1, encoding="utf-8") as log:
        samples, done, faults = soak(a, log)
    (a.out / "soak.svg").write_text(chart(samples, f"{done['jobs']} jobs in {samples[-1]['t']:.0f} s"))
    problems = faults + judge(samples)
    print(f"{done['jobs']} jobs, {done['batches']} batches, {done['masks']} masks, {done['ends']} ends "
          f"watched, {done['repeated']} calls repeated in {samples[-1]['t']:.0f} s; {a.out}/soak.svg")
    for p in problems:
        print(f"grown or failed: {p}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
