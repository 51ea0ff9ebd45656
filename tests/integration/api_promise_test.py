#!/usr/bin/env python3
"""What is promised with a submit: durability levels that Redis can or cannot give, limits of tenants, priorities."""
import signal
import socket

import grpc

import lib_pseg as lib
from lib_pseg import pb

MEMORY, FSYNC, REPLICATED = 1, 2, 3


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Durability(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.worker = cluster.worker("empty")

    def scheduler(self, *args):
        return self.cluster.stub(self.cluster.scheduler("--default-model", "empty", "--redis-timeout-ms", "1s", *args))

    def refusal(self, stub, text):
        """Not lowered in silence: every call says what is missing."""
        def check():
            found = lib.failure(stub.ListJobs, pb.ListJobsRequest())
            self.assertFails(found, "UNAVAILABLE", "BROKER_UNAVAILABLE")
            return text in found.message
        lib.until(text, check)

    def works(self, stub):
        def check():
            try:
                return lib.create(stub)
            except grpc.RpcError:
                return None
        return lib.until("a job", check)

    def test_memory(self):
        self.assertEqual(lib.create(self.scheduler()).durability, MEMORY)

    def test_no_server_that_throws_keys_away(self):
        for policy in ("allkeys-lru", "volatile-ttl"):
            self.cluster.redis_cli("config", "set", "maxmemory-policy", policy)
            try:
                stub = self.scheduler()
                self.refusal(stub, f"redis may throw jobs away: maxmemory-policy is {policy}, it must be noeviction")
            finally:
                self.cluster.redis_cli("config", "set", "maxmemory-policy", "noeviction")
            self.works(stub)

    def test_fsync(self):
        stub = self.scheduler("--durability", "fsync")
        self.refusal(stub, "durability fsync needs appendonly yes and appendfsync always, redis has yes and no")
        self.cluster.redis_cli("config", "set", "appendfsync", "always")
        job = self.works(stub)
        self.assertEqual(job.durability, FSYNC)
        self.assertEqual(lib.wait(stub, job.name).state, pb.STATE_SUCCEEDED)

    def test_replicated(self):
        stub = self.scheduler("--durability", "replicated")
        batches = self.cluster.stub(self.cluster.processes[-1], "pseg.v1.BatchService")
        patient = self.cluster.stub(self.cluster.scheduler("--default-model", "empty", "--redis-timeout-ms", "60s",
                                                           "--durability", "replicated"))
        self.refusal(stub, "durability replicated needs 1 replicas, redis has 0")
        port, own = free_port(), free_port()
        self.assertEqual(self.cluster.redis_cli("config", "set", "port", port), "OK")
        folder = self.cluster.folder / "replica"
        folder.mkdir()
        replica = self.cluster._start("replica", ["redis-server", "--port", own, "--bind", "127.0.0.1", "--dir", folder,
                                                  "--save", "", "--replicaof", "127.0.0.1", port])
        job = self.works(stub)
        self.assertEqual(job.durability, REPLICATED)
        self.works(patient)
        batch = batches.CreateBatch(pb.CreateBatchRequest(), timeout=lib.CALL_S).name
        # A replica that is frozen has nothing: the job is stored, but not promised.
        replica.signal(signal.SIGSTOP)
        found = lib.failure(stub.CreateJob, pb.CreateJobRequest(request_id="again", job=lib.spec()))
        self.assertFails(found, "UNAVAILABLE", "BROKER_UNAVAILABLE")
        self.assertIn("stored, but only 0 of 1 replicas have it; repeating is safe", found.message)
        # A repeat is not promised either, until the replica has caught up.
        found = lib.failure(stub.CreateJob, pb.CreateJobRequest(request_id="again", job=lib.spec()))
        self.assertFails(found, "UNAVAILABLE", "BROKER_UNAVAILABLE")
        # A result before the promise is none yet, be it there.
        found = lib.failure(stub.Segment, pb.SegmentRequest(job=lib.spec()))
        self.assertFails(found, "UNAVAILABLE", "BROKER_UNAVAILABLE")
        ended = self.n_succeeded()
        early = patient.Segment.future(pb.SegmentRequest(job=lib.spec()), timeout=lib.START_S)
        lib.until("its end", lambda: self.n_succeeded() > ended)
        self.assertFalse(early.done())
        # The same goes for an item of a batch, and for its seal.
        header = pb.SubmitJobsRequest(header=pb.SubmitHeader(batch=batch))
        item = pb.SubmitJobsRequest(item=pb.BatchItem(seq=1, job=lib.spec()))
        seal = pb.SubmitJobsRequest(seal=pb.SubmitSeal())
        for part in (item, seal):
            found = lib.failure(batches.SubmitJobs, iter([header, part]))
            self.assertFails(found, "UNAVAILABLE", "BROKER_UNAVAILABLE")
            self.assertIn("stored, but only 0 of 1 replicas have it", found.message)
        replica.signal(signal.SIGCONT)
        self.assertEqual(early.result().job.state, pb.STATE_SUCCEEDED)
        self.assertEqual(len(early.result().masks), 1)

        def sealed():
            try:
                return list(batches.SubmitJobs(iter([header, item, seal]), timeout=lib.CALL_S))[-1]
            except grpc.RpcError:
                return None
        last = lib.until("the seal", sealed)
        self.assertEqual((last.next_seq, last.sealed), (2, True))
        job = lib.until("the repeat", lambda: self.works_again(stub))
        self.assertEqual(lib.wait(stub, job.name).state, pb.STATE_SUCCEEDED)

    def n_succeeded(self):
        return int(self.cluster.redis_cli("HGET", "pseg:{default}:count", "SUCCEEDED"))

    @staticmethod
    def works_again(stub):
        try:
            return lib.create(stub, request_id="again")
        except grpc.RpcError:
            return None


class Limits(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.file = cluster.folder / "tenants"
        cls.file.write_text("# limits\ndefault jobs=2 weight=3\n* rate=1 burst=1\n")
        cls.stub = cluster.stub(cluster.scheduler("--default-model", "empty", "--tenants", cls.file))

    def test_limits_are_read_again(self):
        for _ in range(2):
            lib.create(self.stub)
        found = lib.failure(self.stub.CreateJob, pb.CreateJobRequest(job=lib.spec()))
        self.assertFails(found, "RESOURCE_EXHAUSTED", "TENANT_LIMIT")
        self.assertIsNotNone(found.retry_s)
        self.file.write_text("default jobs=nonsense\n")
        lib.until("the complaint", lambda: "stay in force" in self.cluster.processes[-1].log())
        self.file.write_text("default rate=1 burst=2\n")
        lib.until("a job", self.submit)
        lib.until("the rate", lambda: not self.submit())
        found = lib.failure(self.stub.CreateJob, pb.CreateJobRequest(job=lib.spec()))
        if found is not None:
            self.assertFails(found, "RESOURCE_EXHAUSTED", "TENANT_LIMIT")

    def submit(self):
        try:
            return lib.create(self.stub)
        except grpc.RpcError as e:
            assert lib.Failure(e).reason == "TENANT_LIMIT", e
            return None

    def test_mistakes(self):
        import subprocess
        for text, part in (("x y\n", "tenants:1"), ("a\na\n", "has a line already"), ("a weight=0\n", "weight=0"),
                           ("\na burst=2\n", "burst needs rate"), ("A jobs=1\n", '"A"'), ("a colour=1\n", "colour")):
            bad = self.cluster.folder / "bad-tenants"
            bad.write_text(text)
            done = subprocess.run([str(lib.BIN / "pseg-scheduler"), "--log-level", "error", "--tenants", str(bad)],
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=lib.CALL_S, check=False)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(part, done.stderr)


class Priority(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.stub = cluster.stub(cluster.scheduler("--default-model", "empty"))

    def test_bounds(self):
        for bad in (-11, 11):
            found = lib.failure(self.stub.CreateJob, pb.CreateJobRequest(job=lib.spec(priority=bad)))
            self.assertFails(found, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "job.priority")

    def test_order(self):
        low, high = (lib.create(self.stub, priority=p) for p in (-10, 10))
        said = self.cluster.fcall("claim", "hand", "empty", 1, 600000, 3, 0)
        self.assertEqual(said.splitlines()[0], high.name[5:], low.name)


if __name__ == "__main__":
    lib.main()
