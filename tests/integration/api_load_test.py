#!/usr/bin/env python3
"""2,000 jobs through 16 connections, waited for at once: every one ends well and exactly once. The
sanitizer build of this once crashed, where the second look of a waiter found its job settled."""
import collections
import threading

import lib_pseg as lib
from lib_pseg import pb

CLIENTS, JOBS = 16, 125


class Load(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty")
        cls.stub = cluster.stub(cls.scheduler)
        cls.workers = [cluster.worker("empty") for _ in range(2)]

    def test_many_jobs_at_once(self):
        digest = lib.create(self.stub).image_sha256
        ended, faults, mutex = collections.Counter(), [], threading.Lock()

        def client(number):
            stub = self.cluster.stub(self.scheduler)
            try:
                # Half by Segment, one after the other, so that the job's end and the first look at it race;
                # half by CreateJob and two WaitJobs, all at once.
                segments = [stub.Segment(pb.SegmentRequest(
                    job=lib.spec(digest, phrases=[f"{number} {i}"])), timeout=lib.START_S) for i in range(JOBS // 2)]
                made = [stub.CreateJob.future(pb.CreateJobRequest(
                    job=lib.spec(digest, phrases=[f"{number} {i}"])), timeout=lib.START_S) for i in range(JOBS - JOBS // 2)]
                waits = [stub.WaitJob.future(pb.WaitJobRequest(name=m.result().name), timeout=lib.START_S)
                         for m in made for _ in range(2)]
                jobs = {}
                for reply in segments:
                    jobs[reply.job.name] = reply.job.state
                    assert len(reply.masks) == 1
                for reply in waits:
                    jobs[reply.result().name] = reply.result().state
                with mutex:
                    ended.update(jobs.values())
                assert len(jobs) == JOBS
            except Exception as e:  # noqa: BLE001  (told by the main thread)
                with mutex:
                    faults.append(repr(e))
        threads = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(faults, [])
        self.assertEqual(ended, {pb.STATE_SUCCEEDED: CLIENTS * JOBS})
        self.assertEqual([p.stop() for p in (self.scheduler, *self.workers)], [0, 0, 0])


if __name__ == "__main__":
    lib.main()
