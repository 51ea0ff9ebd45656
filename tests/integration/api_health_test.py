#!/usr/bin/env python3
"""Health and reflection, and what a Redis that is frozen or gone may not do to them: calls fail in time
with a reason, health goes on, and nothing that was accepted is lost."""
import hashlib
import os
import signal
import time

import grpc

import lib_pseg as lib
from lib_pseg import pb

UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = 0, 1, 2, 3
HealthRequest = lib.message("grpc.health.v1.HealthCheckRequest")


class TooLate(AssertionError):
    pass


class Meta(lib.Test):
    def health(self):
        return self.cluster.stub(self.scheduler, "grpc.health.v1.Health")

    def test_check(self):
        check = self.health().Check
        for service in ("", lib.SERVICE):
            lib.until("serving", lambda: check(HealthRequest(service=service), timeout=lib.CALL_S).status == SERVING)
        with self.assertRaises(grpc.RpcError) as caught:
            check(HealthRequest(service="nobody"), timeout=lib.CALL_S)
        self.assertEqual(caught.exception.code().name, "NOT_FOUND")

    def test_watch(self):
        health = self.health()
        lib.until("serving", lambda: health.Check(HealthRequest(service=lib.SERVICE),
                                                  timeout=lib.CALL_S).status == SERVING)
        for service, status in ((lib.SERVICE, SERVING), ("nobody", SERVICE_UNKNOWN)):
            watch = health.Watch(HealthRequest(service=service), timeout=lib.CALL_S)
            self.assertEqual(next(watch).status, status)
            watch.cancel()

    def test_health_does_not_flap_after_the_start(self):
        health = self.cluster.stub(self.cluster.scheduler(), "grpc.health.v1.Health")
        seen = []
        with self.assertRaises(grpc.RpcError) as caught:
            for reply in health.Watch(HealthRequest(service=lib.SERVICE), timeout=3):
                seen.append(reply.status)
        self.assertEqual(caught.exception.code().name, "DEADLINE_EXCEEDED")
        self.assertIn(seen, ([SERVING], [NOT_SERVING, SERVING]), "serving once Redis has answered, and then for good")

    def test_reflection(self):
        for version in ("v1", "v1alpha"):
            ask = lib.message(f"grpc.reflection.{version}.ServerReflectionRequest")
            stub = self.cluster.stub(self.scheduler, f"grpc.reflection.{version}.ServerReflection")
            listed, found, method, missing = stub.ServerReflectionInfo(iter([
                ask(list_services=""), ask(file_containing_symbol=lib.SERVICE),
                ask(file_containing_symbol=f"{lib.SERVICE}.FetchMasks"), ask(file_containing_symbol="no.Such")]),
                timeout=lib.CALL_S)
            names = {s.name for s in listed.list_services_response.service}
            self.assertLessEqual({lib.SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
                                  "grpc.reflection.v1alpha.ServerReflection"}, names)
            pool = lib.descriptor_pool.DescriptorPool()  # as a generic client builds it
            for file in reversed(found.file_descriptor_response.file_descriptor_proto):
                pool.AddSerializedFile(file)
            methods = pool.FindServiceByName(lib.SERVICE).methods
            self.assertEqual({m.name for m in methods}, set(lib.METHODS[lib.SERVICE]))
            self.assertEqual(method.file_descriptor_response, found.file_descriptor_response)
            self.assertEqual(missing.error_response.error_code, grpc.StatusCode.NOT_FOUND.value[0])
            everything = b"".join(found.file_descriptor_response.file_descriptor_proto)
            self.assertNotIn(b"pseg.internal", everything, "what is stored is nobody's business")


class Broken(lib.Test):
    """--redis-timeout-ms 500: the tests would take longer otherwise, that is all."""

    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty", "--redis-timeout-ms", "500ms")
        cls.stub = cluster.stub(cls.scheduler)
        cls.health = cluster.stub(cls.scheduler, "grpc.health.v1.Health")
        cluster.fcall("register", "hand", 600000, "empty", "0", "none", "0")

    def check(self, service=""):
        begin = time.monotonic()
        status = self.health.Check(HealthRequest(service=service), timeout=lib.CALL_S).status
        self.took.append(time.monotonic() - begin)
        return status

    def calls(self, timeout):
        """Every method once, under way at the same time."""
        data = lib.SCENE + b"x"
        digest = hashlib.sha256(data).hexdigest()
        name = "jobs/" + "0" * 32
        upload = [pb.UploadImageRequest(header=pb.UploadHeader(sha256=digest, size_bytes=len(data))),
                  pb.UploadImageRequest(chunk=data)]
        s = self.stub
        return {
            "CreateJob": s.CreateJob.future(pb.CreateJobRequest(job=lib.spec(), request_id=f"f{timeout}"), timeout=timeout),
            "Segment": s.Segment.future(pb.SegmentRequest(job=lib.spec()), timeout=timeout),
            "UploadImage": s.UploadImage.future(iter(upload), timeout=timeout),
            "BatchCheckImages": s.BatchCheckImages.future(pb.BatchCheckImagesRequest(sha256=[digest]), timeout=timeout),
            "GetJob": s.GetJob.future(pb.GetJobRequest(name=name), timeout=timeout),
            "WaitJob": s.WaitJob.future(pb.WaitJobRequest(name=name), timeout=timeout),
            "ListJobs": s.ListJobs.future(pb.ListJobsRequest(), timeout=timeout),
            "CancelJob": s.CancelJob.future(pb.CancelJobRequest(name=name), timeout=timeout),
            "FetchMasks": s.FetchMasks(pb.FetchMasksRequest(name=name), timeout=timeout),
            "ListModels": s.ListModels.future(pb.ListModelsRequest(), timeout=timeout),
            "EstimateJob": s.EstimateJob.future(pb.EstimateJobRequest(), timeout=timeout),
        }

    def all_unavailable(self, timeout):
        calls = self.calls(timeout)
        self.assertEqual(set(calls), set(lib.METHODS[lib.SERVICE]))
        while not all(c.done() for c in calls.values()):
            self.assertEqual(self.check(), SERVING, "the process is well")
        for name, call in calls.items():
            error = call if name == "FetchMasks" else call.exception()
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise TooLate(f"{name} has not answered in time")
            found = lib.Failure(error)
            self.assertEqual((found.code.name, found.reason), ("UNAVAILABLE", "BROKER_UNAVAILABLE"), (name, found))
            self.assertGreaterEqual(found.retry_s, 1, name)

    def down_and_up(self, break_it, mend):
        self.took = []
        service = lib.SERVICE
        lib.until("serving", lambda: self.check(service) == SERVING)
        self.took = []
        watch = self.health.Watch(HealthRequest(service=service), timeout=lib.CALL_S)
        self.assertEqual(next(watch).status, SERVING)
        job = lib.create(self.stub)
        waiting = [self.stub.WaitJob.future(pb.WaitJobRequest(name=job.name), timeout=t) for t in (7, lib.START_S)]
        self.assertEqual(lib.timely(self.stub.WaitJob, pb.WaitJobRequest(name=job.name))[0].state, pb.STATE_QUEUED)
        break_it()
        for last in (False, False, True):  # by the call's deadline, which is shorter than Redis' timeout
            try:
                self.all_unavailable(0.4)
                break
            except TooLate:  # the machine has more to do than processors
                if last:
                    raise
        self.all_unavailable(15)
        self.assertEqual(next(watch).status, NOT_SERVING)
        error = waiting[0].exception()
        self.assertEqual(lib.Failure(error).reason, "BROKER_UNAVAILABLE", "also where the wait began before")
        self.assertFalse(waiting[1].done(), "a wait with time left lives through it")
        mend()
        lib.until("serving again", lambda: self.check(service) == SERVING)
        self.assertEqual(next(watch).status, SERVING)
        self.assertEqual(self.stub.GetJob(pb.GetJobRequest(name=job.name), timeout=lib.CALL_S).state, pb.STATE_QUEUED,
                         "nothing is lost")
        self.cluster.fcall("register", "hand", 600000, "empty", "0", "none", "0")
        self.stub.CancelJob(pb.CancelJobRequest(name=job.name), timeout=lib.CALL_S)
        self.assertEqual(waiting[1].result().state, pb.STATE_CANCELLED)
        # A submit whose outcome was unknown is repeated safely.
        names = {lib.create(self.stub, request_id="f15").name for _ in range(3)}
        self.assertEqual(len(names), 1)
        took = sorted(self.took)
        slower = max(1.0, os.getloadavg()[0] / os.cpu_count())  # as many processes wait for each processor
        self.assertLess(took[len(took) * 98 // 100], 0.2 * slower, "health never waits for Redis")
        self.assertLess(took[-1], slower)

    def test_redis_is_frozen(self):
        redis = self.cluster.redis
        self.addCleanup(lambda: redis.signal(signal.SIGCONT))
        self.down_and_up(lambda: redis.signal(signal.SIGSTOP), lambda: redis.signal(signal.SIGCONT))

    def test_redis_is_killed(self):
        self.down_and_up(self.cluster.redis.kill, self.cluster.start_redis)


if __name__ == "__main__":
    lib.main()
