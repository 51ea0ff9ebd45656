#!/usr/bin/env python3
"""pseg-scheduler as a process: several side by side, a graceful stop, and mistakes at its start."""
import hashlib
import signal
import socket
import subprocess
import threading
import time

import grpc

import lib_pseg as lib
from lib_pseg import pb

HealthRequest = lib.message("grpc.health.v1.HealthCheckRequest")


class SideBySide(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.schedulers = [cluster.scheduler("--default-model", "empty") for _ in range(2)]
        cls.first, cls.second = (cluster.stub(s) for s in cls.schedulers)

    def test_what_one_makes_the_other_knows(self):
        job = lib.create(self.first, request_id="shared")
        waits = [stub.WaitJob.future(pb.WaitJobRequest(name=job.name), timeout=lib.START_S)
                 for stub in (self.first, self.second) for _ in range(5)]
        self.assertEqual(lib.create(self.second, request_id="shared").name, job.name, "request ids are shared")
        self.assertEqual(self.second.GetJob(pb.GetJobRequest(name=job.name), timeout=lib.CALL_S).state, pb.STATE_QUEUED)
        self.assertFalse(any(w.done() for w in waits))
        worker = self.cluster.worker("empty")
        self.assertEqual({w.result().state for w in waits}, {pb.STATE_SUCCEEDED})
        masks = list(self.second.FetchMasks(pb.FetchMasksRequest(name=job.name), timeout=lib.CALL_S))
        self.assertEqual(len(masks), 1)
        listed = [[j.name for j in s.ListJobs(pb.ListJobsRequest(), timeout=lib.CALL_S).jobs]
                  for s in (self.first, self.second)]
        self.assertEqual(listed[0], listed[1])
        self.assertEqual(worker.stop(), 0)

    def test_an_image_uploaded_to_one(self):
        data = lib.png(50, 40, seed=9)
        digest = hashlib.sha256(data).hexdigest()
        self.first.UploadImage(iter([pb.UploadImageRequest(header=pb.UploadHeader(sha256=digest, size_bytes=len(data))),
                                     pb.UploadImageRequest(chunk=data)]), timeout=lib.CALL_S)
        self.assertTrue(self.second.BatchCheckImages(pb.BatchCheckImagesRequest(sha256=[digest]),
                                                     timeout=lib.CALL_S).images[0].existed)
        lib.create(self.second, image=digest)

    def test_one_is_killed(self):
        third = self.cluster.scheduler("--default-model", "empty")
        stub = self.cluster.stub(third)
        job = lib.create(stub, request_id="orphan")
        waiting = stub.WaitJob.future(pb.WaitJobRequest(name=job.name), timeout=lib.CALL_S)
        third.kill()
        self.assertEqual(waiting.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(lib.create(self.first, request_id="orphan").name, job.name)
        self.assertEqual(self.first.CancelJob(pb.CancelJobRequest(name=job.name), timeout=lib.CALL_S).state,
                         pb.STATE_CANCELLED)


class Stop(lib.Test):
    @classmethod
    def setup(cls, cluster):
        pass

    def test_a_graceful_stop(self):
        """A WaitJob, a Segment, an upload that hangs and one that goes on are under way at SIGTERM."""
        scheduler = self.cluster.scheduler("--default-model", "empty", "--grace-ms", "6s")
        stub = self.cluster.stub(scheduler)
        health = self.cluster.stub(scheduler, "grpc.health.v1.Health")
        lib.until("serving", lambda: health.Check(HealthRequest(service=lib.SERVICE),
                                                  timeout=lib.CALL_S).status == 1)
        watch = health.Watch(HealthRequest(service=lib.SERVICE), timeout=lib.CALL_S)
        self.assertEqual(next(watch).status, 1)
        job = lib.create(stub)
        waiting = stub.WaitJob.future(pb.WaitJobRequest(name=job.name), timeout=lib.CALL_S)
        segment = stub.Segment.future(pb.SegmentRequest(job=lib.spec(), request_id="seg"), timeout=lib.CALL_S)
        go_on, given_up = threading.Event(), threading.Event()
        uploads = []
        for event, seed in ((go_on, 1), (given_up, 2)):
            data = lib.png(300, 300, seed=seed)
            sent = threading.Event()

            def messages(data=data, sent=sent, event=event):
                yield pb.UploadImageRequest(header=pb.UploadHeader(sha256=hashlib.sha256(data).hexdigest(),
                                                                   size_bytes=len(data)))
                yield pb.UploadImageRequest(chunk=data[:1000])
                sent.set()
                event.wait(lib.CALL_S)
                yield pb.UploadImageRequest(chunk=data[1000:])
            uploads.append(stub.UploadImage.future(messages(), timeout=lib.CALL_S))
            self.assertTrue(sent.wait(lib.CALL_S))
        # Calls are served in the order they came in: when this one is answered, those above have begun.
        lib.until("the segment's job", lambda: len(stub.ListJobs(pb.ListJobsRequest(), timeout=lib.CALL_S).jobs) == 2)
        begin = time.monotonic()
        scheduler.signal(signal.SIGTERM)
        self.assertEqual(next(watch).status, 2, "NOT_SERVING")
        self.assertEqual(waiting.result().state, pb.STATE_QUEUED, "the job as it is")
        self.assertEqual(segment.result().job.state, pb.STATE_QUEUED)
        self.assertLess(time.monotonic() - begin, 2)
        go_on.set()
        self.assertFalse(uploads[0].result().existed, "an upload may be completed")
        found = lib.Failure(uploads[1].exception())
        self.assertEqual((found.code.name, found.reason), ("UNAVAILABLE", "DRAINING"))
        self.assertIsNotNone(found.retry_s)
        given_up.set()
        self.assertEqual(scheduler.wait(), 0)
        self.assertLess(time.monotonic() - begin, 6)
        with self.assertRaises(grpc.RpcError) as caught:
            stub.GetJob(pb.GetJobRequest(name=job.name), timeout=lib.CALL_S)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        again = self.cluster.stub(self.cluster.scheduler("--default-model", "empty"))
        self.assertEqual(again.GetJob(pb.GetJobRequest(name=job.name), timeout=lib.CALL_S).state, pb.STATE_QUEUED,
                         "nothing is lost")

    def test_a_stop_while_redis_is_frozen(self):
        scheduler = self.cluster.scheduler("--grace-ms", "3s", "--redis-timeout-ms", "500ms")
        channel = self.cluster.channel(scheduler)
        stub = lib.Stub(channel)
        lib.until("redis", lambda: stub.ListModels(pb.ListModelsRequest(), timeout=lib.CALL_S) is not None)
        self.cluster.redis.signal(signal.SIGSTOP)
        self.addCleanup(lambda: self.cluster.redis.signal(signal.SIGCONT))
        calls = [stub.ListModels.future(pb.ListModelsRequest(), timeout=lib.CALL_S) for _ in range(20)]
        # Answered after those have come in on the same connection; the core cancels what it has not seen.
        lib.Stub(channel, "grpc.health.v1.Health").Check(HealthRequest(), timeout=lib.CALL_S)
        scheduler.signal(signal.SIGTERM)
        self.assertEqual({c.code() for c in calls}, {grpc.StatusCode.UNAVAILABLE})
        self.assertEqual(scheduler.wait(10), 0)

    def test_an_idle_stop_is_at_once(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            scheduler = self.cluster.scheduler()
            for _ in range(8):  # clients that are connected and do nothing
                stub = self.cluster.stub(scheduler)
                lib.until("redis", lambda stub=stub: stub.ListModels(pb.ListModelsRequest(), timeout=lib.CALL_S) is not None)
            begin = time.monotonic()
            scheduler.signal(number)
            self.assertEqual(scheduler.wait(), 0)
            self.assertLess(time.monotonic() - begin, 3)

    def test_redis_comes_after_the_scheduler(self):
        """The order of starting does not matter."""
        self.cluster.redis.kill()
        scheduler = self.cluster.scheduler("--default-model", "empty", "--redis-timeout-ms", "500ms")
        stub = self.cluster.stub(scheduler)
        found = lib.failure(stub.ListJobs, pb.ListJobsRequest())
        self.assertFails(found, "UNAVAILABLE", "BROKER_UNAVAILABLE")
        self.cluster.start_redis()

        def works():
            try:
                return lib.create(stub)
            except grpc.RpcError as e:
                self.assertEqual(lib.Failure(e).reason, "BROKER_UNAVAILABLE")
                return None
        self.assertEqual(lib.until("the service", works, 10).state, pb.STATE_QUEUED)


class Mistakes(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.folder = cluster.folder

    def refused(self, reason, part, *args, status=2):
        """One clear line, and the exit status that scripts can use."""
        done = subprocess.run([str(lib.BIN / "pseg-scheduler"), "--log-level", "error", *map(str, args)],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=lib.CALL_S, check=False)
        said = done.stderr.strip()
        self.assertEqual(done.returncode, status, said)
        self.assertEqual(said.count("\n"), 0, said)
        self.assertTrue(said.startswith("error: ") and said.endswith(f"({reason})"), said)
        self.assertIn(part, said)
        self.assertEqual(done.stdout, "")

    def file(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return path

    def test_a_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            self.refused("ADDRESS_IN_USE", f"127.0.0.1:{port}", "--listen", f"127.0.0.1:{port}")
        scheduler = self.cluster.scheduler()
        self.refused("ADDRESS_IN_USE", scheduler.target, "--listen", scheduler.target)

    def test_addresses(self):
        for bad in ("127.0.0.1", "127.0.0.1:99999", "127.0.0.1:x"):
            self.refused("INVALID_ARGUMENT", bad, "--listen", bad)
        self.refused("INVALID_ARGUMENT", "no-such-host.invalid", "--insecure", "--listen", "no-such-host.invalid:0")
        for public in ("0.0.0.0:0", "[::]:0", "127.0.0.1.example.org:0"):
            self.refused("CONFIG_INVALID", "--insecure", "--listen", public)

    def test_redis_urls(self):
        for bad in ("http://x", "rediss://127.0.0.1", "redis://host:port", "redis://127.0.0.1:6379/x", "nonsense", "unix:"):
            self.refused("CONFIG_INVALID", "redis", "--redis", bad, "--listen", "127.0.0.1:0")
        self.refused("CONFIG_INVALID", "queue", "--queue", "No Such", "--listen", "127.0.0.1:0")

    def test_a_password_is_never_shown(self):
        done = subprocess.run([str(lib.BIN / "pseg-scheduler"), "--redis", "redis://user:hunter2@127.0.0.1:x"],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=lib.CALL_S, check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertNotIn("hunter2", done.stderr + done.stdout)

    def test_certificates(self):
        bad, listen = self.file("bad.pem", "nonsense\n"), ("--listen", "127.0.0.1:0")
        half = self.file("half.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        self.refused("CONFIG_INVALID", "--tls-key", "--tls-cert", bad, *listen)
        self.refused("CONFIG_INVALID", "--tls-cert", "--tls-client-ca", bad, *listen)
        self.refused("FILE_NOT_FOUND", "/no/such.pem", "--tls-cert", "/no/such.pem", "--tls-key", bad, *listen, status=3)
        self.refused("CONFIG_INVALID", "bad.pem", "--tls-cert", bad, "--tls-key", bad, *listen)
        self.refused("CONFIG_INVALID", "half.pem", "--tls-cert", half, "--tls-key", half, *listen)

    def test_keys(self):
        listen = ("--listen", "127.0.0.1:0")
        self.refused("FILE_NOT_FOUND", "/no/such", "--keys", "/no/such", *listen, status=3)
        for text, part in (("", "holds no keys"), ("# none\n", "holds no keys"), ("x y\n", "keys:1"),
                           ("\n" + "0" * 64 + " Bad\n", "keys:2"), ("0" * 64 + "\n", "keys:1"),
                           ("0" * 64 + " a b\n", "keys:1")):
            self.refused("CONFIG_INVALID", part, "--keys", self.file("keys", text), *listen)

    def test_options(self):
        for args in (("--no-such",), ("--max-jobs", "0"), ("--max-jobs", "many"), ("--grace-ms", "-1s"), ("extra",),
                     ("--log-level", "loud"), ("--config", self.file("conf", "colour = red\n"))):
            self.refused("CONFIG_INVALID", str(args[-1]).rsplit("/", 1)[-1].lstrip("-")[:4], *args)
        self.refused("FILE_NOT_FOUND", "/no/such", "--config", "/no/such", status=3)
        self.refused("FILE_NOT_FOUND", "/no/such", "--ready-file", "/no/such/file", "--listen", "127.0.0.1:0", status=3)


if __name__ == "__main__":
    lib.main()
