#!/usr/bin/env python3
"""Jobs, faults, and whether every promise was kept.

    fault_run.py BIN DESCRIPTORS [--jobs N] [--faults N] [--seed S] [--out FOLDER] ...

Starts a Redis (with --sentinel a master, two replicas and three Sentinels), schedulers and workers, lets clients
submit jobs while an adversary breaks what it can, waits for the end of every job, and gives the history to
checker.py. FOLDER gets history.jsonl, report.json and report.txt. Exit status 0: every promise was kept; 1: not; 77: a tool is missing."""
import argparse
import hashlib
import json
import pathlib
import sys
import tempfile
import threading
import time

import adversary
import checker
import cluster as c
import history
import load
import load_batch
import sentinel
import watcher
from cluster import lib
from lib_pseg import pb
import grpc

NAMES = {0: "UNSPECIFIED", 1: "QUEUED", 2: "RUNNING", 3: "SUCCEEDED", 4: "FAILED", 5: "CANCELLED", 6: "EXPIRED"}


def options():
    p = argparse.ArgumentParser()
    p.add_argument("bin")
    p.add_argument("descriptors")
    p.add_argument("--jobs", type=int, default=3000)
    p.add_argument("--faults", type=int, default=25)
    p.add_argument("--pause-s", type=float, default=1.0, help="between two faults, on the average")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--clients", type=int, default=4)
    p.add_argument("--batches", type=int, default=2, help="clients that send a batch each, besides")
    p.add_argument("--batch-jobs", type=int, default=0, help="of each batch; default: a tenth of --jobs")
    p.add_argument("--tenants", type=int, default=3)
    p.add_argument("--schedulers", type=int, default=2)
    p.add_argument("--workers", type=int, default=4)
    p.add_argument("--embedded", type=int, default=0, help="workers of the model that is built in, besides")
    p.add_argument("--broken-cl", default="", help="the library of broken_cl.c: devices of these workers break, too")
    p.add_argument("--embedded-share", type=float, default=0.02, help="of the jobs, for them")
    p.add_argument("--lease-ms", type=int, default=2000)
    p.add_argument("--scan-s", type=float, default=2.0)
    p.add_argument("--slack-s", type=float, default=3.0)
    p.add_argument("--fsync", default="", help="default: always; with --sentinel everysec")
    p.add_argument("--sentinel", action="store_true", help="a master, two replicas and three Sentinels, and fail-overs")
    p.add_argument("--replicas", type=int, default=sentinel.SentinelCluster.replicas, help="of the schedulers, with "
                   "--sentinel; with fewer than all of them a promised job may be lost")
    p.add_argument("--rate", type=float, default=-1, help="jobs a second of all clients but for the batches, "
                   "which take as long; 0: as fast as they go; default: so that jobs and faults take equally long")
    p.add_argument("--only", default="", help="kinds of faults, with commas; default: all")
    p.add_argument("--clock", default="", help="the library of tests/support/clock_jump.c: Redis' clock jumps, too; not with --sentinel")
    p.add_argument("--out", default="")
    o = p.parse_args()
    o.fsync = o.fsync or ("everysec" if o.sentinel else "always")
    o.batch_jobs = o.batch_jobs or o.jobs // 10
    if o.sentinel and o.clock:
        p.error("--clock is of a single Redis, not of --sentinel")
    return o


def weights_of(o):
    only = [k for k in o.only.split(",") if k]
    known = adversary.SENTINEL_WEIGHTS if o.sentinel else adversary.WEIGHTS
    if o.clock:
        known = {**known, "clock": adversary.CLOCK_WEIGHT}
    return {k: w for k, w in known.items() if not only or k in only}


def start_load(o, cluster, keys):
    models = ["empty"] * 100
    # By default each client's jobs last as long as the faults.
    seconds = o.faults * o.pause_s if o.rate < 0 else o.jobs / o.rate if o.rate else 0

    def rate(n_jobs):
        return n_jobs / seconds if seconds else 0
    if o.embedded:
        n = max(1, round(o.embedded_share * 100))
        models[:n] = ["scenes"] * n
    kinds = load.Kinds()
    clients = []
    for i in range(o.clients):
        tenant = f"tenant{i % o.tenants}"
        n = o.jobs // o.clients
        clients.append(load.Client(cluster, f"c{i}", tenant, keys[tenant], n, o.seed * 1000 + i, models, kinds, rate(n)))
    for i in range(o.batches):
        tenant = f"tenant{i % o.tenants}"
        clients.append(load_batch.BatchClient(cluster, f"b{i}", tenant, keys[tenant], o.batch_jobs, o.seed * 2000 + i,
                                              models, kinds, rate(o.batch_jobs)))
    for one in clients:
        one.start()
    return clients


def wait_for_load(clients, breaker):
    while any(x.is_alive() for x in clients) or not breaker.over_all.is_set():
        for x in (*clients, breaker):
            if x.fault:
                raise x.fault
        breaker.over_all.wait(0.1)
        for x in clients:
            x.join(0.1)
    for x in (*clients, breaker):
        if x.fault:
            raise x.fault


def acknowledged(path):
    return set({r["rid"]: r["job"] for r in history.records(path) if r["e"] == "ack"}.values())


def page_of(stub, token, key):
    """None while Redis is still loading what the last fault made it forget."""
    try:
        return stub.ListJobs(pb.ListJobsRequest(page_size=200, page_token=token), timeout=lib.CALL_S,
                             metadata=(("authorization", f"Bearer {key}"),))
    except grpc.RpcError as e:
        if e.code() != grpc.StatusCode.UNAVAILABLE:
            raise
        return None


def read_back(cluster, tenant, key):
    """Every job of a tenant, as a scheduler lists them."""
    stub, token = cluster.stub(cluster.schedulers[0]), ""
    while True:
        page = lib.until("a page of jobs", lambda t=token: page_of(stub, t, key))
        for j in page.jobs:
            reason = ""
            if j.error.details:
                info = lib.message("google.rpc.ErrorInfo").FromString(j.error.details[0].value)
                reason = info.reason
            cluster.history.write("final", job=j.name[5:], state=NAMES[j.state], attempts=j.attempts, tenant=tenant,
                                  reason=reason, message=j.error.message[:300],
                                  **({"item": j.labels["item"]} if "item" in j.labels else {}))
        token = page.next_page_token
        if not token:
            return


EXPIRE = """local found = redis.call('SCAN', ARGV[1], 'COUNT', 1000)
for _, key in ipairs(found[2]) do if redis.call('PTTL', key) > 0 then redis.call('PEXPIRE', key, 1) end end
return found[1]"""


def let_expire(r):
    """Whatever has an expiry gets one of a millisecond."""
    cursor = "0"
    while True:
        cursor = r("EVAL", EXPIRE, 0, cursor)
        if cursor == "0":
            return


def left_keys(cluster):
    """What is in Redis once all times to live have passed. They are made to pass by hand: whatever has an expiry
    gets one of a millisecond, and in the sorted sets of times everything is due; then sweeps do the rest. What has
    no end written down anywhere is found by this and by nothing else."""
    r = cluster.connect(timeout_s=60)
    r("CONFIG", "SET", "appendfsync", "no")
    if cluster.clock:  # a batch that ended before its clock was set back goes when that time has come again
        cluster.jump(cluster.most_ahead_s - cluster.ahead_s + 1)
    timed = ("ended", "images", "workers", "models", "quarantine", "tenant_rate", "batch_ends")
    for key in r("KEYS", c.PREFIX + "batch:*"):
        r("HSET", key, "ttl", 1)
    let_expire(r)
    for name in timed:
        r("ZUNIONSTORE", c.PREFIX + name, 1, c.PREFIX + name, "WEIGHTS", 0)  # due since 1970
    time.sleep(0.01)
    before = None
    while True:
        r("FCALL", "pseg1_sweep", 1, c.PREFIX, 3, 1000, 10000, 1)
        sizes = [r("DBSIZE"), *(r("ZCARD", c.PREFIX + n) for n in timed)]
        if sizes == before:
            break
        before = sizes
    now = sorted(r("KEYS", "*"))
    stay = {c.PREFIX + "count", c.PREFIX + "events"}
    left = [k for k in now if k not in stay]
    if c.PREFIX + "bytes" in left and r("GET", c.PREFIX + "bytes") == "0":
        left.remove(c.PREFIX + "bytes")
    r.close()
    return left


def run(o, out):
    log = history.Writer(out / "history.jsonl")
    log.write("begin", seed=o.seed, lease_s=o.lease_ms / 1000, scan_s=o.scan_s, slack_s=o.slack_s, lag_s=sentinel.LAG_S,
              options=vars(o))
    keys = {f"tenant{i}": f"key of tenant {i}, seed {o.seed}" for i in range(o.tenants)}
    kind = sentinel.SentinelCluster if o.sentinel else c.Cluster
    cluster = kind(log, o.lease_ms, o.fsync)
    if o.clock:
        cluster.use_clock(o.clock)
    with cluster:
        cluster.replicas = o.replicas
        file = cluster.folder / "keys"
        file.write_text("".join(f"{hashlib.sha256(k.encode()).hexdigest()} {t}\n" for t, k in keys.items()))
        for i in range(o.schedulers):
            cluster.add("scheduler", file, through_line=i % 2 == 1,
                        extra=("--durability", "replicated", "--replicas", o.replicas) if o.sentinel else ())
        for i in range(o.workers):
            cluster.add("worker", through_line=i % 2 == 1)
        for i in range(o.embedded):
            cluster.add("worker", model="scenes", through_line=i % 2 == 1, broken_cl=o.broken_cl,
                        extra=("--watchdog-ms", "20s") if o.broken_cl else ())
        watch = watcher.Watcher(cluster)
        watch.start()
        clients = start_load(o, cluster, keys)
        breaker = adversary.Adversary(cluster, o.seed, o.faults, o.pause_s, weights_of(o))
        breaker.start()
        wait_for_load(clients, breaker)
        for m in (*cluster.schedulers, *cluster.workers):
            m.process.wait_ready()
        jobs = acknowledged(out / "history.jsonl")
        bound = time.monotonic() + 6 * (o.lease_ms / 1000 + o.scan_s + o.slack_s) + 60
        while not watch.all_ended(jobs) and not watch.fault and time.monotonic() < bound:
            time.sleep(0.05)
        for tenant, key in keys.items():
            read_back(cluster, tenant, key)
        for m in (*cluster.workers, *cluster.schedulers):
            log.write("exit", target=m.name, status=m.process.stop(40), wanted=True)
        watch.stopping = True
        watch.join()
        if watch.fault:
            raise watch.fault
        for key in left_keys(cluster):
            log.write("left", key=key)
        log.write("end")
        log.close()
        report = checker.check(history.records(out / "history.jsonl"))
        if report.violations:
            (out / "logs").mkdir(exist_ok=True)
            for p in {p.path for p in cluster.processes}:
                (out / "logs" / p.name).write_bytes(p.read_bytes())
    return report


def main():
    o = options()
    out = pathlib.Path(o.out or tempfile.mkdtemp(prefix="pseg-fault-"))
    out.mkdir(parents=True, exist_ok=True)
    try:
        report = run(o, out)
    finally:
        alive = [t.name for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
        if alive:
            print(f"threads that are left: {alive}", file=sys.stderr)
    text = f"seed {o.seed}, history {out}\n{report.as_text()}"
    print(text)
    (out / "report.txt").write_text(text + "\n", encoding="utf-8")
    (out / "report.json").write_text(json.dumps({"options": vars(o), **report.as_dict()}, indent=1), encoding="utf-8")
    sys.exit(1 if report.violations else 0)


if __name__ == "__main__":
    main()
