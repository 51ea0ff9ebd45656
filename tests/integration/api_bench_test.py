#!/usr/bin/env python3
"""pseg bench service against a real scheduler and a worker of the empty model: what it counts, and that it does
not spare a service that stands still the jobs which came meanwhile."""
import json
import signal
import subprocess
import threading
import unittest
import xml.etree.ElementTree

import lib_pseg as lib
from lib_pseg import pb


class Bench(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty")
        cls.stub = cluster.stub(cls.scheduler)
        cls.worker = cluster.worker()

    def begin(self, *args):
        return subprocess.Popen([lib.BIN / "pseg-bench", "service", "--server", self.scheduler.target, "--image",
                                 "docs/example/scene.png", "--json", *map(str, args)], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def bench(self, *args, status=0):
        p = self.begin(*args)
        out, err = p.communicate(timeout=120)
        self.assertEqual(p.returncode, status, err)
        return json.loads(out), err

    def submitted(self):
        return int(self.cluster.redis_cli("hget", "pseg:{default}:count", "submitted") or 0)

    def test_a_closed_loop(self):
        before = self.submitted()
        d, _ = self.bench("--jobs", 200, "--clients", 8)
        self.assertEqual(self.submitted() - before, 201, "and one that counts nowhere")
        self.assertEqual((d["loop"], d["jobs"], d["clients"], d["failed"]), ("closed", 200, 8, 0))
        self.assertAlmostEqual(d["jobs_per_s"], 200 / d["seconds"], delta=0.01 * d["jobs_per_s"])
        told = list(d["latency_ms"].values())
        self.assertEqual(told, sorted(told))
        self.assertEqual(sum(n for _, n in d["histogram"]), 200)
        self.assertEqual(sum(w["jobs"] for w in d["windows"]), 200)

    def test_distinct_images(self):
        images = int(self.cluster.redis_cli("zcard", "pseg:{default}:images"))
        self.bench("--jobs", 20, "--clients", 2, "--distinct")
        self.assertEqual(int(self.cluster.redis_cli("zcard", "pseg:{default}:images")) - images, 21)

    def test_an_image_by_its_digest(self):
        images = int(self.cluster.redis_cli("zcard", "pseg:{default}:images"))
        d, _ = self.bench("--jobs", 20, "--clients", 2, "--by-digest")
        self.assertEqual((d["jobs"], d["failed"]), (20, 0))
        self.assertLessEqual(int(self.cluster.redis_cli("zcard", "pseg:{default}:images")) - images, 1)
        refused = self.begin("--by-digest", "--distinct")
        out, err = refused.communicate(timeout=60)
        self.assertEqual(refused.returncode, 2)
        self.assertIn("--distinct sends an image with each job, --by-digest with none; give one", out + err)

    def test_an_open_loop_sends_at_its_rate(self):
        for arrivals, least in (("poisson", 1.8), ("even", 2.9)):  # 3 s; Poisson: less than 5 standard deviations fewer
            d, _ = self.bench("--rate", 50, "--jobs", 150, "--clients", 64, "--arrivals", arrivals)
            self.assertEqual((d["loop"], d["arrivals"], d["jobs"]), ("open", arrivals, 150))
            self.assertGreater(d["seconds"], least)

    def test_a_standstill_is_not_hidden(self):
        """For a second and a half nothing is answered, and a job is due every 20 ms: of these, and not of as many as
        there are clients, the time is told."""
        p = self.begin("--rate", 50, "--arrivals", "even", "--jobs", 250, "--clients", 4)
        begun = self.submitted()
        lib.until("the load", lambda: self.submitted() > begun + 20)
        self.scheduler.signal(signal.SIGSTOP)
        threading.Event().wait(1.5)  # the standstill itself
        self.scheduler.signal(signal.SIGCONT)
        out, err = p.communicate(timeout=120)
        self.assertEqual(p.returncode, 0, err)
        d = json.loads(out)
        slow = sum(n for ms, n in d["histogram"] if ms > 300)
        self.assertGreater(slow, 40, "jobs that were due in the standstill")
        self.assertGreater(d["latency_ms"]["max"], 1200)
        self.assertGreater(d["late"], 30)

    def test_until_it_is_stable(self):
        d, _ = self.bench("--until-stable", 90, "--window-s", 0.5, "--clients", 2)
        self.assertTrue(d["stable"])
        self.assertEqual(d["jobs"], sum(w["jobs"] for w in d["windows"][-3:]), "of the last three windows")
        d, err = self.bench("--until-stable", 0.000001, "--window-s", 0.1, "--max-windows", 4, "--clients", 2, status=4)
        self.assertFalse(d["stable"])
        self.assertEqual(len(d["windows"]), 4)
        self.assertIn("not stable within", err)

    def test_the_plot(self):
        path = self.cluster.folder / "latency.svg"
        self.bench("--jobs", 100, "--plot", path)
        root = xml.etree.ElementTree.parse(path).getroot()
        texts = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
        self.assertIn("99 %", texts)
        self.assertIn("latency of 100 jobs, by the share that is no slower", texts)

    def test_failures_are_told(self):
        d, err = self.bench("--jobs", 10, "--timeout-ms", 2000, "--model", "empty", "--prompt", "a", status=0)
        self.assertEqual(d["failed"], 0)
        p = self.begin("--jobs", 10, "--model", "nowhere")
        _, err = p.communicate(timeout=60)
        self.assertNotEqual(p.returncode, 0)
        self.assertIn("MODEL_UNKNOWN", err)

    def test_what_does_not_go_together(self):
        for args, words in ((["--arrivals", "odd"], "poisson or even"),
                            (["--batch", "--rate", 5], "leave out --rate"),
                            (["--warm-s", 1, "--jobs", 5], "--seconds or --until-stable"), (["--seconds", 1, "--until-stable", 3], "give one")):
            p = self.begin(*args)
            _, err = p.communicate(timeout=60)
            self.assertEqual(p.returncode, 2, err)
            self.assertIn(words, err)


if __name__ == "__main__":
    lib.main()
