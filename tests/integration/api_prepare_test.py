#!/usr/bin/env python3
"""A worker makes several images ready at once: one that takes long keeps no other from the device. And what
it tells of its start.

    api_prepare_test.py BIN DESCRIPTORS"""
import os
import pathlib
import re
import signal
import tempfile

import lib_pseg as lib
from lib_pseg import pb


def children(pid):
    return [int(c) for c in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def decoding(worker):
    """For each decoder the process that waits for its next image."""
    decoders = [c for c in children(worker.child.pid)
                if pathlib.Path(f"/proc/{c}/comm").read_text() == "pseg-decode\n"]
    return [c for d in decoders for c in children(d)]


class Prepare(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "scenes")
        cls.stub = cluster.stub(cls.scheduler)

    def state(self, job):
        return self.stub.GetJob(pb.GetJobRequest(name=job.name), timeout=lib.CALL_S).state

    def test_an_image_that_takes_long_holds_up_no_other(self):
        worker = self.cluster.worker("scenes", "--decoders", 2, "--watchdog-ms", 0, "--lease-ms", "10s")
        waiting = lib.until("two decoders", lambda: len(decoding(worker)) == 2 and decoding(worker))
        os.kill(waiting[0], signal.SIGSTOP)  # whoever gets it waits
        jobs = [lib.create(self.stub, lib.png(64, 64, n)) for n in range(4)]
        lib.until("all jobs but one", lambda: sum(self.state(j) == pb.STATE_SUCCEEDED for j in jobs) == 3)
        late, = [j for j in jobs if self.state(j) != pb.STATE_SUCCEEDED]
        self.assertEqual(self.state(late), pb.STATE_RUNNING)
        os.kill(waiting[0], signal.SIGCONT)
        ended = lib.wait(self.stub, late.name)
        self.assertEqual((ended.state, ended.attempts), (pb.STATE_SUCCEEDED, 1))
        self.assertEqual(worker.stop(), 0)

    def test_a_stop_hands_back_what_is_not_ready(self):
        """Both decoders are held: two jobs are being prepared, the others wait, and none is lost."""
        worker = self.cluster.worker("scenes", "--decoders", 2, "--ahead", 4, "--watchdog-ms", 0, "--grace-ms", 0)
        for pid in lib.until("two decoders", lambda: len(decoding(worker)) == 2 and decoding(worker)):
            os.kill(pid, signal.SIGSTOP)
        jobs = [lib.create(self.stub, lib.png(64, 64, n)) for n in range(6)]
        lib.until("one more than can be prepared", lambda: sum(self.state(j) == pb.STATE_RUNNING for j in jobs) > 2)
        self.assertEqual(worker.stop(), 0)
        again = self.cluster.worker("scenes")
        for j in jobs:
            ended = lib.wait(self.stub, j.name)
            self.assertEqual((ended.state, ended.attempts), (pb.STATE_SUCCEEDED, 1))
        self.assertEqual(again.stop(), 0)

    def test_jobs_that_wait_for_one_image_are_handed_back_too(self):
        """Both decoders are held: one job prepares the image, the others wait for it; one of them is cancelled."""
        worker = self.cluster.worker("scenes", "--decoders", 2, "--ahead", 4, "--watchdog-ms", 0, "--grace-ms", 0)
        for pid in lib.until("two decoders", lambda: len(decoding(worker)) == 2 and decoding(worker)):
            os.kill(pid, signal.SIGSTOP)
        image = lib.png(64, 64, 99)
        jobs = [lib.create(self.stub, image, [f"a star {n}"]) for n in range(4)]
        lib.until("all are held", lambda: all(self.state(j) == pb.STATE_RUNNING for j in jobs))
        self.stub.CancelJob(pb.CancelJobRequest(name=jobs[2].name), timeout=lib.CALL_S)
        self.assertEqual(worker.stop(), 0)
        again = self.cluster.worker("scenes")
        for j in jobs[:2] + jobs[3:]:
            ended = lib.wait(self.stub, j.name)
            self.assertEqual((ended.state, ended.attempts), (pb.STATE_SUCCEEDED, 1))
        self.assertEqual(lib.wait(self.stub, jobs[2].name).state, pb.STATE_CANCELLED)
        self.assertEqual(again.stop(), 0)

    def test_programs_are_kept_once_the_worker_is_ready(self):
        """Jobs run meanwhile; the next worker compiles nothing."""
        with tempfile.TemporaryDirectory() as folder:
            kept = lambda: [p.name for p in pathlib.Path(folder).glob("*.clbin*")]
            counts = r"stage=warm_up ms=\d+ programs_compiled=(\d+) programs_cached=(\d+)"
            first = self.cluster.worker("scenes", "--cache", folder)
            compiled, cached = map(int, re.search(counts, first.log()).groups())
            self.assertGreater(compiled, 0)
            self.assertEqual(cached, 0)
            job = lib.create(self.stub)
            self.assertEqual(lib.wait(self.stub, job.name).state, pb.STATE_SUCCEEDED)
            lib.until("all programs kept", lambda: len([k for k in kept() if k.endswith(".clbin")]) >= compiled)
            self.assertEqual(first.stop(), 0)
            self.assertTrue(all(k.endswith(".clbin") for k in kept()), kept())
            second = self.cluster.worker("scenes", "--cache", folder)
            self.assertEqual(re.search(counts, second.log()).groups(), ("0", str(compiled)))
            self.assertEqual(second.stop(), 0)

    def test_the_log_tells_what_a_start_takes(self):
        worker = self.cluster.worker("scenes")
        stages = re.findall(r"engine start stage=(\w+) ms=(\d+)", worker.log())
        self.assertEqual([s[0] for s in stages], ["device", "model", "warm_up", "decoders"])
        total = int(re.search(r"opened in (\d+) ms", worker.log())[1])
        self.assertLessEqual(sum(int(s[1]) for s in stages), total)
        programs = re.search(r"stage=warm_up ms=\d+ programs_compiled=(\d+) programs_cached=(\d+)", worker.log())
        self.assertGreater(sum(map(int, programs.groups())), 0)
        self.assertEqual(worker.stop(), 0)


if __name__ == "__main__":
    lib.main()
