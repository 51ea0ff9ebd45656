#!/usr/bin/env python3
"""How jobs a second grow with schedulers, workers, parts of the queue and processors, beyond the machine at hand.

    python3 tests/bench/scale_sim.py --bin build/release/bin --image docs/example/scene.png
    python3 tests/bench/scale_sim.py --costs costs.json        # as --save wrote them

First the costs: one of each process runs the empty model under `pseg bench service`, and what each of them takes
of processor time a job is read from /proc. Then a simulation of a closed loop: each of N clients sends a job, which
goes to a scheduler, to the part of its tenant in Redis, to a worker, back to Redis and through the scheduler to the
client, and each step takes its cost of a process that does one thing at a time (a scheduler: as many as it has
loops) and of one of the machine's processors. Processors, one or a few machines', are first come first served.

What is simulated, then: waiting for processes and processors, nothing else. What is not: the network (--hop-us for
each message), memory, the disk, that calls of many jobs cost less a job than of one (costs are of a service that
is busy, which has that), and the uneven luck of tenants' parts. With as many processors as were measured on it
must find what was measured: it says both. Needs Python alone."""
import argparse
import heapq
import itertools
import json
import os
import pathlib
import random
import resource
import statistics
import tempfile

import service_engine

STEPS = (("client", 0.5), ("scheduler", 0.6), ("redis", 0.35), ("redis", 0.3), ("worker", 1.0), ("redis", 0.35),
         ("scheduler", 0.4), ("client", 0.5))  # of a job: who, and which share of its cost, which is assumed


class Station:
    """A process: so many things at once, the rest waits."""

    def __init__(self, width):
        self.free, self.waiting = width, []


class Simulation:
    """Of jobs in a closed loop. costs: microseconds a job by kind of process; processors None: as many as wanted."""

    def __init__(self, costs, schedulers, workers, parts, clients, processors, hop_us=0, loops=2, seed=1):
        self.costs, self.hop, self.now, self.events, self.order = costs, hop_us, 0.0, [], itertools.count()
        self.random = random.Random(seed)
        self.all = {"client": [Station(1) for _ in range(clients)],
                    "scheduler": [Station(loops) for _ in range(schedulers)],
                    "redis": [Station(1) for _ in range(parts)],
                    "worker": [Station(1) for _ in range(workers)]}
        self.processors = Station(processors or 10**9)
        self.times = []

    def at(self, delay, what, *args):
        heapq.heappush(self.events, (self.now + delay, next(self.order), what, args))

    def take(self, station, then):
        if station.free:
            station.free -= 1
            then()
        else:
            station.waiting.append(then)

    def give(self, station):
        if station.waiting:
            station.waiting.pop(0)()
        else:
            station.free += 1

    def begin(self, client):
        job = {"client": client, "scheduler": client % len(self.all["scheduler"]),
               "redis": client % len(self.all["redis"]), "worker": self.random.randrange(len(self.all["worker"])),
               "begin": self.now}
        self.step(job, 0)

    def step(self, job, n):
        if n == len(STEPS):
            self.times.append((self.now, self.now - job["begin"]))
            self.begin(job["client"])
            return
        kind, share = STEPS[n]
        station = self.all[kind][job[kind]]
        # Work is not all alike: a third of the cost is luck.
        cost = self.costs[kind] * share * self.random.uniform(2 / 3, 4 / 3)

        def run():
            self.take(self.processors, lambda: self.at(cost, ended))

        def ended():
            self.give(self.processors)
            self.give(station)
            self.at(self.hop, self.step, job, n + 1)

        self.take(station, run)

    def run(self, seconds):
        """Jobs a second and their median and 99th percentile in ms, without the first fifth of the time."""
        for client in range(len(self.all["client"])):
            self.begin(client)
        end = seconds * 1e6
        while self.events and self.now < end:
            self.now, _, what, args = heapq.heappop(self.events)
            what(*args)
        told = sorted(t for at, t in self.times if at > end / 5)
        return len(told) / (seconds * 0.8), told[len(told) // 2] / 1e3, told[len(told) * 99 // 100] / 1e3


def measure(bin_, image, jobs, clients, rounds):
    """Costs of one of each process, and the jobs a second that were found with them."""
    costs, rates = {}, []
    with tempfile.TemporaryDirectory(prefix="pseg-scale-") as folder:
        service = service_engine.Service(pathlib.Path(folder) / "s")
        try:
            service.run(bin_, "empty", [])
            for _ in range(rounds):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                found = service.load(image, ["--jobs", jobs, "--clients", clients])
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                client = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                found["cpu_ms"]["client"] = client * 1000 / int(jobs)
                rates.append(found["jobs_per_s"])
                for name, ms in found["cpu_ms"].items():
                    costs.setdefault(name, []).append(ms * 1000)
        finally:
            service.stop()
    return {name: statistics.median(us) for name, us in costs.items()}, statistics.median(rates)


def table(costs, hop_us, loops):
    """Enough workers and processors: rows are schedulers, columns parts."""
    parts, schedulers = (1, 2, 4, 8), (1, 2, 4, 8, 16)
    print("\n| schedulers \\ parts | " + " | ".join(map(str, parts)) + " |\n|" + "---|" * (len(parts) + 1))
    for s in schedulers:
        rates = []
        for p in parts:
            rate, _, p99 = Simulation(costs, s, 4 * s + 4 * p, p, 64 * max(s, p), None, hop_us, loops).run(1.0)
            rates.append(f"{rate:,.0f} ({p99:.0f} ms)")
        print(f"| {s} | " + " | ".join(rates) + " |", flush=True)


def workers(costs, hop_us, loops):
    print("\n| workers, 8 schedulers, 4 parts | jobs/s |\n|---|---|")
    for w in (1, 2, 4, 8, 16, 32):
        print(f"| {w} | {Simulation(costs, 8, w, 4, 512, None, hop_us, loops).run(1.0)[0]:,.0f} |", flush=True)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--bin", type=pathlib.Path)
    a.add_argument("--image", default="docs/example/scene.png")
    a.add_argument("--jobs", default="3000")
    a.add_argument("--clients", default="64")
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--costs", type=pathlib.Path, help="what --save wrote, instead of measuring")
    a.add_argument("--save", type=pathlib.Path)
    a.add_argument("--hop-us", type=float, default=50)
    a.add_argument("--loops", type=int, default=2, help="of a scheduler")
    a = a.parse_args()
    if a.costs:
        found = json.loads(a.costs.read_text())
    else:
        costs, rate = measure(a.bin, a.image, a.jobs, a.clients, a.rounds)
        found = {"costs_us": costs, "jobs_per_s": rate, "processors": len(os.sched_getaffinity(0)), "clients": int(a.clients)}
    if a.save:
        a.save.write_text(json.dumps(found, indent=1) + "\n")
    costs = found["costs_us"]
    print("processor time a job, us: " + ", ".join(f"{k} {v:.0f}" for k, v in costs.items()))
    rate, p50, _ = Simulation(costs, 1, 1, 1, found["clients"], found["processors"], a.hop_us, a.loops).run(2.0)
    print(f"one of each on {found['processors']} processors: measured {found['jobs_per_s']:.0f} jobs/s, "
          f"simulated {rate:.0f} (p50 {p50:.1f} ms)")
    table(costs, a.hop_us, a.loops)
    workers(costs, a.hop_us, a.loops)


if __name__ == "__main__":
    main()
