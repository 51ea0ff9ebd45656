#!/usr/bin/env python3
"""Workers that share encoded images through Redis: a further phrase needs neither image nor encoder, whoever runs
it; other tenants' images are not found; what lies there is bounded, ends, and may be anything.

    api_features_test.py BIN DESCRIPTORS"""
import re

import lib_pseg as lib
from lib_pseg import pb

BUDGET = 64 << 20


class Features(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "scenes")
        cls.stub = cluster.stub(cls.scheduler)

    def worker(self, *args):
        """One that keeps nothing itself."""
        return self.cluster.worker("scenes", "--kept-features", 0, "--feature-cache", BUDGET, *args)

    def run_job(self, image, phrase):
        job = lib.wait(self.stub, lib.create(self.stub, image, [phrase]).name)
        self.assertEqual((job.state, job.attempts), (pb.STATE_SUCCEEDED, 1))
        return job

    @staticmethod
    def stages(job):
        return [s.stage for s in job.stages]

    def keys(self):
        return self.cluster.redis_cli("--scan", "--pattern", "pseg:{default}:features:*").split()

    def stored(self, n):
        return lib.until("features in Redis", lambda: len(self.keys()) == n and self.keys())

    def test_the_next_worker_needs_no_encoder(self):
        self.cluster.redis_cli("FLUSHALL")
        image = lib.png(64, 64, 1)
        one = self.worker()
        first = self.run_job(image, "a star")
        self.assertIn("encode_image", self.stages(first))
        key, = self.stored(1)
        self.assertEqual(one.stop(), 0)
        other = self.worker()
        second = self.run_job(image, "a ring")
        self.assertEqual(self.stages(second), ["queue", "fetch_features", "encode_text", "decode_mask"])
        again = self.run_job(image, "a star")
        self.assertEqual((again.image_width, again.image_height), (first.image_width, first.image_height))
        # float16 features move a mask's edge by little.
        self.assertLessEqual(abs(again.results[0].area_px - first.results[0].area_px), 64)
        self.assertAlmostEqual(again.results[0].predicted_iou, first.results[0].predicted_iou, delta=0.01)

        for k in (key, "pseg:{default}:feature_use", "pseg:{default}:feature_bytes"):
            self.assertGreater(int(self.cluster.redis_cli("PTTL", k)), 0, k)
        size = int(self.cluster.redis_cli("STRLEN", key))
        self.assertEqual(int(self.cluster.redis_cli("GET", "pseg:{default}:feature_bytes")), size)
        # Something else in its place, of the right size or not, costs the encoding and no more.
        for junk in ("x", "x" * size):
            self.cluster.redis_cli("SET", key, junk)
            self.assertIn("encode_image", self.stages(self.run_job(image, "a star")))
        self.assertIn("features of no use", other.log())
        self.assertEqual(other.stop(), 0)

    def test_the_budget_holds(self):
        self.cluster.redis_cli("FLUSHALL")
        worker = self.worker()
        self.run_job(lib.png(64, 64, 2), "a star")
        size = int(self.cluster.redis_cli("STRLEN", self.stored(1)[0]))
        self.assertEqual(worker.stop(), 0)
        worker = self.cluster.worker("scenes", "--kept-features", 0, "--feature-cache", 2 * size)
        for n in range(3, 8):
            self.run_job(lib.png(64, 64, n), "a star")
            lib.until("the budget", lambda: len(self.keys()) <= 2)
        self.stored(2)
        self.assertEqual(int(self.cluster.redis_cli("GET", "pseg:{default}:feature_bytes")), 2 * size)
        self.assertIn("fetch_features", self.stages(self.run_job(lib.png(64, 64, 7), "a ring")))
        self.assertIn("encode_image", self.stages(self.run_job(lib.png(64, 64, 3), "a ring")))
        self.assertEqual(worker.stop(), 0)

    def test_the_key_names_tenant_model_and_content(self):
        self.cluster.redis_cli("FLUSHALL")
        worker = self.worker()
        job = self.run_job(lib.png(64, 64, 9), "a star")
        key, = self.stored(1)
        self.assertRegex(key, r"^pseg:\{default\}:features:" + job.receipt.model_digest +
                         r":[0-9a-f]{16}:fp32:\d+x\d+:default:[0-9a-f]{64}$")
        self.assertEqual(worker.stop(), 0)
        worker = self.worker("--share-features")
        self.run_job(lib.png(64, 64, 9), "a star")
        shared, = [k for k in self.stored(2) if k != key]
        self.assertTrue(re.fullmatch(re.escape(key.replace(":default:", ":")), shared), shared)
        self.assertEqual(worker.stop(), 0)

    def test_none_is_kept_unless_asked(self):
        self.cluster.redis_cli("FLUSHALL")
        worker = self.cluster.worker("scenes")
        self.run_job(lib.png(64, 64, 10), "a star")
        self.assertEqual(worker.stop(), 0)
        self.assertEqual(self.keys(), [])


if __name__ == "__main__":
    lib.main()
