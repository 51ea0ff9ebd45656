"""Breaks things by a seed: what, whom, when and for how long is one random sequence, so a run can be made again
(the processes' own timing cannot). It always leaves one worker of each model that can work, for a service without
any recovers nothing."""
import heapq
import os
import pathlib
import random
import threading
import time

import cluster as c
import sentinel
from cluster import lib

# kind: how often, among the others
WEIGHTS = {"worker_kill": 30, "worker_freeze": 20, "worker_term": 8, "scheduler_kill": 12, "scheduler_freeze": 6,
           "scheduler_term": 4, "door_cut": 6, "door_hold": 4, "door_slow": 4, "device_hang": 3, "device_fail": 3,
           "device_kill": 3, "redis_kill": 6, "redis_freeze": 6, "redis_full": 4, "disk_full": 2, "net_cut": 6,
           "net_hold": 4, "net_slow": 4, "functions_flush": 2, "clients_kill": 4}
CLOCK_WEIGHT = 4  # where Redis' clock can be set
DEVICE_S = 300  # within which a worker must have ended whose device broke: far above what its watchdog may wait
# Of a cluster with Sentinels: its servers are broken one at a time, and only when all of them are well.
SENTINEL_WEIGHTS = {**{k: w for k, w in WEIGHTS.items() if k.split("_")[0] in ("worker", "scheduler")},
                    "failover_kill": 40, "failover_freeze": 30, "failover_behind": 40}


class Adversary(threading.Thread):
    """n_faults faults, one every `pause_s` on the average."""

    def __init__(self, cluster, seed, n_faults, pause_s, weights=None):
        super().__init__(daemon=True)
        self.cluster, self.rng, self.n_faults, self.pause_s = cluster, random.Random(seed), n_faults, pause_s
        self.weights = dict(weights or WEIGHTS)
        self.heals, self.count, self.broken, self.fault = [], 0, set(), None
        self.stopping, self.over_all, self.release = threading.Event(), threading.Event(), threading.Event()

    # ---- healing ----

    def later(self, seconds, heal):
        self.count += 1
        heapq.heappush(self.heals, (time.monotonic() + seconds, self.count, heal))

    def heal(self, now):
        while self.heals and self.heals[0][0] <= now:
            heapq.heappop(self.heals)[2]()

    # ---- faults ----

    def tell(self, what, kind, target, **more):
        self.cluster.history.write(what, kind=kind, target=target, **more)

    def may_lose(self, worker):
        return any(w is not worker and w.model == worker.model and not w.line and self.is_well(w)
                   for w in self.cluster.workers)

    @staticmethod
    def is_well(member):
        return member.is_up() and not member.frozen

    def targets(self, kind):
        members = self.cluster.workers if kind == "worker" else self.cluster.schedulers
        well = [m for m in members if self.is_well(m)]
        return [m for m in well if self.may_lose(m)] if kind == "worker" else well if len(well) > 1 else []

    def draw_member(self, kind):
        found = self.targets(kind)
        return self.rng.choice(found) if found else None

    def start_again(self, kind, member):
        def heal():
            if not member.is_up():
                member.start(wait=False)
            member.frozen = False
            self.tell("healed", kind, member.name)
        return heal

    def member_kill(self, kind, what):
        m = self.draw_member(what)
        if not m:
            return False
        m.frozen = True
        m.signal(c.SIGNALS["freeze"])
        held = self.cluster.held_by(m) if what == "worker" else None
        m.signal(c.SIGNALS["kill"])
        self.tell("fault", kind, m.name, held=held or [])
        m.process.child.wait()
        self.later(self.rng.uniform(0, 3), self.start_again(kind, m))
        return True

    def member_freeze(self, kind, what):
        m = self.draw_member(what)
        if not m:
            return False
        m.frozen = True
        m.signal(c.SIGNALS["freeze"])
        held = self.cluster.held_by(m) if what == "worker" else None
        self.tell("fault", kind, m.name, held=held or [])

        def heal():
            m.signal(c.SIGNALS["thaw"])
            m.frozen = False
            self.tell("healed", kind, m.name)
        self.later(self.rng.uniform(0.1, 1.8) * self.cluster.lease_ms / 1000, heal)
        return True

    def member_term(self, kind, what):
        m = self.draw_member(what)
        if not m or not m.ready.exists():  # one that is not up yet holds nothing, and may end by the signal itself
            return False
        m.frozen = True
        self.tell("fault", kind, m.name)
        m.signal(c.SIGNALS["term"])
        begin, process = time.monotonic(), m.process

        def heal():
            status = process.child.poll()
            if status is None and time.monotonic() - begin < 40:
                self.later(0.1, heal)
                return
            self.cluster.history.write("exit", target=m.name, status=status, wanted=True)
            if status is None:
                process.kill()
            self.start_again(kind, m)()
        self.later(0.1, heal)
        return True

    def once(self, what):
        """One fault of Redis, and one of each line, at a time."""
        if what in self.broken:
            return False
        self.broken.add(what)
        return True

    def over(self, kind, what, action):
        def heal():
            action()
            self.broken.discard(what)
            self.tell("healed", kind, what)
        return heal

    def device(self, kind):
        """The next kernel that a worker launches hangs, fails or kills: then it must end by itself. Told as a fault
        when it has struck; a worker that has nothing to do is spared."""
        found = [m for m in self.targets("worker") if m.order and m.ready.exists()]
        if not found:
            return False
        m, spared_at, begun = self.rng.choice(found), time.monotonic() + self.rng.uniform(3, 10), time.monotonic()
        m.frozen = True
        m.give_order(kind.partition("_")[2])

        def heal():
            struck = not m.order.exists()
            if struck and m.order in self.broken:
                self.broken.discard(m.order)
                self.tell("fault", kind, m.name)
            if struck and not m.is_up():
                self.start_again(kind, m)()
            elif not struck and time.monotonic() > spared_at and m.take_order_back():
                self.broken.discard(m.order)
                m.frozen = False
            elif time.monotonic() > begun + DEVICE_S:
                raise AssertionError(f"{kind} of {m.name}: its process has not ended within {DEVICE_S} s")
            else:
                self.later(0.1, heal)
        self.broken.add(m.order)
        self.later(0.1, heal)
        return True

    def redis_kill(self, kind):
        if not self.once("redis"):
            return False
        self.tell("fault", kind, "redis")
        self.cluster.redis.kill()
        self.later(self.rng.uniform(0, 2), self.over(kind, "redis", self.cluster.start_redis))
        return True

    def redis_freeze(self, kind):
        if not self.once("redis"):
            return False
        self.tell("fault", kind, "redis")
        self.cluster.redis.signal(c.SIGNALS["freeze"])
        self.later(self.rng.uniform(0.1, 4),
                   self.over(kind, "redis", lambda: self.cluster.redis.signal(c.SIGNALS["thaw"])))
        return True

    def redis_full(self, kind):
        if not self.once("redis"):
            return False
        self.tell("fault", kind, "redis")
        self.cluster.ask("CONFIG", "SET", "maxmemory", "1mb")

        def empty():
            lib.until("memory", lambda: self.cluster.ask("CONFIG", "SET", "maxmemory", "0") == "OK", 10)
        self.later(self.rng.uniform(0.5, 3), self.over(kind, "redis", empty))
        return True

    def disk_full(self, kind):
        """Redis' log may grow by a few bytes more, which tears a write in two; with fsync at every write Redis
        ends then rather than promise what it cannot keep. It is started on what is there."""
        logs = sorted(pathlib.Path(self.cluster.folder, "appendonlydir").glob("*.incr.aof"), key=os.path.getmtime)
        if not logs or not c.has("prlimit") or not self.once("redis"):
            return False
        self.tell("fault", kind, "redis")
        process = self.cluster.redis
        c.set_limit(process.child.pid, logs[-1].stat().st_size + self.rng.randrange(1, 20000))

        def again():
            process.kill()
            self.cluster.start_redis()
        self.later(self.rng.uniform(0.5, 2), self.over(kind, "redis", again))
        return True

    def functions_flush(self, kind):
        if "redis" in self.broken:
            return False
        self.tell("fault", kind, "redis")
        self.cluster.ask("FUNCTION", "FLUSH")
        return True

    def clients_kill(self, kind):
        if "redis" in self.broken:
            return False
        self.tell("fault", kind, "redis")
        self.cluster.ask("CLIENT", "KILL", "TYPE", "normal")
        return True

    def net(self, kind):
        return self.line(kind, "line", self.cluster.line)

    def door(self, kind):
        """The way of the clients to a scheduler."""
        found = [m for m in self.cluster.schedulers if m.door]
        if not found:
            return False
        member = self.rng.choice(found)
        return self.line(kind, f"door of {member.name}", member.door)

    def line(self, kind, name, line):
        if not self.once(name):
            return False
        self.tell("fault", kind, name)
        {"cut": line.cut, "hold": line.hold,
         "slow": lambda: line.slow(self.rng.uniform(0.005, 0.2))}[kind.partition("_")[2]]()
        self.later(self.rng.uniform(0.1, 4), self.over(kind, name, line.through))
        return True

    def failover(self, kind):
        """The master is killed, and comes back as a replica; or it is frozen, and wakes up as one that knows
        nothing of the other, sometimes before there is another; or it goes on for a while when neither replica
        follows, and dies with the one that has what it wrote meanwhile."""
        lasts = self.rng.uniform(1.5, 6) if kind == "failover_freeze" else self.rng.uniform(0, 3)
        alone_s = self.rng.uniform(0.2, 1.5)
        node = self.cluster.is_whole()
        if not node or not self.once("redis"):
            return False
        self.tell("fault", kind, node.name)
        state = {"away": [node], "served": False, "until": time.monotonic() + lasts, "begun": time.monotonic()}
        if kind == "failover_behind":
            behind, ahead = (n for n in self.cluster.nodes if n is not node)
            state["away"].append(ahead)
            self.cluster.leave_behind(node, behind, ahead)
            self.later(alone_s, lambda: self.survive_behind(kind, behind, state))
            return True
        if kind == "failover_kill":
            node.process.kill()
        else:
            node.process.signal(c.SIGNALS["freeze"])
        self.later(0.1, self.fail_over(kind, state))
        return True

    def survive_behind(self, kind, behind, state):
        for n in state["away"]:
            n.process.kill()
        behind.process.signal(c.SIGNALS["thaw"])
        self.later(0.1, self.fail_over(kind, state))

    def fail_over(self, kind, state):
        """Looks again and again how far the cluster is, until it is whole."""
        name = state["away"][0].name

        def come_back():
            master = self.cluster.named()
            if kind == "failover_freeze":
                state["away"].pop().process.signal(c.SIGNALS["thaw"])
            elif master and master not in state["away"]:
                while state["away"]:
                    state["away"].pop().start_server(master, wait=False)

        def heal():
            now = time.monotonic()
            if state["away"] and now >= state["until"]:
                come_back()
            if not state["served"] and self.cluster.serving(state["away"]):
                self.tell("healed", kind, name)
                state["served"] = True
            if state["served"] and not state["away"] and self.cluster.is_whole():
                self.tell("back", kind, name)
                self.broken.discard("redis")
            elif now - state["begun"] > sentinel.WHOLE_S:
                raise AssertionError(f"{kind} of {name}: no whole cluster within {sentinel.WHOLE_S} s")
            else:
                self.later(0.1, heal)
        return heal

    def clock(self, kind):
        """Redis' clock jumps, for good. Healed when a lease of before is over by either time."""
        if not self.once("clock"):
            return False
        self.tell("fault", kind, "redis")
        self.cluster.jump(self.rng.uniform(-90, 90))
        self.later(self.cluster.lease_ms / 1000, self.over(kind, "clock", lambda: None))
        return True

    def strike(self):
        kind = self.rng.choices(list(self.weights), list(self.weights.values()))[0]
        what, _, how = kind.partition("_")
        if what in ("worker", "scheduler"):
            return getattr(self, f"member_{how}")(kind, what)
        if what in ("net", "door", "device", "failover"):
            return getattr(self, what)(kind)
        return getattr(self, kind)(kind)

    # ---- the thread ----

    def run(self):
        try:
            done = 0
            while done < self.n_faults and not self.stopping.is_set():
                # From now: a heal may take long, and what it held up must not come all at once.
                at = time.monotonic() + self.rng.expovariate(1 / self.pause_s)
                while time.monotonic() < at and not self.stopping.is_set():
                    next_heal = self.heals[0][0] if self.heals else at
                    self.stopping.wait(max(0.001, min(at, next_heal) - time.monotonic()))
                    self.heal(time.monotonic())
                for _ in range(20):
                    if self.strike():
                        done += 1
                        break
            while self.heals:
                time.sleep(max(0, min(0.1, self.heals[0][0] - time.monotonic())))
                self.heal(time.monotonic())
        except BaseException as e:  # noqa: BLE001  (told by the main thread)
            self.fault = e
        self.over_all.set()
        self.release.wait()  # the processes that a thread has started die with it (setpriv --pdeathsig)
