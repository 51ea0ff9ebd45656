#!/usr/bin/env python3
"""Workers that keep encoded images: further phrases on an image go to the worker that has it, and to another when that
one is busy for long or dead.

    api_near_test.py BIN DESCRIPTORS"""
import signal

import lib_pseg as lib
from lib_pseg import pb

FOR_EVER_MS = 60000  # the most that a worker takes


class Near(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "scenes")
        cls.stub = cluster.stub(cls.scheduler)

    def workers(self, *args):
        self.cluster.redis_cli("FLUSHALL")
        return {name: self.cluster.worker("scenes", "--id", name, *args) for name in ("one", "other")}

    def run_job(self, image, phrase):
        job = lib.wait(self.stub, lib.create(self.stub, image, [phrase]).name)
        self.assertEqual(job.state, pb.STATE_SUCCEEDED)
        return job.receipt.worker, "encode_image" in [s.stage for s in job.stages]

    def stop(self, workers):
        for w in workers.values():
            self.assertEqual(w.stop(), 0)

    def test_further_phrases_go_where_the_image_is(self):
        workers = self.workers("--near-ms", FOR_EVER_MS, "--lease-ms", 600000)
        images = [lib.png(64, 64, n) for n in range(4)]
        for image in images:
            holder, is_encoded = self.run_job(image, "a star")
            self.assertTrue(is_encoded)
            for n in range(4):
                self.assertEqual(self.run_job(image, f"ring {n}"), (holder, False))
        # Many at once, of all images in turn: each image was encoded once, and that is over.
        names = [lib.create(self.stub, image, [f"square {n}"]).name for n in range(4) for image in images]
        for name in names:
            self.assertNotIn("encode_image", [s.stage for s in lib.wait(self.stub, name).stages])
        self.stop(workers)

    def test_a_holder_that_is_busy_is_not_waited_for(self):
        workers = self.workers("--near-ms", 200, "--lease-ms", 3600000)
        image = lib.png(64, 64, 20)
        holder, _ = self.run_job(image, "a star")
        workers[holder].signal(signal.SIGSTOP)
        try:
            taker, is_encoded = self.run_job(image, "a ring")
            self.assertNotEqual(taker, holder)
            self.assertTrue(is_encoded)
        finally:
            workers[holder].signal(signal.SIGCONT)
        self.stop(workers)

    def test_a_dead_holder_is_not_waited_for(self):
        workers = self.workers("--near-ms", FOR_EVER_MS, "--lease-ms", 2000)
        image = lib.png(64, 64, 30)
        holder, _ = self.run_job(image, "a star")
        workers.pop(holder).kill()
        taker, is_encoded = self.run_job(image, "a ring")
        self.assertNotEqual(taker, holder)
        self.assertTrue(is_encoded)
        self.assertEqual(self.run_job(image, "a star")[0], taker)
        self.stop(workers)

    def test_nothing_is_marked_if_it_is_off(self):
        workers = self.workers("--near-ms", 0)
        self.run_job(lib.png(64, 64, 40), "a star")
        self.assertEqual(self.cluster.redis_cli("--scan", "--pattern", "pseg:{default}:holder:*").split(), [])
        self.stop(workers)


if __name__ == "__main__":
    lib.main()
