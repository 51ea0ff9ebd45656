#!/usr/bin/env python3
"""What happens at each bound: the call is refused at once, says when to come again, and what was
accepted before stays as it is."""
import grpc

import lib_pseg as lib
from lib_pseg import pb


class Bounds(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty", "--max-jobs", "3", "--max-calls", "8")
        cls.stub = cluster.stub(cls.scheduler)

    def refused(self, call, q, reason):
        found = self.assertFails(lib.failure(call, q), "RESOURCE_EXHAUSTED", reason)
        self.assertGreaterEqual(found.retry_s, 1)
        return found

    def states(self):
        return {j.name: j.state for j in self.stub.ListJobs(pb.ListJobsRequest(), timeout=lib.CALL_S).jobs}

    def tearDown(self):
        for name, state in self.states().items():
            if state == pb.STATE_QUEUED:
                self.stub.CancelJob(pb.CancelJobRequest(name=name), timeout=lib.CALL_S)

    def test_jobs_alive(self):
        jobs = [lib.create(self.stub, request_id=f"job-{i}") for i in range(3)]
        before = self.states()
        for _ in range(2):
            self.refused(self.stub.CreateJob, pb.CreateJobRequest(job=lib.spec()), "QUEUE_FULL")
            self.refused(self.stub.Segment, pb.SegmentRequest(job=lib.spec()), "QUEUE_FULL")
        self.assertEqual(self.states(), before, "a refused job leaves nothing")
        self.assertEqual(lib.create(self.stub, request_id="job-0").name, jobs[0].name, "a repeat is no new job")
        self.stub.CancelJob(pb.CancelJobRequest(name=jobs[1].name), timeout=lib.CALL_S)
        self.assertEqual(lib.create(self.stub).state, pb.STATE_QUEUED, "there is room again")

    def test_calls_at_once(self):
        job = lib.create(self.stub)
        waits = [self.stub.WaitJob.future(pb.WaitJobRequest(name=job.name), timeout=lib.START_S) for _ in range(8)]

        def busy():
            try:
                self.stub.GetJob(pb.GetJobRequest(name=job.name), timeout=lib.CALL_S)
                return False
            except grpc.RpcError as e:
                found = lib.Failure(e)
                self.assertFails(found, "RESOURCE_EXHAUSTED", "SERVER_BUSY")
                return found.retry_s >= 1
        lib.until("the ninth call being refused", busy, 10)
        health = self.cluster.stub(self.scheduler, "grpc.health.v1.Health")
        self.assertEqual(health.Check(lib.message("grpc.health.v1.HealthCheckRequest")(), timeout=lib.CALL_S).status, 1,
                         "health is answered above the bound")
        waits.pop().cancel()
        lib.until("room for a call", lambda: not busy(), 10)
        self.stub.CancelJob(pb.CancelJobRequest(name=job.name), timeout=lib.CALL_S)
        self.assertEqual({w.result().state for w in waits}, {pb.STATE_CANCELLED})

    def test_redis_memory(self):
        job = lib.create(self.stub)
        self.assertEqual(self.cluster.redis_cli("CONFIG", "SET", "maxmemory", 1), "OK")
        self.addCleanup(lambda: self.cluster.redis_cli("CONFIG", "SET", "maxmemory", 0))
        self.refused(self.stub.CreateJob, pb.CreateJobRequest(job=lib.spec(lib.png(9, 9))), "BROKER_FULL")
        self.assertEqual(self.stub.GetJob(pb.GetJobRequest(name=job.name), timeout=lib.CALL_S).state, pb.STATE_QUEUED,
                         "reading goes on")
        self.assertEqual(self.stub.CancelJob(pb.CancelJobRequest(name=job.name), timeout=lib.CALL_S).state,
                         pb.STATE_CANCELLED, "and what frees memory, too")
        self.cluster.redis_cli("CONFIG", "SET", "maxmemory", 0)
        self.assertEqual(lib.create(self.stub).state, pb.STATE_QUEUED)

    def test_redis_that_lost_everything(self):
        """FLUSHALL takes the functions with it: the next call brings them back."""
        lib.create(self.stub)
        self.cluster.redis_cli("FUNCTION", "FLUSH")
        self.cluster.redis_cli("FLUSHALL")
        self.assertEqual(self.states(), {})
        self.assertEqual(lib.create(self.stub).state, pb.STATE_QUEUED)

    def test_a_redis_that_may_not_be_written(self):
        """A replica, or one whose disk is full: refused with a reason, and no process dies."""
        self.cluster.redis_cli("REPLICAOF", "127.0.0.1", 1)
        try:
            found = lib.failure(self.stub.CreateJob, pb.CreateJobRequest(job=lib.spec()))
            self.assertIn(found.reason, ("BROKER_UNAVAILABLE", "BROKER_PROTOCOL", "BROKER_FULL"), found)
        finally:
            self.cluster.redis_cli("REPLICAOF", "NO", "ONE")

        def works():
            try:
                return lib.create(self.stub)
            except grpc.RpcError as e:
                self.assertTrue(lib.Failure(e).reason.startswith("BROKER_"), e)
                return None
        lib.until("the service coming back", works, 10)
        self.assertIsNone(self.scheduler.child.poll())


if __name__ == "__main__":
    lib.main()
