#!/usr/bin/env python3
"""The service beside the bare engine, in turn on the same machine.

    python3 tests/bench/service_engine.py --bin build/release/bin --model scenes --rounds 5
    python3 tests/bench/service_engine.py --bin build/release/bin --model random:dinov2-base --rounds 3

The engine is `pseg bench engine`: image, phrase and mask with pixels in memory. The service is Redis,
scheduler and worker as they come, on sockets of their own in a temporary folder, under `pseg bench service`:

    saturated   several clients, every image another      jobs/s, beside the engine's
    idle        one client, every image another           p50, beside the engine's time of a job
    known       one client, the same image                p50, beside the engine's phrase and decoder
    named       one client, the same image, by digest     the same; the image is not sent again

Medians over the rounds. For each process the processor time a job, which neighbours on the machine disturb
less than the clock. --bin may be given again: then the services take turns. Needs Python alone."""
import argparse
import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import tempfile
import threading
import time

TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
START_S = 300


def children(pid):
    out = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            out += children(int(child))
    return out


def cpu_ms(pid):
    """Of a process and what it has started."""
    total = 0
    for p in children(pid):
        try:
            fields = pathlib.Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:  # it has just ended, and counts as its parent's
            continue
        total += int(fields[11]) + int(fields[12])
    return total * TICK_MS


class Service:
    def __init__(self, folder):
        self.folder, self.all = folder, {}
        folder.mkdir()

    def run(self, bin_, model, options, redis_options=()):
        self.bin, folder = bin_, self.folder
        redis, ready = f"unix:{folder}/r", folder / "ready"
        self.start("redis", ["redis-server", "--port", "0", "--unixsocket", f"{folder}/r", "--save", "", "--dir",
                             folder, "--maxmemory-policy", "noeviction", *redis_options], folder)
        self.wait(lambda: (folder / "r").exists())
        self.start("worker", [bin_ / "pseg-worker", "--redis", redis, "--model", model, "--ready-file", ready,
                              *options], folder)
        self.start("scheduler", [bin_ / "pseg-scheduler", "--redis", redis, "--listen", f"unix:{folder}/s",
                                 "--default-model", model.replace("random:", "random-"), "--ready-file",
                                 folder / "s.ready"], folder)
        self.wait(lambda: ready.exists() and (folder / "s.ready").exists())
        self.server = f"unix:{folder}/s"

    def start(self, name, args, folder):
        with open(folder / f"{name}.log", "w") as log:
            self.all[name] = subprocess.Popen([str(a) for a in args], stdout=log, stderr=log)

    def wait(self, check):
        end, tick = time.monotonic() + START_S, threading.Event()
        while not check():
            for name, p in self.all.items():
                assert p.poll() is None, f"{name} ended with {p.returncode}"
            assert time.monotonic() < end, "not ready in time"
            tick.wait(0.01)

    def load(self, image, args):
        before = {name: cpu_ms(p.pid) for name, p in self.all.items()}
        out = bench(self.bin, ["service", "--server", self.server, "--image", image, *args])
        assert out["failed"] == 0, out
        jobs = out["jobs"]
        return {"jobs_per_s": out["jobs_per_s"], "p50_ms": out["latency_ms"]["p50"],
                "cpu_ms": {name: (cpu_ms(p.pid) - before[name]) / jobs for name, p in self.all.items()}}

    def stop(self):
        for p in reversed(self.all.values()):
            p.send_signal(signal.SIGTERM)
        for p in self.all.values():
            p.wait()


def bench(bin_, args):
    done = subprocess.run([bin_ / "pseg-bench", *args, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def engine(bin_, model, seconds, options):
    what = ["--preset", model[7:]] if model.startswith("random:") else ["--model", f"deploy/models/{model}"]
    out = bench(bin_, ["engine", *what, "--batch", "1", "--seconds", str(seconds), *options])
    phrase = out["phrases"][0]
    return {"jobs_per_s": out["job"]["jobs_per_s"], "ms": out["job"]["ms"], "cpu_ms": out["job"]["cpu_ms"],
            "images_per_s": out["encode_image"][0]["images_per_s"],
            "phrase_ms": phrase["encode_text_ms"] + phrase["decode_ms"], "decode_ms": phrase["decode_ms"]}


def median(rows, *path):
    values = []
    for row in rows:
        for step in path:
            row = row[step]
        values.append(row)
    return statistics.median(values)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--bin", type=pathlib.Path, action="append", required=True)
    a.add_argument("--model", default="scenes")
    a.add_argument("--image", default="docs/example/scene.png")
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--seconds", type=float, default=3)
    a.add_argument("--clients", type=int, default=8)
    a.add_argument("--precision", default="fp32")
    a.add_argument("--worker", default="", help="options of the worker, one string")
    a = a.parse_args()
    precision = ["--precision", a.precision]
    found = {b: [] for b in a.bin}
    bare = []
    loads = {"saturated": ["--distinct", "--clients", str(a.clients)], "idle": ["--distinct", "--clients", "1"],
             "known": ["--clients", "1"], "named": ["--by-digest", "--clients", "1"]}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
        services = {}
        for i, b in enumerate(a.bin):
            services[b] = Service(pathlib.Path(folder) / str(i))
            ends.callback(services[b].stop)
            services[b].run(b, a.model, precision + a.worker.split())
        for _ in range(a.rounds):
            bare.append(engine(a.bin[0], a.model, a.seconds, precision))
            for b, s in services.items():
                found[b].append({k: s.load(a.image, [*v, "--seconds", str(a.seconds), "--warm-s", "0.5"])
                                 for k, v in loads.items()})
    e = {k: median(bare, k) for k in bare[0]}
    print(f"engine: job {e['ms']:.2f} ms ({e['cpu_ms']:.2f} of processors), {e['jobs_per_s']:.2f} jobs/s, "
          f"{e['images_per_s']:.2f} images/s; phrase {e['phrase_ms']:.2f} ms, of it decoder {e['decode_ms']:.2f}")
    for b, rows in found.items():
        print(b)
        for k in loads:
            cpu = ", ".join(f"{n} {median(rows, k, 'cpu_ms', n):.2f}" for n in rows[0][k]["cpu_ms"])
            print(f"  {k:9} {median(rows, k, 'jobs_per_s'):8.2f} jobs/s  p50 {median(rows, k, 'p50_ms'):7.2f} ms  "
                  f"processors, ms a job: {cpu}")
        print(f"  saturated: {100 * median(rows, 'saturated', 'jobs_per_s') / e['jobs_per_s']:.1f} % of the engine's "
              f"jobs/s; idle: {median(rows, 'idle', 'p50_ms') - e['ms']:+.2f} ms; known: "
              f"{median(rows, 'known', 'p50_ms') - e['phrase_ms']:+.2f}, named: "
              f"{median(rows, 'named', 'p50_ms') - e['phrase_ms']:+.2f} ms beside phrase and decoder")


if __name__ == "__main__":
    main()
