#!/usr/bin/env python3
"""BatchService: items through one stream, their results through another, and both broken off in the middle."""
import hashlib
import json
import os
import queue
import subprocess
import threading

import grpc

import lib_pseg as lib
from lib_pseg import pb

SERVICE = "pseg.v1.BatchService"
# What a sanitizer keeps of freed memory is no growth of ours.
os.environ["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=8"


def item(seq, **kw):
    job = kw.pop("job", None)
    custom = kw.pop("custom_id", f"line {seq}")
    return pb.SubmitJobsRequest(item=pb.BatchItem(seq=seq, custom_id=custom,
                                                  job=job or lib.spec(IMAGE, (f"thing {seq}",), **kw)))


IMAGE = lib.png(8, 8)
SEAL = pb.SubmitJobsRequest(seal=pb.SubmitSeal())


class Submitter:
    """A SubmitJobs stream: what is put goes out, what comes is in `last`."""

    def __init__(self, stub, batch, opens=True, metadata=None):
        self.out, self.answers = queue.SimpleQueue(), queue.SimpleQueue()
        self.next_seq = self.window_end = 0
        self.put(pb.SubmitJobsRequest(header=pb.SubmitHeader(batch=batch)))
        self.call = stub.SubmitJobs(iter(self.out.get, None), timeout=4 * lib.CALL_S, metadata=metadata)
        threading.Thread(target=self.read, daemon=True).start()
        if opens:
            self.receive()

    def put(self, request):
        self.out.put(request)

    def read(self):
        try:
            for answer in self.call:
                self.answers.put(answer)
            self.answers.put(None)
        except grpc.RpcError as e:
            self.answers.put(e)

    def receive(self):
        """The next answer; raises what the stream failed with, None at its end."""
        answer = self.answers.get(timeout=3 * lib.CALL_S)
        if isinstance(answer, grpc.RpcError):
            raise answer
        if answer:
            assert answer.next_seq >= self.next_seq, "it goes back"
            self.next_seq, self.window_end = answer.next_seq, answer.window_end
        return answer

    def send_to(self, end, make=item):
        """Sends items up to `end` as the window allows, until all are safe."""
        seq = self.next_seq
        while self.next_seq <= end:
            while seq <= min(end, self.window_end):
                self.put(make(seq))
                seq += 1
            self.receive()

    def seal(self):
        """The last answer of a stream that ends well."""
        self.put(SEAL)
        last = self.receive()
        while not last.sealed:
            last = self.receive()
        assert self.receive() is None
        self.out.put(None)
        return last

    def close(self):
        self.call.cancel()
        self.out.put(None)

    def error(self):
        """What the stream fails with."""
        try:
            while self.receive():
                pass
        except grpc.RpcError as e:
            self.out.put(None)
            return e
        raise AssertionError("the stream ended well")

    def failure(self):
        return lib.Failure(self.error())


class Batches(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty")
        cls.jobs, cls.stub = cluster.stub(cls.scheduler), cluster.stub(cls.scheduler, SERVICE)

    def create(self, batch_id="", **kw):
        return self.stub.CreateBatch(pb.CreateBatchRequest(batch_id=batch_id, **kw), timeout=lib.CALL_S)

    def get(self, name):
        return self.stub.GetBatch(pb.GetBatchRequest(name=name), timeout=lib.CALL_S)

    # ---- the resource ----

    def test_a_batch_is_made_once(self):
        made = self.create("once", labels={"b": "2", "a": "1"})
        self.assertEqual((made.name, made.next_seq, made.sealed), ("batches/once", 1, False))
        self.assertEqual(dict(made.labels), {"a": "1", "b": "2"})
        again = self.create("once", labels={"c": "3"})
        self.assertEqual((again.create_time, dict(again.labels)), (made.create_time, {"a": "1", "b": "2"}))
        self.assertEqual(self.get("batches/once").create_time, made.create_time)
        self.assertEqual(made.expire_time.seconds - made.create_time.seconds, 86400)
        self.assertNotEqual(self.create().name, self.create().name)

    def test_batches_are_listed(self):
        names = [self.create(f"listed-{i}").name for i in range(3)]
        found, token = [], ""
        while True:
            page = self.stub.ListBatches(pb.ListBatchesRequest(page_size=2, page_token=token), timeout=lib.CALL_S)
            found += [b.name for b in page.batches]
            token = page.next_page_token
            if not token:
                break
        self.assertEqual([n for n in found if n in names], names[::-1])

    def test_mistakes_are_named(self):
        for request, reason, field in (
                (pb.CreateBatchRequest(batch_id="a b"), "NAME_INVALID", "batch_id"),
                (pb.CreateBatchRequest(batch_id="x" * 65), "NAME_INVALID", "batch_id"),
                (pb.CreateBatchRequest(ttl={"seconds": 59}), "INVALID_ARGUMENT", "ttl"),
                (pb.CreateBatchRequest(labels={"A": "1"}), "NAME_INVALID", "labels")):
            self.assertFails(lib.failure(self.stub.CreateBatch, request), "INVALID_ARGUMENT", reason, field)
        self.assertFails(lib.failure(self.stub.ListBatches, pb.ListBatchesRequest(page_size=101)),
                         "INVALID_ARGUMENT", "INVALID_ARGUMENT", "page_size")
        self.assertFails(lib.failure(self.stub.ListBatches, pb.ListBatchesRequest(page_token="x")),
                         "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", "page_token")
        for call, request in ((self.stub.GetBatch, pb.GetBatchRequest), (self.stub.CancelBatch, pb.CancelBatchRequest)):
            self.assertFails(lib.failure(call, request(name="jobs/x")), "INVALID_ARGUMENT", "NAME_INVALID", "name")
            found = lib.failure(call, request(name="batches/none"))
            self.assertFails(found, "NOT_FOUND", "BATCH_NOT_FOUND")
            self.assertEqual(found.resource.resource_name, "batches/none")

    # ---- submitting ----

    def test_items_are_taken_in_order(self):
        name = self.create().name
        s = Submitter(self.stub, name)
        self.assertEqual(s.next_seq, 1)
        self.assertGreaterEqual(s.window_end, 100)
        s.send_to(50)
        last = s.seal()
        self.assertEqual((last.next_seq, last.window_end), (51, 50))
        batch = self.get(name)
        self.assertEqual((batch.next_seq, batch.sealed, batch.counts.queued), (51, True, 50))
        # Sealing it again does no harm, and neither does sending again what it has.
        s = Submitter(self.stub, name)
        self.assertEqual((s.next_seq, s.window_end), (51, 50))
        s.put(item(50))
        self.assertEqual(s.seal().next_seq, 51)
        s = Submitter(self.stub, name)
        s.put(item(51))
        self.assertFails(s.failure(), "FAILED_PRECONDITION", "BATCH_SEALED", "item.seq")

    def test_the_stream_may_end_without_a_seal(self):
        name = self.create().name
        s = Submitter(self.stub, name)
        for seq in range(1, 4):
            s.put(item(seq))
        s.put(None)
        while s.receive():
            pass
        self.assertEqual((s.next_seq, self.get(name).sealed), (4, False))

    def test_what_is_out_of_order_fails(self):
        name = self.create().name
        s = Submitter(self.stub, name, opens=False)
        for request, reason in ((item(2), "BATCH_OUT_OF_ORDER"), (item(0), "BATCH_OUT_OF_ORDER"),
                                (item(10 ** 9), "BATCH_WINDOW")):
            s = Submitter(self.stub, name)
            s.put(request)
            self.assertFails(s.failure(), "INVALID_ARGUMENT", reason, "item.seq")
        s = Submitter(self.stub, name)
        s.put(pb.SubmitJobsRequest(header=pb.SubmitHeader(batch=name)))
        self.assertFails(s.failure(), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "part")
        found = lib.failure(self.stub.SubmitJobs, iter([item(1)]))
        self.assertFails(found, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "part")
        header = pb.SubmitJobsRequest(header=pb.SubmitHeader(batch="batches/none"))
        self.assertFails(lib.failure(self.stub.SubmitJobs, iter([header])), "NOT_FOUND", "BATCH_NOT_FOUND")
        header.header.batch = "none"
        self.assertFails(lib.failure(self.stub.SubmitJobs, iter([header])), "INVALID_ARGUMENT", "NAME_INVALID",
                         "header.batch")

    def test_bad_items_are_refused_by_themselves(self):
        name = self.create().name
        s = Submitter(self.stub, name)
        bad = {2: pb.JobSpec(), 3: lib.spec("0" * 64), 4: lib.spec(IMAGE, model="unknown"), 5: lib.spec(IMAGE, ()),
               6: lib.spec(b"no image at all")}
        s.send_to(9, lambda seq: item(seq, job=bad.get(seq), custom_id="x" * 256 if seq == 7 else "y"))
        s.put(pb.SubmitJobsRequest(item=pb.BatchItem(seq=10)))
        self.assertEqual(s.seal().next_seq, 11)
        counts = self.get(name).counts
        self.assertEqual((counts.refused, counts.failed, counts.queued), (7, 7, 3))

    def test_a_broken_stream_goes_on(self):
        name, n = self.create().name, 400
        for part in (1, 150, 151, 399):
            s = Submitter(self.stub, name)
            s.send_to(part)
            for seq in range(part + 1, min(part + 60, n)):  # under way when it breaks
                s.put(item(seq))
            s.close()
        s = Submitter(self.stub, name)
        self.assertGreater(s.next_seq, 399)
        s.send_to(n)
        s.seal()
        self.assertEqual(self.get(name).counts.queued, n)
        live = self.cluster.redis_cli("HVALS", f"pseg:{{default}}:batch_live:default:{name[8:]}").split()
        self.assertEqual(sum(int(v[33:], 16) if "+" in v else 1 for v in live), n)  # a token stands for many

    def test_two_streams_into_one_batch(self):
        name, n = self.create().name, 300
        both = [Submitter(self.stub, name) for _ in range(2)]
        threads = [threading.Thread(target=s.send_to, args=(n,)) for s in both]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual([s.next_seq for s in both], [n + 1] * 2)
        self.assertEqual(self.get(name).counts.queued, n)
        for s in both:
            s.close()

    def test_another_scheduler_goes_on(self):
        name, n = self.create().name, 600
        second = self.cluster.scheduler("--default-model", "empty")
        s = Submitter(self.cluster.stub(second, SERVICE), name)
        s.send_to(200)
        for seq in range(201, 401):
            s.put(item(seq))
        second.kill()
        self.assertEqual(s.error().code(), grpc.StatusCode.UNAVAILABLE)
        s = Submitter(self.stub, name)
        self.assertGreater(s.next_seq, 200)
        s.send_to(n)
        self.assertEqual(s.seal().next_seq, n + 1)
        self.assertEqual(self.get(name).counts.queued, n)

    def test_a_scheduler_that_stops_acknowledges(self):
        name = self.create().name
        second = self.cluster.scheduler("--default-model", "empty", "--grace-ms", "30s")
        s = Submitter(self.cluster.stub(second, SERVICE), name)
        s.send_to(20)
        second.signal(15)
        self.assertFails(s.failure(), "UNAVAILABLE", "DRAINING")
        self.assertEqual(s.next_seq, self.get(name).next_seq, "all that was stored has been told")
        self.assertEqual(second.wait(), 0)


def submit_all(stub, name, n, make=item):
    s = Submitter(stub, name)
    s.send_to(n, make)
    s.seal()


def results(stub, name, token="", **kw):
    """The stream of results, as (token, result) pairs; progress in between is checked and left out."""
    for answer in stub.StreamBatchResults(pb.StreamBatchResultsRequest(name=name, resume_token=token, **kw),
                                          timeout=4 * lib.CALL_S):
        if answer.HasField("progress"):
            assert answer.progress.name == name
        else:
            yield answer.resume_token, answer.result


class Results(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty", "--stall-ms", "3s")
        cls.stub, cls.jobs = cluster.stub(cls.scheduler, SERVICE), cluster.stub(cls.scheduler)
        cls.worker = cluster.worker("empty")

    def create(self):
        return self.stub.CreateBatch(pb.CreateBatchRequest(), timeout=lib.CALL_S).name

    def get(self, name):
        return self.stub.GetBatch(pb.GetBatchRequest(name=name), timeout=lib.CALL_S)

    def test_each_item_is_told_once(self):
        name, n = self.create(), 300
        bad = {7: pb.JobSpec(), 200: lib.spec("0" * 64)}
        submit_all(self.stub, name, n, lambda seq: item(seq, job=bad.get(seq)))
        found = [r for _, r in results(self.stub, name)]
        self.assertEqual(sorted(r.seq for r in found), list(range(1, n + 1)))
        for r in found:
            self.assertEqual(r.custom_id, f"line {r.seq}")
            if r.seq in bad:
                self.assertEqual(r.state, pb.STATE_FAILED)
                self.assertFalse(r.HasField("job"))
                self.assertIn(r.error.code, (3, 9))
                self.assertTrue(r.error.message)
                info = lib.message("google.rpc.ErrorInfo").FromString(r.error.details[0].value)
                self.assertEqual(info.reason, "IMAGE_MISSING" if r.seq == 7 else "IMAGE_NOT_HELD")
            else:
                self.assertEqual((r.state, r.job.state), (pb.STATE_SUCCEEDED,) * 2)
                self.assertEqual([p.text for p in r.job.prompts], [f"thing {r.seq}"])
                self.assertEqual(r.masks_omitted, False)
        batch = self.get(name)
        self.assertEqual((batch.counts.succeeded, batch.counts.refused, batch.counts.queued), (n - 2, 2, 0))
        self.assertFalse(batch.HasField("estimated_finish_time"))
        self.assertEqual([r.seq for _, r in results(self.stub, name)], [r.seq for r in found], "the order stays")

    def test_a_broken_stream_goes_on_where_it_was(self):
        name, n = self.create(), 200
        submit_all(self.stub, name, n)
        found, token = [], ""
        for step in (1, 50, 64, 3, 1000):
            stream = results(self.stub, name, token)
            for _ in range(step):
                token, result = next(stream, (token, None))
                if not result:
                    break
                found.append(result.seq)
            stream.close()
        self.assertEqual(sorted(found), list(range(1, n + 1)))
        self.assertEqual(list(results(self.stub, name, token)), [])

    def lose_ends(self, name, n, then=()):
        """What a fail-over does to the list of ends: the last n are gone, and these of the jobs have ended anew."""
        key = f"pseg:{{default}}:batch_done:default:{name[8:]}"
        lost = self.cluster.redis_cli("LRANGE", key, -n, -1).splitlines()
        ended = [lost[i].split(" ", 2) for i in then]
        script = ("redis.call('LTRIM', KEYS[1], 0, -1 - ARGV[1]) "
                  "if ARGV[2] then redis.call('RPUSH', KEYS[1], unpack(ARGV, 2)) end")
        self.cluster.redis_cli("EVAL", script, 1, key, n,
                               *(f"{state} {int(ms) + 5000} {rest}" for state, ms, rest in ended))
        return lost, key

    def test_ends_that_a_fail_over_took_back_are_told_again(self):
        for then in ((4, 3, 2, 1, 0), (4, 3, 2)):  # filled with others; not reached yet
            with self.subTest(then=then):
                name = self.create()
                s = Submitter(self.stub, name)
                s.send_to(10)
                opened = self.stub.StreamBatchResults(pb.StreamBatchResultsRequest(name=name), timeout=4 * lib.CALL_S)
                told, token = [], ""
                while len(told) < 10:
                    m = next(opened)
                    self.assertFalse(m.rewound)
                    if m.HasField("result"):
                        told.append(m.result.seq)
                        token = m.resume_token
                lost, key = self.lose_ends(name, 5, then)
                resumed = self.stub.StreamBatchResults(
                    pb.StreamBatchResultsRequest(name=name, resume_token=token), timeout=4 * lib.CALL_S)
                again = []
                while len(again) < 5 + len(then):
                    m = next(resumed)
                    self.assertEqual(m.rewound, not again and m.HasField("result"), "it is said once")
                    if m.HasField("result"):
                        again.append(m.result.seq)
                for i in sorted(set(range(5)) - set(then)):
                    self.cluster.redis_cli("RPUSH", key, lost[i])
                s.seal()
                again += [m.result.seq for m in resumed if m.HasField("result")]
                self.assertEqual(again[:5], told[:5])
                self.assertEqual(sorted(again), list(range(1, 11)), "none is missed")
                rest = list(opened)
                self.assertEqual(sum(m.rewound for m in rest), 1)
                self.assertEqual([m.result.seq for m in rest if m.HasField("result")], again)
                self.assertFalse(any(m.rewound for m in self.stub.StreamBatchResults(
                    pb.StreamBatchResultsRequest(name=name, resume_token=rest[-1].resume_token), timeout=lib.CALL_S)))

    def test_results_come_while_items_are_sent(self):
        name = self.create()
        stream = results(self.stub, name)
        s = Submitter(self.stub, name)
        for seq in range(1, 6):
            s.put(item(seq))
            self.assertEqual(next(stream)[1].seq, seq)
        s.seal()
        self.assertEqual(list(stream), [])

    def test_the_counts_are_told_while_nothing_ends(self):
        name = self.create()
        call = self.stub.StreamBatchResults(pb.StreamBatchResultsRequest(name=name), timeout=lib.CALL_S)
        self.assertEqual((next(call).progress.next_seq, next(call).progress.next_seq), (1, 1))
        call.cancel()

    def test_mistakes_are_named(self):
        name = self.create()
        for request, code, reason, field in (
                (dict(name="x"), "INVALID_ARGUMENT", "NAME_INVALID", "name"),
                (dict(name="batches/none"), "NOT_FOUND", "BATCH_NOT_FOUND", None),
                (dict(name=name, resume_token="x"), "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", "resume_token"),
                (dict(name=name, resume_token="1"), "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", "resume_token"),
                (dict(name=name, format=pb.MaskFormat(threshold=2)), "INVALID_ARGUMENT", "THRESHOLD_OUT_OF_RANGE",
                 "format.threshold")):
            found = lib.failure(self.stub.StreamBatchResults, pb.StreamBatchResultsRequest(**request))
            self.assertFails(found, code, reason, field)

    def test_cancelling_keeps_what_is_done(self):
        name, n = self.create(), 200
        self.worker.signal(19)  # SIGSTOP: what it holds is cancelled when its lease ends, or by itself
        try:
            submit_all(self.stub, name, n)
            batch = self.stub.CancelBatch(pb.CancelBatchRequest(name=name), timeout=lib.CALL_S)
            self.assertTrue(batch.sealed and batch.cancel_requested)
            # All but what the worker held when it stopped; before that it would be a race between the two.
            lib.until("the cancelling", lambda: self.get(name).counts.cancelled > n // 2)
        finally:
            self.worker.signal(18)
        states = [r.state for _, r in results(self.stub, name)]
        self.assertEqual(len(states), n)
        self.assertGreater(states.count(pb.STATE_CANCELLED), n // 2)
        self.assertLessEqual(set(states), {pb.STATE_CANCELLED, pb.STATE_SUCCEEDED})
        counts = self.get(name).counts
        self.assertEqual((counts.cancelled, counts.succeeded, counts.queued),
                         (states.count(pb.STATE_CANCELLED), states.count(pb.STATE_SUCCEEDED), 0))
        s = Submitter(self.stub, name)
        s.put(item(n + 1))
        self.assertFails(s.failure(), "FAILED_PRECONDITION", "BATCH_SEALED", "item.seq")

    def test_a_scheduler_killed_in_the_middle_loses_nothing(self):
        name, n = self.create(), 1500
        found, token, s, killed = [], "", None, 0
        second = None
        while len(found) < n:
            second = second or self.cluster.scheduler("--default-model", "empty")
            stub = self.cluster.stub(second, SERVICE)
            try:
                s = Submitter(stub, name)
                thread = threading.Thread(target=lambda s=s: self.send_and_seal(s, n), daemon=True)
                thread.start()
                for token, result in results(stub, name, token):
                    found.append(result.seq)
                    if len(found) > 300 * (killed + 1) and killed < 3:
                        killed += 1
                        second.kill()
                        second = None
            except grpc.RpcError as e:
                self.assertEqual(e.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(killed, 3)
        self.assertEqual(sorted(found), list(range(1, n + 1)))
        self.assertEqual(self.get(name).counts.succeeded, n)

    @staticmethod
    def send_and_seal(s, n):
        try:
            s.send_to(n)
            s.seal()
        except grpc.RpcError:
            pass  # killed

    def test_a_reader_that_reads_nothing_is_sent_away(self):
        name = self.create()
        submit_all(self.stub, name, 500, lambda seq: item(seq, job=lib.spec(IMAGE, ["x" * 1000] * 64)))
        lib.until("done", lambda: self.get(name).counts.queued == 0)
        call = self.stub.StreamBatchResults(pb.StreamBatchResultsRequest(name=name), timeout=4 * lib.CALL_S)
        next(call)
        lib.until("sent away", lambda: "has read no result" in self.scheduler.log())
        with self.assertRaises(grpc.RpcError) as failed:
            list(call)
        self.assertEqual(failed.exception.code(), grpc.StatusCode.CANCELLED)

    def test_the_load_generator(self):
        out = subprocess.run([lib.BIN / "pseg", "bench", "service", "--server", self.scheduler.target, "--image",
                              "docs/example/scene.png", "--jobs", "300", "--batch", "--json"], capture_output=True,
                             timeout=4 * lib.CALL_S, check=False)
        self.assertEqual(out.returncode, 0, out.stderr)
        told = json.loads(out.stdout)
        self.assertEqual((told["jobs"], told["failed"]), (300, 0))
        self.assertGreaterEqual(told["items_per_s"], told["jobs_per_s"])
        self.assertGreater(told["jobs_per_s"], 0)

    def test_masks_come_along(self):
        """So many that one answer of the queue does not hold them, in order, and broken off in between."""
        self.cluster.worker("scenes")
        name, n = self.create(), 60
        phrases = ("the small red circle", "the large blue square")
        submit_all(self.stub, name, n, lambda seq: item(seq, job=lib.spec(lib.SCENE, phrases, model="scenes")))
        form = pb.MaskFormat(encoding=pb.MASK_ENCODING_COCO_RLE)
        stream = results(self.stub, name, format=form)
        found = [next(stream) for _ in range(n // 2)]
        stream.close()
        found += results(self.stub, name, found[-1][0], format=form)
        self.assertEqual(sorted(r.seq for _, r in found), list(range(1, n + 1)))
        for _, r in found:
            self.assertEqual([m.prompt_index for m in r.masks], [0, 1])
            self.assertEqual(len(r.job.results), 2)
            self.assertEqual([m.data for m in r.masks], [m.data for m in found[0][1].masks])
            self.assertTrue(all(m.data for m in r.masks))
            self.assertFalse(r.masks_omitted)
        for _, r in found[::n // 3]:
            apart = self.jobs.FetchMasks(pb.FetchMasksRequest(name=r.job.name, format=form), timeout=lib.CALL_S)
            self.assertEqual([m.mask.data for m in apart], [m.data for m in r.masks])

    def test_a_batch_costs_few_calls(self):
        name, n = self.create(), 500
        form = pb.MaskFormat(encoding=pb.MASK_ENCODING_COCO_RLE)
        with self.cluster.count_calls() as calls:
            submit_all(self.stub, name, n)
            self.assertEqual(len(list(results(self.stub, name, format=form))), n)
        for function, most in (("submit_items", n / 2), ("claim", n / 4), ("publish", n / 2), ("batch_done", n / 4)):
            self.assertLess(calls[function], most, function)
        self.assertEqual(calls["masks"], 0)

    def test_masks_that_are_gone_are_left_out(self):
        name = self.create()
        submit_all(self.stub, name, 3)
        form = pb.MaskFormat(encoding=pb.MASK_ENCODING_COCO_RLE)
        _, (_, second), _ = results(self.stub, name, format=form)
        self.assertEqual(len(second.masks), 1)
        job = second.job.name[5:]
        for key in self.cluster.redis_cli("KEYS", f"pseg:{{default}}:*:{job[:30]}*").splitlines():
            for field in self.cluster.redis_cli("HKEYS", key).splitlines():
                if field == "mask0" or field == f"m{job[30:]}.0":
                    self.cluster.redis_cli("HDEL", key, field)
        found = [r for _, r in results(self.stub, name, format=form)]
        self.assertEqual([(r.masks_omitted, len(r.masks)) for r in found], [(False, 1), (True, 0), (False, 1)])


class FullQueue(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty", "--max-jobs", "20", "--stall-ms", "60s")
        cls.stub = cluster.stub(cls.scheduler, SERVICE)

    def test_the_window_stands_still_until_there_is_room(self):
        name = self.stub.CreateBatch(pb.CreateBatchRequest(batch_id="full"), timeout=lib.CALL_S).name
        s = Submitter(self.stub, name)
        for seq in range(1, 301):
            s.put(item(seq))
        while s.next_seq < 21:
            s.receive()
        self.assertEqual(s.next_seq, 21)
        with self.assertRaises(queue.Empty):
            s.answers.get(timeout=1)
        self.cluster.worker("empty")
        s.put(SEAL)
        while not s.receive().sealed:
            pass
        self.assertEqual(s.next_seq, 301)
        self.assertIsNone(s.receive())

        def counts():
            return self.stub.GetBatch(pb.GetBatchRequest(name=name), timeout=lib.CALL_S).counts
        lib.until("all done", lambda: counts().succeeded == 300)
        self.assertEqual(counts().queued, 0)

    def test_what_is_held_for_a_client_is_bounded(self):
        """A hundred large items come while there is room for none: they wait at the client's end."""
        name = self.stub.CreateBatch(pb.CreateBatchRequest(), timeout=lib.CALL_S).name
        lib.until("the other test's jobs are done", lambda: self.cluster.redis_cli("ZCARD", "pseg:{default}:live") == "0")
        alone = self.cluster.scheduler("--default-model", "nobody", "--max-jobs", "1")
        jobs = lib.create(self.cluster.stub(alone))
        self.assertEqual(jobs.state, pb.STATE_QUEUED)
        picture = lib.png(8, 8) + bytes(2 << 20)
        s = Submitter(self.cluster.stub(alone, SERVICE), name)
        before = self.rss_mib(alone)
        for seq in range(1, 101):
            s.put(item(seq, job=lib.spec(picture)))
        with self.assertRaises(queue.Empty):
            s.answers.get(timeout=3)
        self.assertLess(self.rss_mib(alone) - before, 100, "MiB, of 200 that the client has to send")
        s.close()
        lib.until("it is given back", lambda: self.rss_mib(alone) - before < 60)
        self.assertEqual(self.stub.GetBatch(pb.GetBatchRequest(name=name), timeout=lib.CALL_S).next_seq, 1)

    @staticmethod
    def rss_mib(process):
        with open(f"/proc/{process.child.pid}/status", encoding="ascii") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) / 1024


class Tenants(lib.Test):
    @classmethod
    def setup(cls, cluster):
        keys, tenants = cluster.folder / "keys", cluster.folder / "tenants"
        keys.write_text("".join(f"{hashlib.sha256(t.encode()).hexdigest()} {t}\n" for t in ("alice", "bob")))
        tenants.write_text("bob jobs=5\n")
        cls.scheduler = cluster.scheduler("--default-model", "empty", "--keys", keys, "--tenants", tenants)
        cls.stub = cluster.stub(cls.scheduler, SERVICE)
        cls.alice, cls.bob = ([("authorization", f"Bearer {t}")] for t in ("alice", "bob"))

    def create(self, who, batch_id):
        return self.stub.CreateBatch(pb.CreateBatchRequest(batch_id=batch_id), timeout=lib.CALL_S, metadata=who).name

    def test_a_batch_is_its_tenants(self):
        name = self.create(self.alice, "mine")
        header = pb.SubmitJobsRequest(header=pb.SubmitHeader(batch=name))
        for found in (lib.failure(self.stub.GetBatch, pb.GetBatchRequest(name=name), metadata=self.bob),
                      lib.failure(self.stub.CancelBatch, pb.CancelBatchRequest(name=name), metadata=self.bob),
                      lib.failure(self.stub.SubmitJobs, iter([header]), metadata=self.bob),
                      lib.failure(self.stub.StreamBatchResults, pb.StreamBatchResultsRequest(name=name),
                                  metadata=self.bob)):
            self.assertFails(found, "NOT_FOUND", "BATCH_NOT_FOUND")
        listed = self.stub.ListBatches(pb.ListBatchesRequest(), timeout=lib.CALL_S, metadata=self.bob).batches
        self.assertNotIn(name, [b.name for b in listed])
        his = self.stub.CreateBatch(pb.CreateBatchRequest(batch_id="mine", labels={"of": "bob"}), timeout=lib.CALL_S,
                                    metadata=self.bob)
        self.assertEqual(dict(his.labels), {"of": "bob"}, "the same id, another batch")

    def test_a_tenants_limit_holds_its_stream_back(self):
        name = self.create(self.bob, "limited")
        s = Submitter(self.stub, name, metadata=self.bob)
        for seq in range(1, 41):
            s.put(item(seq))
        while s.next_seq < 6:
            s.receive()
        self.assertEqual(s.next_seq, 6)
        with self.assertRaises(queue.Empty):
            s.answers.get(timeout=1)
        # Another tenant's goes on beside it.
        other = Submitter(self.stub, self.create(self.alice, "free"), metadata=self.alice)
        other.send_to(40)
        other.seal()
        self.cluster.worker("empty")
        s.put(SEAL)
        while not s.receive().sealed:
            pass
        self.assertEqual(s.next_seq, 41)


if __name__ == "__main__":
    lib.main()
