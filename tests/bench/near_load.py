#!/usr/bin/env python3
"""Two workers and clients that ask phrases of images: what `--near-ms` saves, and what it costs.

    near_load.py BIN DESCRIPTORS [--jobs N] [--clients N] [--images M] [--phrases P] [--rounds N] VARIANT...

VARIANT: worker's options in one argument, like "--near-ms 50"; all of them take turns in each round. Each worker has one
thread and room for --kept images. Every job is a phrase that nobody has asked before. With --phrases P a client asks P
phrases of an image, one after the other, and goes on to an image that is new to all; else of one of M images, at random.
Prints medians of the rounds: processor time of both workers with their decoders and of Redis a job, latency, the share
of jobs whose image was encoded."""
import argparse
import os
import pathlib
import random
import statistics
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
import lib_pseg as lib

FEATURE_BYTES = 16 * 16 * 128 * 4  # of one image of the model in the box, on the device
TICK = os.sysconf("SC_CLK_TCK")


def processor_s(pid):
    """Of a process and all that it has started."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    own = (int(fields[11]) + int(fields[12])) / TICK
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(processor_s(c) for c in children)


class Load:
    def __init__(self, a, seed):
        self.a, self.random = a, random.Random(seed)
        self.lock, self.n, self.n_images = threading.Lock(), 0, 0
        self.latency, self.n_encoded = [], 0

    def next_number(self):
        with self.lock:
            self.n += 1
            return self.n

    def image(self):
        with self.lock:
            self.n_images += 1
            return self.n_images if self.a.phrases else self.random.randrange(self.a.images)

    def client(self, stub):
        left, number = 0, 0
        while True:
            n = self.next_number()
            if n > self.a.jobs:
                return
            if left == 0:
                left, number = self.a.phrases or 1, self.image()
            left -= 1
            begin = time.monotonic()
            job = lib.wait(stub, lib.create(stub, lib.png(224, 224, number), [f"the red circle {n}"]).name, 600)
            with self.lock:
                self.latency.append(time.monotonic() - begin)
                self.n_encoded += "encode_image" in [s.stage for s in job.stages]


def measure(a, variant, seed):
    with lib.Cluster() as cluster:
        scheduler = cluster.scheduler("--default-model", "scenes")
        workers = [cluster.worker("scenes", "--threads", 1, "--decoders", 1, "--lease-ms", 60000, "--kept-features",
                                  a.kept * FEATURE_BYTES, *variant.split()) for _ in range(2)]
        pids = [[w.child.pid for w in workers], [cluster.redis.child.pid]]
        load = Load(a, seed)
        before = [sum(map(processor_s, p)) for p in pids]
        threads = [threading.Thread(target=load.client, args=(cluster.stub(scheduler),)) for _ in range(a.clients)]
        begin = time.monotonic()
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        wall = time.monotonic() - begin
        used = [sum(map(processor_s, p)) - b for p, b in zip(pids, before)]
        ms = sorted(1000 * t for t in load.latency)
        return {"worker ms/job": 1000 * used[0] / a.jobs, "redis ms/job": 1000 * used[1] / a.jobs,
                "p50 ms": ms[len(ms) // 2], "p99 ms": ms[len(ms) * 99 // 100], "jobs/s": a.jobs / wall,
                "encoded %": 100 * load.n_encoded / a.jobs}


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("bin")
    p.add_argument("descriptors")
    for name, default in (("jobs", 400), ("clients", 8), ("images", 150), ("phrases", 0), ("kept", 100), ("rounds", 3)):
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("variants", nargs="+")
    a = p.parse_args()
    found = {v: [] for v in a.variants}
    for n in range(a.rounds):
        for v in a.variants:
            found[v].append(measure(a, v, n))
    for v, rounds in found.items():
        print(f"{v:40s}", "  ".join(f"{k} {statistics.median(r[k] for r in rounds):.2f}" for k in rounds[0]), flush=True)


if __name__ == "__main__":
    main()
