#!/usr/bin/env python3
"""Jobs from making to end: request ids, waiting, cancelling, listing. Most jobs here never run: there
is no worker, and the test claims a job itself where one is to be RUNNING."""
import hashlib
import threading
import time

import grpc

import lib_pseg as lib
from lib_pseg import pb

NOBODY = "jobs/" + "0" * 32


class Jobs(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty")
        cls.stub = cluster.stub(cls.scheduler)
        # The line of the model, so that the test can claim from it; lives as long as the test.
        cluster.fcall("register", "hand", 600000, "empty", "0", "none", "0")

    def get(self, name):
        return self.stub.GetJob(pb.GetJobRequest(name=name), timeout=lib.CALL_S)

    def cancel(self, name):
        return self.stub.CancelJob(pb.CancelJobRequest(name=name), timeout=lib.CALL_S)

    def tearDown(self):
        token = ""
        while True:  # nothing waits for the next test
            page = self.stub.ListJobs(pb.ListJobsRequest(page_token=token), timeout=lib.CALL_S)
            for j in page.jobs:
                if j.state == pb.STATE_QUEUED:
                    self.cancel(j.name)
            token = page.next_page_token
            if not token:
                return

    # ---- images ----

    def test_a_photo_goes_to_redis_once(self):
        photo = lib.png(8, 8) + bytes(1 << 20)
        sha256 = hashlib.sha256(photo).hexdigest()

        def sent_for(image):
            def counted():
                info = self.cluster.redis_cli("INFO", "stats")
                return int(info.split("total_net_input_bytes:")[1].split()[0])
            before = counted()
            self.assertEqual(lib.create(self.stub, image).image_sha256, sha256)
            return counted() - before
        self.assertGreater(sent_for(photo), len(photo))
        for _ in range(3):
            self.assertLess(sent_for(photo), len(photo) / 2)
        self.cluster.redis_cli("DEL", f"pseg:{{default}}:image:default:{sha256}")
        self.assertGreater(sent_for(photo), len(photo), "it is not held any more")
        self.assertEqual(self.cluster.redis_cli("STRLEN", f"pseg:{{default}}:image:default:{sha256}").strip(),
                         str(len(photo)))
        self.assertLess(sent_for(photo), len(photo) / 2)

    # ---- request ids ----

    def test_a_request_id_makes_repeats_safe(self):
        first = lib.create(self.stub, request_id="same", labels={"a": "1", "b": "2"}, mask_threshold=0.25)
        again = lib.create(self.stub, request_id="same", labels={"b": "2", "a": "1"}, mask_threshold=0.25)
        self.assertEqual(first, again)
        by_upload = lib.create(self.stub, image=first.image_sha256, request_id="same", labels={"a": "1", "b": "2"},
                               mask_threshold=0.25)
        self.assertEqual(first.name, by_upload.name, "how the image came does not count")
        self.cancel(first.name)
        self.assertEqual(lib.create(self.stub, request_id="same", labels={"a": "1", "b": "2"},
                                    mask_threshold=0.25).state, pb.STATE_CANCELLED, "the job as it is now")
        self.assertNotEqual(lib.create(self.stub).name, lib.create(self.stub).name, "without one every call is a job")

    def test_the_order_of_labels_on_the_wire_does_not_count(self):
        """A map has no order: a client in Go sends another one at each try."""
        entries = [pb.CreateJobRequest(job=pb.JobSpec(labels={k: v})).SerializeToString()
                   for k, v in (("a", "1"), ("b", "2"), ("c", "3"))]
        rest = pb.CreateJobRequest(request_id="wire", job=lib.spec()).SerializeToString()
        call = self.cluster.channel(self.scheduler).unary_unary(f"/{lib.SERVICE}/CreateJob",
                                                                response_deserializer=pb.Job.FromString)
        # Messages of one field are merged by whoever reads them.
        jobs = [call(rest + b"".join(order), timeout=lib.CALL_S)
                for order in (entries, entries[::-1], entries + entries[:1])]
        self.assertEqual({j.name for j in jobs}, {jobs[0].name})
        self.assertEqual(dict(jobs[0].labels), {"a": "1", "b": "2", "c": "3"})

    def test_a_request_id_with_other_content(self):
        lib.create(self.stub, request_id="reused")
        for other in (dict(phrases=("something else",)), dict(image=lib.png(8, 8)), dict(mask_threshold=0.75),
                      dict(labels={"x": "y"}), dict(phrases=("the small red circle",) * 2)):
            found = lib.failure(self.stub.CreateJob, pb.CreateJobRequest(request_id="reused", job=lib.spec(**other)))
            self.assertFails(found, "ALREADY_EXISTS", "REQUEST_ID_REUSED", "request_id")
            self.assertEqual(found.metadata["value"], "reused")

    def test_a_malformed_request_id(self):
        for bad in ("a b", "x" * 65, "ü"):
            found = lib.failure(self.stub.CreateJob, pb.CreateJobRequest(request_id=bad, job=lib.spec()))
            self.assertFails(found, "INVALID_ARGUMENT", "NAME_INVALID", "request_id")

    def test_many_at_once_with_one_request_id(self):
        names, threads = [], []
        for _ in range(16):
            threads.append(threading.Thread(
                target=lambda: names.append(lib.create(self.stub, request_id="race").name)))
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual((len(names), len(set(names))), (16, 1))

    # ---- waiting ----

    def test_wait_answers_before_the_deadline_with_the_job_as_it_is(self):
        job = lib.create(self.stub)
        begin = time.monotonic()
        reply, timeout = lib.timely(self.stub.WaitJob, pb.WaitJobRequest(name=job.name))
        self.assertEqual(reply.state, pb.STATE_QUEUED)
        self.assertGreater(time.monotonic() - begin, timeout / 2, "it has waited")
        reply, _ = lib.timely(self.stub.Segment, pb.SegmentRequest(job=lib.spec()))
        self.assertEqual((reply.job.state, len(reply.masks), reply.masks_omitted), (pb.STATE_QUEUED, 0, False))

    def test_many_wait_for_one_job(self):
        job = lib.create(self.stub)
        waits = [self.stub.WaitJob.future(pb.WaitJobRequest(name=job.name), timeout=lib.CALL_S) for _ in range(100)]
        probe, _ = lib.timely(self.stub.WaitJob, pb.WaitJobRequest(name=job.name))
        self.assertEqual(probe.state, pb.STATE_QUEUED)
        self.assertFalse(any(w.done() for w in waits))
        self.cancel(job.name)
        self.assertEqual({w.result().state for w in waits}, {pb.STATE_CANCELLED})
        self.assertEqual(self.stub.WaitJob(pb.WaitJobRequest(name=job.name), timeout=5).state, pb.STATE_CANCELLED,
                         "a job that has ended is answered at once")

    def test_waiters_that_go_away(self):
        job = lib.create(self.stub)
        waits = [self.stub.WaitJob.future(pb.WaitJobRequest(name=job.name), timeout=lib.CALL_S) for _ in range(50)]
        for w in waits[::2]:
            w.cancel()
        self.cancel(job.name)
        self.assertEqual({w.result().state for w in waits[1::2]}, {pb.STATE_CANCELLED})

    def test_no_such_job(self):
        for call, q in ((self.stub.GetJob, pb.GetJobRequest), (self.stub.WaitJob, pb.WaitJobRequest),
                        (self.stub.CancelJob, pb.CancelJobRequest), (self.stub.FetchMasks, pb.FetchMasksRequest)):
            found = self.assertFails(lib.failure(call, q(name=NOBODY)), "NOT_FOUND", "JOB_NOT_FOUND")
            self.assertEqual((found.resource.resource_type, found.resource.resource_name), ("pseg.v1.Job", NOBODY))
            self.assertEqual(found.metadata["value"], NOBODY)
            for bad in ("", "jobs/", "jobs/xyz", NOBODY + "0", NOBODY.replace("0", "A"), "job/" + "0" * 32):
                found = self.assertFails(lib.failure(call, q(name=bad)), "INVALID_ARGUMENT", "NAME_INVALID", "name")
                self.assertEqual(found.metadata, {"limit": "jobs/[0-9a-f]{32}"} | ({"value": bad} if bad else {}))

    # ---- cancelling ----

    def test_cancel_a_queued_job(self):
        job = lib.create(self.stub)
        ended = self.cancel(job.name)
        self.assertEqual((ended.state, ended.cancel_requested), (pb.STATE_CANCELLED, False))
        self.assertTrue(ended.HasField("finish_time") and ended.HasField("expire_time"))
        self.assertEqual(self.cancel(job.name), ended, "twice changes nothing")
        found = lib.failure(self.stub.FetchMasks, pb.FetchMasksRequest(name=job.name))
        self.assertFails(found, "CANCELLED", "JOB_CANCELLED")

    def test_cancel_a_running_job(self):
        job = lib.create(self.stub)
        found = lib.failure(self.stub.FetchMasks, pb.FetchMasksRequest(name=job.name))
        self.assertFails(found, "FAILED_PRECONDITION", "JOB_NOT_DONE")
        self.assertEqual(found.metadata, {"value": "QUEUED", "limit": "SUCCEEDED"})
        self.cluster.claim(job.name)
        running = self.get(job.name)
        self.assertEqual((running.state, running.attempts, running.cancel_requested), (pb.STATE_RUNNING, 1, False))
        for _ in range(2):
            asked = self.cancel(job.name)
            self.assertEqual((asked.state, asked.cancel_requested), (pb.STATE_RUNNING, True))
        waiting = self.stub.WaitJob.future(pb.WaitJobRequest(name=job.name), timeout=lib.CALL_S)
        self.assertEqual(self.cluster.fcall("release", "hand", job.name[5:], 1), "CANCELLED")
        ended = waiting.result()
        self.assertEqual((ended.state, ended.cancel_requested), (pb.STATE_CANCELLED, False))

    # ---- deadlines ----

    def test_a_job_that_is_not_done_by_its_deadline(self):
        for ms in (300, 1000, 3000):  # it may be over before the request has come in
            spec = lib.spec()
            spec.deadline.FromNanoseconds(time.time_ns() + ms * 10**6)
            try:
                job = self.stub.CreateJob(pb.CreateJobRequest(job=spec), timeout=lib.CALL_S)
                break
            except grpc.RpcError as e:
                self.assertEqual(lib.Failure(e).fields, ["job.deadline"])
        ended = lib.wait(self.stub, job.name)
        self.assertEqual(ended.state, pb.STATE_EXPIRED)
        found = lib.failure(self.stub.FetchMasks, pb.FetchMasksRequest(name=job.name))
        self.assertFails(found, "DEADLINE_EXCEEDED", "JOB_EXPIRED")

    def test_a_result_is_kept_as_long_as_asked(self):
        spec = lib.spec()
        spec.result_ttl.FromSeconds(90)
        job = self.cancel(self.stub.CreateJob(pb.CreateJobRequest(job=spec), timeout=lib.CALL_S).name)
        self.assertAlmostEqual((job.expire_time.ToNanoseconds() - job.finish_time.ToNanoseconds()) / 1e9, 90, delta=1)


class Listing(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty")
        cls.stub = cluster.stub(cls.scheduler)
        cls.names = [lib.create(cls.stub, labels={"n": str(i)}).name for i in range(60)]
        for name in cls.names[::3]:
            cls.stub.CancelJob(pb.CancelJobRequest(name=name), timeout=lib.CALL_S)

    def pages(self, between=lambda: None, **kw):
        token, out = "", []
        while True:
            page = self.stub.ListJobs(pb.ListJobsRequest(page_token=token, **kw), timeout=lib.CALL_S)
            out.append([j.name for j in page.jobs])
            token = page.next_page_token
            if not token:
                return out
            between()

    def known(self, pages):
        return [n for page in pages for n in page if n in set(self.names)]

    def test_pages(self):
        newest_first = self.names[::-1]
        default = self.pages()
        self.assertEqual(len(default[0]), 50, "0 means 50")
        self.assertEqual(self.known(default), newest_first)
        for size in (1, 7, 59, 60, 61, 1000):
            pages = self.pages(page_size=size)
            self.assertEqual(self.known(pages), newest_first, size)
            self.assertLessEqual(max(map(len, pages)), size)
        job = self.stub.ListJobs(pb.ListJobsRequest(page_size=1), timeout=lib.CALL_S).jobs[0]
        self.assertEqual(job, self.stub.GetJob(pb.GetJobRequest(name=job.name), timeout=lib.CALL_S), "jobs are whole")

    def test_jobs_made_meanwhile_do_not_disturb(self):
        pages = self.pages(page_size=7, between=lambda: lib.create(self.stub))
        self.assertEqual(self.known(pages), self.names[::-1])
        flat = [n for page in pages for n in page]
        self.assertEqual(len(flat), len(set(flat)), "none twice")

    def test_states(self):
        cancelled = set(self.names[::3])
        self.assertEqual(self.known(self.pages(states=[pb.STATE_CANCELLED], page_size=10)),
                         [n for n in self.names[::-1] if n in cancelled])
        self.assertEqual(self.known(self.pages(states=[pb.STATE_QUEUED])),
                         [n for n in self.names[::-1] if n not in cancelled])
        self.assertEqual(self.known(self.pages(states=[pb.STATE_QUEUED, pb.STATE_CANCELLED])), self.names[::-1])
        self.assertEqual(self.known(self.pages(states=[pb.STATE_SUCCEEDED], page_size=7)), [])

    def test_bad_requests(self):
        for size in (-1, 1001, -2**31, 2**31 - 1):
            found = self.assertFails(lib.failure(self.stub.ListJobs, pb.ListJobsRequest(page_size=size)),
                                     "INVALID_ARGUMENT", "INVALID_ARGUMENT", "page_size")
            self.assertEqual(found.metadata, {"value": str(size), "limit": "1..1000"})
        for token in ("x", "0" * 31, "G" * 32, "0" * 33, "ü" * 16, "0" * 5000):
            self.assertFails(lib.failure(self.stub.ListJobs, pb.ListJobsRequest(page_token=token)),
                             "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", "page_token")
        for states in ([0], [pb.STATE_QUEUED, 7], [-1]):
            found = lib.failure(self.stub.ListJobs, pb.ListJobsRequest(states=states))
            self.assertFails(found, "INVALID_ARGUMENT", "INVALID_ARGUMENT", f"states[{len(states) - 1}]")

    def test_a_page_of_large_jobs_fits_a_client_with_default_limits(self):
        """100 jobs of 64 KiB of phrases are more than gRPC clients take in one message (4 MiB)."""
        large = {lib.create(self.stub, phrases=[f"{i:02} " + "x" * 1000 for i in range(64)]).name for _ in range(100)}
        channel = grpc.insecure_channel(self.scheduler.target)
        token, found = "", []
        while True:
            page = lib.Stub(channel).ListJobs(pb.ListJobsRequest(page_size=1000, page_token=token), timeout=lib.CALL_S)
            found += [j.name for j in page.jobs]
            token = page.next_page_token
            if not token:
                break
        channel.close()
        self.assertEqual(len(found), len(set(found)))
        self.assertLessEqual(large, set(found))
        self.assertEqual([n for n in found if n in set(self.names)], self.names[::-1])


if __name__ == "__main__":
    lib.main()
