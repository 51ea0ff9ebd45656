#!/usr/bin/env python3
"""A queue in parts through the programs: two Redis servers, tenants on either, and one of the servers dies."""
import hashlib

import grpc

import lib_metrics
import lib_pseg as lib
from lib_pseg import pb

BATCHES = "pseg.v1.BatchService"
KEYS = {f"key-of-{i}-{'0' * 20}": f"tenant{i}" for i in range(16)}


class Second:
    """One more Redis in the cluster's folder."""

    def __init__(self, cluster):
        self.cluster = cluster
        (cluster.folder / "second").mkdir()
        self.socket = cluster.folder / "second" / "redis.sock"
        self.start()

    def start(self):
        self.socket.unlink(missing_ok=True)
        self.process = self.cluster._start("redis2", ["redis-server", "--port", 0, "--unixsocket", self.socket, "--dir",
                                                      self.socket.parent, "--appendonly", "yes", "--appendfsync", "no",
                                                      "--save", ""])
        lib.until("the second redis", self.socket.exists)


class Parts(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.second = Second(cluster)
        cls.redis = ("--redis", f"unix:{cluster.socket} unix:{cls.second.socket}")
        keys = cluster.folder / "keys"
        keys.write_text("".join(f"{hashlib.sha256(k.encode()).hexdigest()} {t}\n" for k, t in KEYS.items()))
        cls.scheduler = cluster.scheduler(*cls.redis, "--default-model", "empty", "--keys", keys, "--metrics-listen",
                                          "127.0.0.1:0", "--redis-timeout-ms", "500ms")
        cls.worker = cluster.worker("empty", *cls.redis, "--metrics-listen", "127.0.0.1:0", "--redis-timeout-ms", "500ms")
        cls.jobs, cls.batches = cluster.stub(cls.scheduler), cluster.stub(cls.scheduler, BATCHES)

    def as_tenant(self, key):
        return {"metadata": (("authorization", f"Bearer {key}"),), "timeout": lib.CALL_S}

    def segment(self, key, timeout=lib.CALL_S):
        return self.jobs.Segment(pb.SegmentRequest(job=lib.spec()), **{**self.as_tenant(key), "timeout": timeout})

    def part_of(self, tenant):
        """Where the tenant's index lies."""
        here = self.cluster.redis_cli("EXISTS", f"pseg:{{default}}:index:{tenant}")
        return {"1": 0, "0": 1}[here]

    def test_1_every_tenant_is_served_and_sees_its_own(self):
        parts = set()
        for key, tenant in KEYS.items():
            name = self.segment(key).job.name
            listed = self.jobs.ListJobs(pb.ListJobsRequest(), **self.as_tenant(key)).jobs
            self.assertEqual([j.name for j in listed], [name])
            parts.add(self.part_of(tenant))
        self.assertEqual(parts, {0, 1})
        lib.until("all are counted",
                  lambda: lib_metrics.value(self.scheduler, "pseg_jobs_terminal_total", state="SUCCEEDED") == len(KEYS))
        for process in (self.scheduler, self.worker):
            for part in ("0", "1"):
                self.assertEqual(lib_metrics.value(process, "pseg_redis_up", part=part), 1)

    def test_2_a_watcher_sees_its_own_tenant(self):
        for key in [next(k for k, t in KEYS.items() if self.part_of(t) == part) for part in (0, 1)]:
            watch = self.batches.WatchJobs(pb.WatchJobsRequest(), **self.as_tenant(key))
            token = next(watch).resume_token
            name = self.segment(key).job.name
            for w in (watch, self.batches.WatchJobs(pb.WatchJobsRequest(resume_token=token), **self.as_tenant(key))):
                seen = []
                while not seen or seen[-1][1] != pb.STATE_SUCCEEDED:
                    m = next(w)
                    if m.HasField("event"):
                        seen.append((m.event.name, m.event.state))
                self.assertEqual(seen, [(name, pb.STATE_RUNNING), (name, pb.STATE_SUCCEEDED)])
                w.cancel()

    def test_3_a_dead_redis_costs_its_own_tenants_alone(self):
        self.second.process.kill()
        lib.until("it is told", lambda: lib_metrics.value(self.scheduler, "pseg_redis_up", part="1") == 0)
        lib.until("it is told", lambda: lib_metrics.value(self.worker, "pseg_redis_up", part="1") == 0)
        for key, tenant in KEYS.items():
            if self.part_of(tenant) == 0:
                self.assertEqual(self.segment(key).job.state, pb.STATE_SUCCEEDED)
            else:
                self.assertFails(lib.failure(self.segment, key), "UNAVAILABLE", "BROKER_UNAVAILABLE")
        self.assertEqual(lib_metrics.value(self.scheduler, "pseg_redis_up", part="0"), 1)
        self.second.start()
        for key in KEYS:
            lib.until("all are served again", lambda: self.is_served(key))

    def is_served(self, key):
        try:
            return self.segment(key).job.state == pb.STATE_SUCCEEDED
        except grpc.RpcError as e:
            self.assertEqual(e.code(), grpc.StatusCode.UNAVAILABLE)
            return False

    def test_4_one_of_the_parts_alone_is_refused(self):
        alone = self.cluster.scheduler("--default-model", "empty", "--redis-timeout-ms", "500ms")
        stub = self.cluster.stub(alone)
        said = lib.until("an answer of Redis", lambda: self.refusal(stub))
        self.assertIn('queue "default" lies in 2 parts, --redis names 1', said)

    def refusal(self, stub):
        with self.assertRaises(grpc.RpcError) as caught:
            stub.ListModels(pb.ListModelsRequest(), timeout=lib.CALL_S)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        return caught.exception.details() if "parts" in caught.exception.details() else None


if __name__ == "__main__":
    lib.main()
