#!/usr/bin/env python3
"""pseg-worker on a device that hangs, fails or takes the process with it, by a library in front of OpenCL
(broken_cl.c): the job is tried again by a new process, the others that were held are not charged.

    broken_device_test.py BIN DESCRIPTORS LIBRARY"""
import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))
import lib_metrics  # noqa: E402
import lib_pseg as lib  # noqa: E402
from lib_pseg import pb  # noqa: E402

LIBRARY = pathlib.Path(sys.argv[3]).resolve()


def ready_id(worker):
    return worker.ready.read_text()


class Broken(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.order = cluster.folder / "order"
        cls.scheduler = cluster.scheduler("--default-model", "scenes")
        cls.stub = cluster.stub(cls.scheduler)

    def worker(self, *args):
        self.cluster.count += 1
        ready = self.cluster.folder / f"broken{self.cluster.count}.ready"
        p = self.cluster._start(f"broken{self.cluster.count}", [
            "env", f"LD_PRELOAD={LIBRARY}", f"PSEG_TEST_BROKEN_CL={self.order}", lib.BIN / "pseg-worker", "--redis",
            f"unix:{self.cluster.socket}", "--model", "scenes", "--lease-ms", "2s", "--ready-file", ready, *args],
            ready=ready)
        p.wait_ready()
        return p

    def tell(self, order):
        whole = self.order.with_suffix(".new")
        whole.write_text(order)
        whole.rename(self.order)

    @staticmethod
    def pid(worker):
        """Of the process that works: the parent's child where there is one."""
        pid = worker.child.pid
        found = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(found[0]) if found else pid

    def jobs_at_once(self, worker, order, n=3, images=None):
        """A worker that is ready (so the launches of its warming up are over) finds n jobs and the order."""
        os.kill(self.pid(worker), signal.SIGSTOP)
        jobs = [lib.create(self.stub, *([images[k]] if images else [])) for k in range(n)]
        self.tell(order)
        os.kill(self.pid(worker), signal.SIGCONT)
        return jobs

    def attempts(self, jobs):
        return [lib.wait(self.stub, j.name).attempts for j in jobs]

    def check(self, order, log):
        worker = self.worker("--respawn", "--watchdog-ms", "1s")
        jobs = self.jobs_at_once(worker, order, images=[lib.png(64, 64, n) for n in range(3)])
        self.assertEqual(sorted(self.attempts(jobs)), [1, 1, 2], "one is charged, the others are not")
        self.assertFalse(self.order.exists())
        self.assertIn(log, worker.log())
        self.assertEqual(worker.stop(), 0)

    def test_a_device_that_hangs(self):
        self.check("hang", "hangs: no progress on the device for ")

    def test_a_device_that_fails(self):
        self.check("fail", "the device failed")

    def jobs_of(self, n, first):
        return [lib.create(self.stub, lib.png(64, 64, first + k)) for k in range(n)]

    def ups(self, worker):
        """Of each device, whether it is in use."""
        found = lib_metrics.families(worker)["pseg_worker_device_up"].samples
        return sorted(s.value for s in found)

    def test_one_device_of_two_that_fails(self):
        """It is taken out, by name; the other one and the process go on, until it fails, too."""
        worker = self.worker("--device", "cpu/2", "--threads", 2, "--metrics-listen", "127.0.0.1:0")
        pid = self.pid(worker)
        jobs = self.jobs_at_once(worker, "fail", images=[lib.png(64, 64, 100 + n) for n in range(3)])
        self.assertEqual(sorted(self.attempts(jobs)), [1, 1, 2], "one is charged, the others are not")
        self.assertRegex(worker.log(), r"the device failed: .* \(\d+:\d+/2\.[01]\): .*clEnqueue")
        self.assertEqual(self.ups(worker), [0, 1])
        self.assertEqual(lib_metrics.get(worker, "/readyz")[0], 200)
        self.assertEqual(self.attempts(self.jobs_of(4, 110)), [1] * 4)
        record = self.cluster.redis_cli("--raw", "HVALS", self.cluster.redis_cli(
            "--raw", "KEYS", "*:worker:" + ready_id(worker)).strip())
        self.assertRegex(record, r"/2\.0\).*, .*/2\.1\)")
        self.assertEqual(record.count("): failed"), 1)
        self.assertEqual(self.pid(worker), pid, "the same process")
        self.jobs_at_once(worker, "fail", images=[lib.png(64, 64, 120 + n) for n in range(3)])
        self.assertNotEqual(worker.wait(), 0)
        self.assertIn("this process ends so that a new one can start afresh", worker.log())

    def decoding(self, worker):
        """The processes that wait for the next image."""
        def children(pid):
            return [int(c) for c in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        decoders = [c for c in children(self.pid(worker))
                    if pathlib.Path(f"/proc/{c}/comm").read_text() == "pseg-decode\n"]
        return [c for d in decoders for c in children(d)]

    def check_batch(self, order, log):
        """Jobs on one image, held until all are claimed, go to the device together: none of them is charged."""
        worker = self.worker("--respawn", "--watchdog-ms", "1s", "--decoders", 2)
        stopped = lib.until("two decoders", lambda: len(self.decoding(worker)) == 2 and self.decoding(worker))
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        jobs = [lib.create(self.stub, lib.png(64, 64, 77), [f"a star {k}"]) for k in range(3)]
        lib.until("all are held", lambda: all(
            self.stub.GetJob(pb.GetJobRequest(name=j.name), timeout=lib.CALL_S).state == pb.STATE_RUNNING for j in jobs))
        self.tell(order)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        self.assertEqual(self.attempts(jobs), [1, 1, 1])
        self.assertFalse(self.order.exists())
        self.assertIn(log, worker.log())
        self.assertEqual(worker.stop(), 0)

    def test_a_device_that_hangs_with_several_jobs(self):
        self.check_batch("hang", "hangs: no progress on the device for ")

    def test_a_device_that_fails_with_several_jobs(self):
        self.check_batch("fail", "was on the device with others")

    def test_a_device_that_kills(self):
        """Of three that a dead worker held none is charged; the killer is not in the same mood twice here."""
        worker = self.worker("--respawn")
        jobs = self.jobs_at_once(worker, "kill")
        self.assertEqual(self.attempts(jobs), [1, 1, 1])
        self.assertIn("ended with signal 9, a new one starts", worker.log())
        self.assertEqual(worker.stop(), 0)

    def test_a_stop_that_cannot_wait(self):
        """The job on the device hangs: it is handed back when the grace period is over, or at a second signal."""
        for second in (False, True):
            worker = self.worker("--grace-ms", "60s" if second else "300ms", "--watchdog-ms", "0")
            job, = self.jobs_at_once(worker, "hang", 1)
            lib.until("the job running", lambda: not self.order.exists())
            worker.signal(signal.SIGTERM)
            if second:
                lib.until("the stop", lambda worker=worker: "worker stopping" in worker.log())
                worker.signal(signal.SIGTERM)
            self.assertEqual(worker.wait(20), 0)
            held = self.stub.GetJob(pb.GetJobRequest(name=job.name), timeout=lib.CALL_S)
            self.assertEqual((held.state, held.attempts), (pb.STATE_QUEUED, 0))
            again = self.worker()
            self.assertEqual(lib.wait(self.stub, job.name).attempts, 1)
            self.assertEqual(again.stop(), 0)


if __name__ == "__main__":
    sys.argv[1:] = sys.argv[1:3]
    lib.main()
