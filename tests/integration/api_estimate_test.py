#!/usr/bin/env python3
"""EstimateJob, and the refusal of deadlines that cannot be met. The test itself is the worker, by the queue's own
functions, so that costs and places are known."""
import json
import subprocess
import time

import lib_pseg as lib
from lib_pseg import pb

COST_S = 200  # so long that no slow machine gets near a deadline


BATCHES = "pseg.v1.BatchService"


def reason_of(status):
    (info,) = [lib.message("google.rpc.ErrorInfo").FromString(any_.value) for any_ in status.details
               if any_.type_url.endswith("ErrorInfo")]
    return info.reason


def in_s(seconds):
    at = time.time() + seconds
    return {"seconds": int(at), "nanos": int(at % 1 * 1e9)}


class Estimates(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.server = cluster.scheduler("--default-model", "empty")
        cls.lenient = cluster.stub(cls.server)
        cls.strict_server = cluster.scheduler("--default-model", "empty", "--refuse-infeasible")
        cls.strict = cluster.stub(cls.strict_server)

    def setUp(self):
        self.cluster.redis_cli("FLUSHDB")

    def estimate(self, stub=None, **kw):
        return (stub or self.lenient).EstimateJob(pb.EstimateJobRequest(**kw), timeout=lib.CALL_S)

    def serve(self, workers=1, cost_s=COST_S):
        """Live workers, and a job that has taken so long."""
        for i in range(workers):
            self.cluster.fcall("register", f"hand{i}", 600000, "empty", "digest", "device", "1", "")
        job = lib.create(self.lenient)
        self.cluster.claim(job.name)
        said = self.cluster.fcall("publish", "hand", job.name[5:], 1, cost_s * 1000000, 1, "", "mask")
        self.assertEqual(said, "SUCCEEDED")

    def test_nothing_is_known(self):
        e = self.estimate(deadline=in_s(1000))
        self.assertEqual((e.model, e.place_in_line, e.jobs_ahead, e.jobs_running, e.workers), ("empty", 1, 0, 0, 0))
        self.assertFalse(any(e.HasField(f) for f in ("compute_cost", "expected_wait", "expected_start_time",
                                                     "expected_finish_time")))
        self.assertEqual(e.deadline_outlook, 0)
        # Nor is a job refused for what is not known: a worker may come.
        self.strict.CreateJob(pb.CreateJobRequest(job=lib.spec(deadline=in_s(1))), timeout=lib.CALL_S)

    def test_places_and_times(self):
        self.serve()
        e = self.estimate()
        self.assertEqual((e.place_in_line, e.workers, e.compute_cost.seconds, e.expected_wait.ToSeconds()),
                         (1, 1, COST_S, 0))
        self.assertLess(abs(e.expected_finish_time.ToNanoseconds() / 1e9 - time.time() - COST_S), 60)
        jobs = [lib.create(self.lenient) for _ in range(4)]
        self.cluster.claim(jobs[0].name)
        e = self.estimate(deadline=in_s(COST_S * 4.5))
        self.assertEqual((e.place_in_line, e.jobs_ahead, e.jobs_running, e.jobs_waiting), (4, 3, 1, 3))
        self.assertEqual(e.expected_wait.ToSeconds(), 4 * COST_S)
        took = e.expected_finish_time.ToMicroseconds() - e.expected_start_time.ToMicroseconds()
        self.assertEqual(took, COST_S * 1000000)
        self.assertEqual(e.deadline_outlook, 2)
        self.assertEqual(self.estimate(deadline=in_s(COST_S * 5.5)).deadline_outlook, 1)
        urgent = self.estimate(priority=1, deadline=in_s(COST_S * 2.5))
        self.assertEqual((urgent.place_in_line, urgent.expected_wait.ToSeconds(), urgent.deadline_outlook,
                          urgent.jobs_waiting), (1, COST_S, 1, 3))
        # Four workers, and one of five jobs must have ended before this one is begun.
        for i in range(1, 4):
            self.cluster.fcall("register", f"hand{i}", 600000, "empty", "digest", "device", "1", "")
        e = self.estimate()
        self.assertEqual((e.workers, e.expected_wait.ToSeconds()), (4, COST_S // 4))

    def test_what_is_wrong_is_told(self):
        for request, code, reason, field in (
                (dict(model="nobody's"), "INVALID_ARGUMENT", "NAME_INVALID", "model"),
                (dict(model="other"), "NOT_FOUND", "MODEL_UNKNOWN", "model"),
                (dict(prompts=65), "INVALID_ARGUMENT", "TOO_MANY_PROMPTS", "prompts"),
                (dict(priority=11), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "priority"),
                (dict(deadline={"seconds": -1}), "INVALID_ARGUMENT", "INVALID_ARGUMENT", "deadline")):
            self.assertFails(lib.failure(self.lenient.EstimateJob, pb.EstimateJobRequest(**request)), code, reason,
                             field)

    def test_a_deadline_that_cannot_be_met_is_refused(self):
        self.serve()
        soon, late = in_s(COST_S / 2), in_s(COST_S * 50)
        # Made where nothing is refused: the same request is no new job.
        first = self.lenient.CreateJob(pb.CreateJobRequest(request_id="again", job=lib.spec(deadline=soon)),
                                       timeout=lib.CALL_S)
        again = self.strict.CreateJob(pb.CreateJobRequest(request_id="again", job=lib.spec(deadline=soon)),
                                      timeout=lib.CALL_S)
        self.assertEqual(again.name, first.name)
        for call, request in ((self.strict.CreateJob, pb.CreateJobRequest(job=lib.spec(deadline=soon))),
                              (self.strict.CreateJob, pb.CreateJobRequest(request_id="new",
                                                                          job=lib.spec(deadline=soon))),
                              (self.strict.Segment, pb.SegmentRequest(job=lib.spec(deadline=soon)))):
            found = self.assertFails(lib.failure(call, request), "FAILED_PRECONDITION", "DEADLINE_INFEASIBLE",
                                     "job.deadline")
            self.assertIsNone(found.retry_s, "the same again fails again")
            self.assertIn("1 jobs wait and 0 run before this one, on 1 workers at 200.000 s each", found.message)
            self.assertRegex(found.metadata["value"], r"^\d{4}-\d\d-\d\dT")
            self.assertLess(found.metadata["value"], found.metadata["limit"])
            self.assertIn(found.metadata["limit"], found.message)
        jobs = self.lenient.ListJobs(pb.ListJobsRequest(states=[pb.STATE_QUEUED]), timeout=lib.CALL_S).jobs
        self.assertEqual([j.name for j in jobs], [first.name], "what was refused left nothing")
        for deadline in (late, None):
            self.strict.CreateJob(pb.CreateJobRequest(job=lib.spec(deadline=deadline)), timeout=lib.CALL_S)

    def batch(self, stub, items):
        """Submits the items; what became of those that ended at once, by number."""
        name = stub.CreateBatch(pb.CreateBatchRequest(), timeout=lib.CALL_S).name
        requests = [pb.SubmitJobsRequest(header=pb.SubmitHeader(batch=name))]
        requests += [pb.SubmitJobsRequest(item=pb.BatchItem(seq=i + 1, job=job)) for i, job in enumerate(items)]
        requests.append(pb.SubmitJobsRequest(seal=pb.SubmitSeal()))
        *_, last = stub.SubmitJobs(iter(requests), timeout=2 * lib.CALL_S)
        self.assertTrue(last.sealed)
        counts = stub.GetBatch(pb.GetBatchRequest(name=name), timeout=lib.CALL_S).counts
        self.assertEqual((counts.failed, counts.queued), (counts.refused, len(items) - counts.refused))
        ended, stream = {}, stub.StreamBatchResults(pb.StreamBatchResultsRequest(name=name), timeout=2 * lib.CALL_S)
        while len(ended) < counts.refused:
            answer = next(stream)
            if answer.HasField("result"):
                ended[answer.result.seq] = answer.result.error
        stream.cancel()
        return ended

    def test_items_that_cannot_be_in_time_are_refused(self):
        self.serve()
        strict = self.cluster.stub(self.strict_server, BATCHES)

        def spec(costs, **kw):
            return lib.spec(deadline=in_s(COST_S * costs) if costs else None, **kw)
        # Each that is taken stands before those behind it: 4 of the first 10 are in time, and so is the first of the
        # last two, behind these 4 and one that has all the time.
        items = [spec(4.5) for _ in range(10)] + [spec(0), spec(6.5), spec(6.5), spec(1.5, model="unknown"),
                                                  spec(1.5, priority=1), spec(1.5, priority=1)]
        self.assertEqual(self.batch(self.cluster.stub(self.server, BATCHES), items).keys(), {14})
        self.cluster.redis_cli("FLUSHDB")
        self.serve()
        ended = self.batch(strict, items)
        self.assertEqual({seq: reason_of(e) for seq, e in ended.items()},
                         {**{seq: "DEADLINE_INFEASIBLE" for seq in (5, 6, 7, 8, 9, 10, 13, 16)}, 14: "MODEL_UNKNOWN"})
        self.assertIn("4 jobs wait and 0 run before this one, on 1 workers at 200.000 s each", ended[5].message)
        self.assertIn("6 jobs wait", ended[13].message)
        self.assertIn("1 jobs wait", ended[16].message)


    def test_top(self):
        self.serve()
        for _ in range(3):
            lib.create(self.lenient)

        def top(*args, status=0):
            p = subprocess.run([lib.BIN / "pseg", "top", "--server", self.server.target, *args], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=lib.START_S, check=False)
            self.assertEqual(p.returncode, status, p.stderr)
            return p.stdout
        self.assertEqual(json.loads(top("--once", "--json")),
                         {"models": [{"name": "empty", "workers": 1, "waiting": 3, "running": 0, "cost_s": COST_S,
                                      "backlog_s": 3 * COST_S}]})
        head, titles, line = top("--once").splitlines()
        self.assertIn(self.server.target, head)
        self.assertEqual(titles.split()[:4], ["model", "workers", "waiting", "running"])
        self.assertEqual(line.split(), ["empty", "1", "3", "0", f"{COST_S}.000", f"{3 * COST_S}.0"])
        # The rate comes with the second view, of the ends between the two.
        first, second = (json.loads(v) for v in top("--json", "--count", "2", "--interval-ms", "100").splitlines())
        self.assertNotIn("ended_per_s", first)
        self.assertEqual((second["succeeded"], second["unsuccessful"], second["ended_per_s"]), (0, 0, 0))
        self.assertIn("ended_per_s", second)
        watching = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", lib.BIN / "pseg", "top", "--json", "--server",
                                     self.server.target, "--interval-ms", "100"], stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, text=True)
        self.addCleanup(watching.wait)
        self.addCleanup(watching.kill)
        self.addCleanup(watching.stdout.close)
        ended = 0
        for view in map(json.loads, watching.stdout):
            if view.get("unsuccessful"):
                break
            if "ended_per_s" in view and ended < 2:  # it watches: what ends now is counted
                jobs = self.lenient.ListJobs(pb.ListJobsRequest(states=[pb.STATE_QUEUED]), timeout=lib.CALL_S).jobs
                self.lenient.CancelJob(pb.CancelJobRequest(name=jobs[0].name), timeout=lib.CALL_S)
                ended += 1
        self.assertGreater(ended, 0)


if __name__ == "__main__":
    lib.main()
