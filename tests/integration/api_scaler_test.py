#!/usr/bin/env python3
"""ExternalScaler as KEDA calls it: how much work waits, told at once, by whichever scheduler, and never
nothing while a job runs."""
import queue
import shutil
import subprocess
import threading
import time
import unittest

import grpc

import lib_pseg as lib
from lib_pseg import pb

SCALER = "externalscaler.ExternalScaler"
# The fence of a job, out of its packed state (proto/KEYS.md).
FENCE_OF = "return (select(4, struct.unpack('<BBHI4', redis.call('HGET', KEYS[1], 'state'))))"


def ref(**metadata):
    return lib.message("externalscaler.ScaledObjectRef")(
        name="pseg-worker", namespace="pseg",
        scalerMetadata={"scalerAddress": "pseg-scaler.pseg.svc:7435", "model": "empty", **metadata})


class Scaler(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.start(cluster)

    @classmethod
    def start(cls, cluster, *args):
        ready = cluster.folder / f"scaler{cluster.count}.ready"
        cls.scheduler = cluster.scheduler("--default-model", "empty", "--scaler-listen", "127.0.0.1:0",
                                          "--scaler-ready-file", ready, *args)
        cls.address = lib.until("the scaler's address", lambda: ready.exists() and ready.read_text())
        cls.stub = cluster.stub(cls.scheduler)
        cls.channel = grpc.insecure_channel(cls.address, [("grpc.use_local_subchannel_pool", 1)])
        cluster.channels.append(cls.channel)
        cls.scaler = lib.Stub(cls.channel, SCALER)

    def tearDown(self):
        for job in self.stub.ListJobs(pb.ListJobsRequest(page_size=1000), timeout=lib.CALL_S).jobs:
            if job.state == pb.STATE_RUNNING:
                fence = self.cluster.redis_cli("eval", FENCE_OF, 1, f"pseg:{{default}}:job:{job.name[5:]}")
                self.cluster.fcall("release", "hand", job.name[5:], fence)
            if job.state < pb.STATE_SUCCEEDED:
                self.stub.CancelJob(pb.CancelJobRequest(name=job.name), timeout=lib.CALL_S)
        self.assertFalse(self.is_active())
        self.cluster.redis_cli("hdel", "pseg:{default}:cost", "empty")

    def is_active(self, **metadata):
        return self.scaler.IsActive(ref(**metadata), timeout=lib.CALL_S).result

    def value(self, **metadata):
        q = lib.message("externalscaler.GetMetricsRequest")(scaledObjectRef=ref(**metadata), metricName="backlog-seconds")
        values = self.scaler.GetMetrics(q, timeout=lib.CALL_S).metricValues
        self.assertEqual([v.metricName for v in values], ["backlog-seconds"])
        self.assertGreaterEqual(values[0].metricValue, values[0].metricValueFloat, "rounded up")
        self.assertLess(values[0].metricValue, values[0].metricValueFloat + 1)
        return values[0].metricValueFloat

    def publish(self, name, cost_us):
        said = self.cluster.fcall("publish", "hand", name[5:], 1, cost_us, 0, "")
        self.assertEqual(said, "SUCCEEDED")

    def stream(self, scaler=None, **metadata):
        """A queue of what the stream says, and the call. None: it has ended, with OK or not."""
        told = queue.Queue()
        call = (scaler or self.scaler).StreamIsActive(ref(**metadata))

        def read():
            try:
                for answer in call:
                    told.put(answer.result)
            except grpc.RpcError:
                pass
            told.put(None)
        threading.Thread(target=read, daemon=True).start()
        self.addCleanup(call.cancel)
        return told, call

    def test_seconds_of_work(self):
        self.assertEqual((self.is_active(), self.value()), (False, 0))
        names = [lib.create(self.stub).name for _ in range(3)]
        self.assertTrue(self.is_active())
        self.assertEqual(self.value(), 3, "a second each until a worker has told")
        self.assertEqual(self.value(assumedSeconds="2.5"), 7.5)
        self.assertEqual(self.value(assumedSeconds="100", targetSeconds="40"), 120, "no more workers than jobs")
        self.assertEqual((self.is_active(model="other"), self.value(model="other")), (False, 0))
        self.assertTrue(self.is_active(model=""), "the scheduler's default")
        self.cluster.claim(names[0])
        self.publish(names[0], 4000000)
        self.assertEqual(self.value(), 8, "four seconds for each of two")

    def test_a_job_that_runs_counts(self):
        name = lib.create(self.stub).name
        self.cluster.claim(name)
        self.assertEqual((self.is_active(), self.value()), (True, 1))

    def test_deadlines_ask_for_more(self):
        deadline = pb.JobSpec().deadline
        deadline.FromSeconds(int(time.time()) + 1000)
        for _ in range(100):
            lib.create(self.stub, deadline=deadline)
        # 100 jobs of 30 s in half of 1,000 s take 6 workers that are there at once.
        late = self.value(targetSeconds="80000", assumedSeconds="30", startupSeconds="0") / 80000
        self.assertTrue(5.9 <= late <= 8, late)
        more = self.value(targetSeconds="80000", assumedSeconds="30", startupSeconds="250") / 80000
        self.assertTrue(11.8 <= more <= 20, more)
        self.assertLess(self.value(targetSeconds="80000", assumedSeconds="30", startupSeconds="2000") / 80000, 0.1,
                        "workers that come too late help nobody")

    def test_the_metric(self):
        spec = self.scaler.GetMetricSpec(ref(targetSeconds="12.5"), timeout=lib.CALL_S).metricSpecs
        self.assertEqual([(s.metricName, s.targetSize, s.targetSizeFloat) for s in spec], [("backlog-seconds", 13, 12.5)])
        plain = self.scaler.GetMetricSpec(lib.message("externalscaler.ScaledObjectRef")(), timeout=lib.CALL_S)
        self.assertEqual(plain.metricSpecs[0].targetSizeFloat, 30)

    def test_a_job_is_pushed(self):
        """The stream tells of jobs that another scheduler took, and only of changes."""
        other = self.cluster.stub(self.cluster.scheduler("--default-model", "empty"))
        told, _ = self.stream()
        self.assertFalse(told.get(timeout=lib.CALL_S), "the present state, at once")
        took = []
        for _ in range(5):
            began = time.monotonic()
            name = lib.create(other).name
            self.assertTrue(told.get(timeout=lib.CALL_S))
            took.append(time.monotonic() - began)
            self.stub.CancelJob(pb.CancelJobRequest(name=name), timeout=lib.CALL_S)
            self.assertFalse(told.get(timeout=lib.CALL_S))
        print(f"pushed after {sorted(took)[2] * 1000:.0f} ms, at most {max(took) * 1000:.0f} ms")
        # On a machine with too much to do one may be late; all five are only if it is not pushed in time.
        self.assertLess(min(took), 1)
        name = lib.create(other).name
        self.assertTrue(told.get(timeout=lib.CALL_S))
        lib.create(other)
        self.cluster.claim(name)
        self.publish(name, 1000)
        self.assertTrue(self.is_active())
        self.assertTrue(told.empty(), "nothing has changed")

    def test_redis_goes_and_comes(self):
        lib.create(self.stub)
        told, call = self.stream()
        self.assertTrue(told.get(timeout=lib.CALL_S))
        self.cluster.redis.kill()
        found = lib.until("a refusal", lambda: self.refused())
        self.assertFails(found, "UNAVAILABLE", "BROKER_UNAVAILABLE")
        self.assertTrue(told.empty(), "the last state holds")
        self.cluster.start_redis()
        lib.until("an answer", lambda: not self.refused())
        self.assertTrue(self.is_active())
        self.assertTrue(told.empty() and call.is_active())
        for job in self.stub.ListJobs(pb.ListJobsRequest(), timeout=lib.CALL_S).jobs:
            self.stub.CancelJob(pb.CancelJobRequest(name=job.name), timeout=lib.CALL_S)
        self.assertFalse(told.get(timeout=lib.CALL_S))

    def refused(self):
        try:
            self.scaler.IsActive(ref(), timeout=5)
        except grpc.RpcError as e:
            return e.code() == grpc.StatusCode.UNAVAILABLE and lib.Failure(e)

    def test_mistakes(self):
        for key, values in (("targetSeconds", ("", "x", "0", "0.05", "-1", "1e9", "nan", "inf", "5 s")),
                            ("startupSeconds", ("x", "-1", "90000")), ("assumedSeconds", ("0", "x"))):
            for text in values:
                for call in (self.scaler.IsActive, self.scaler.StreamIsActive, self.scaler.GetMetricSpec):
                    found = self.assertFails(lib.failure(call, ref(**{key: text})), "INVALID_ARGUMENT", "INVALID_ARGUMENT",
                                             f"scalerMetadata.{key}")
                    self.assertEqual(found.metadata.get("value", ""), text)
        for model in ("a b", "x" * 64, "é"):
            self.assertFails(lib.failure(self.scaler.IsActive, ref(model=model)), "INVALID_ARGUMENT", "NAME_INVALID",
                             "scalerMetadata.model")
        q = lib.message("externalscaler.GetMetricsRequest")(scaledObjectRef=ref(), metricName="s0-backlog")
        found = self.assertFails(lib.failure(self.scaler.GetMetrics, q), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "metricName")
        self.assertEqual(found.metadata["limit"], "backlog-seconds")

    def test_neither_address_serves_the_other(self):
        public = lib.Stub(self.cluster.channel(self.scheduler), SCALER)
        self.assertFails(lib.failure(public.IsActive, ref()), "UNIMPLEMENTED", "UNSUPPORTED")
        self.assertFails(lib.failure(lib.Stub(self.channel).ListJobs, pb.ListJobsRequest()), "UNIMPLEMENTED", "UNSUPPORTED")


class Addresses(lib.Test):
    @classmethod
    def setup(cls, cluster):
        pass

    def test_the_stream_ends_with_the_scheduler(self):
        Scaler.start(self.cluster)
        call = Scaler.scaler.StreamIsActive(ref())
        self.assertFalse(next(call).result)
        Scaler.scheduler.signal(15)
        self.assertEqual([a.result for a in call], [], "with OK: KEDA comes again after two seconds")
        self.assertEqual(Scaler.scheduler.wait(), 0)

    def test_public_addresses_are_guarded(self):
        for args in ((), ("--insecure",)):
            done = subprocess.run([lib.BIN / "pseg-scheduler", "--log-level", "error", "--listen", "127.0.0.1:0",
                                   "--redis", "redis://127.0.0.1:1", "--scaler-listen",
                                   "0.0.0.0:0" if not args else "256.0.0.1:0", *args],
                                  capture_output=True, text=True, timeout=lib.CALL_S)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("256.0.0.1" if args else "--tls-client-ca", done.stderr)

    @unittest.skipUnless(shutil.which("openssl"), "no openssl")
    def test_keda_shows_its_certificate(self):
        from api_auth_test import Authority
        ca = Authority(self.cluster.folder, "scaler-ca")
        server, client = ca.issue("server", "localhost"), ca.issue("keda", "keda")
        ready = self.cluster.folder / "tls.ready"
        self.cluster.scheduler("--tls-cert", server[0], "--tls-key", server[1], "--tls-client-ca", ca.cert,
                               "--scaler-listen", "127.0.0.1:0", "--scaler-ready-file", ready)
        target = lib.until("the address", lambda: ready.exists() and ready.read_text()).replace("127.0.0.1", "localhost")

        def answer(key=None, cert=None):
            credentials = grpc.ssl_channel_credentials(ca.cert.read_bytes(), key and key.read_bytes(), cert and cert.read_bytes())
            with grpc.secure_channel(target, credentials, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                return lib.Stub(channel, SCALER).IsActive(ref(), timeout=lib.CALL_S).result
        self.assertFalse(answer(client[1], client[0]))
        with self.assertRaises(grpc.RpcError) as e:
            answer()
        self.assertEqual(e.exception.code(), grpc.StatusCode.UNAVAILABLE)


if __name__ == "__main__":
    lib.main()
