#!/usr/bin/env python3
"""Empty jobs a second of the queue beside BullMQ (Node.js) and asynq (Go), each on a Redis of its own with the same
settings, in turn, on the same machine.

    mkdir peers; cp -r tests/bench/queue_peers/* peers; (cd peers; npm init -y; npm install bullmq@5)
    (cd peers/asynq; go mod init peer; go get github.com/hibiken/asynq@v0.26.0; go build -o ../asynq-peer .)
    python3 tests/bench/queue_peer.py --bench build/release/tests/test_queue_bench --peers peers --rounds 3

Prints a table of medians, and the ratio to the best peer. A job of PSEG's queue is more than a peer's: an image of its
own is stored with it and a result is published, its request id is remembered, tenants take turns."""
import argparse
import json
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time


class Redis:
    def __init__(self, fsync):
        self.folder = tempfile.mkdtemp(prefix="pseg-peer-")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.child = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder,
             "--appendonly", "no" if fsync == "off" else "yes", "--appendfsync", "no" if fsync == "off" else fsync],
            stdout=subprocess.DEVNULL)
        end, tick = time.monotonic() + 20, threading.Event()
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < end, "redis does not answer"
                tick.wait(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def peer(command, o, fsync):
    """(added a second, done a second)"""
    with Redis(fsync) as r:
        out = subprocess.run([*command, str(r.port), str(o.jobs), str(o.concurrency)], check=True, text=True,
                             stdout=subprocess.PIPE).stdout
    d = json.loads(out.splitlines()[-1])
    return o.jobs / d["add_s"], o.jobs / d["all_s"]


def own(o, fsync, *more):
    out = subprocess.run([o.bench, "--fsync", fsync, "--seconds", str(o.seconds), *more], check=True, text=True,
                         stdout=subprocess.PIPE).stdout
    done, added = re.search(r"([\d.]+) jobs/s completed, ([\d.]+) submitted", out).groups()
    return float(added), float(done)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--bench", required=True)
    p.add_argument("--peers", required=True, type=pathlib.Path)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--jobs", type=int, default=20000, help="of a peer")
    p.add_argument("--concurrency", type=int, default=50, help="of a peer's worker")
    p.add_argument("--seconds", type=int, default=5, help="of PSEG's load")
    o = p.parse_args()
    contenders = {
        "PSEG": lambda f: own(o, f),
        "PSEG, items of a batch": lambda f: own(o, f, "--items", "1"),
        "PSEG, submits alone": lambda f: own(o, f, "--items", "1", "--same-image", "1", "--workers", "0"),
        "BullMQ": lambda f: peer(["node", o.peers / "bullmq.mjs"], o, f),
        "asynq": lambda f: peer([o.peers / "asynq-peer"], o, f),
    }
    for fsync in ("off", "everysec"):
        found = {name: [] for name in contenders}
        for _ in range(o.rounds):
            for name, run in contenders.items():
                found[name].append(run(fsync))
        print(f"appendfsync {fsync}: medians of {o.rounds} rounds in turn")
        done = {name: statistics.median(x[1] for x in runs) for name, runs in found.items()}
        best = max(done["BullMQ"], done["asynq"])
        for name, runs in found.items():
            added = statistics.median(x[0] for x in runs)
            print(f"  {name:24} {added:9.0f} submitted/s {done[name]:9.0f} done/s {done[name] / best:6.2f} of the best peer")


if __name__ == "__main__":
    main()
