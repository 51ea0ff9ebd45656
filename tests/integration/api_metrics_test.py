#!/usr/bin/env python3
"""/metrics and the probes of real processes, read with Prometheus' own parser; the alert rules and the
dashboard name nothing that is not there."""
import json
import pathlib
import re
import shutil
import subprocess

import lib_pseg as lib
from lib_metrics import families, get, value
from lib_pseg import pb

DOCS = pathlib.Path("docs/metrics.md").read_text()
FILES = pathlib.Path("deploy/observability")


class Metrics(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "scenes", "--metrics-listen", "127.0.0.1:0",
                                          "--otlp-endpoint", "127.0.0.1:1")  # nobody is there
        cls.stub = cluster.stub(cls.scheduler)
        cls.worker = cluster.worker("scenes", "--metrics-listen", "127.0.0.1:0", "--otlp-endpoint", "127.0.0.1:1")

    def test_jobs_are_counted(self):
        before = value(self.scheduler, "pseg_jobs_submitted_total") or 0
        good = [lib.wait(self.stub, lib.create(self.stub, lib.png(64, 64, n), ["a star", "a ring"]).name)
                for n in range(3)]
        bad = lib.wait(self.stub, lib.create(self.stub, lib.SCENE[:300]).name)
        self.assertEqual([j.state for j in good + [bad]], [pb.STATE_SUCCEEDED] * 3 + [pb.STATE_FAILED])
        lib.until("the queue's counts", lambda: value(self.scheduler, "pseg_jobs_submitted_total") == before + 4)
        self.assertGreaterEqual(value(self.scheduler, "pseg_jobs_terminal_total", state="SUCCEEDED"), 3)
        self.assertGreaterEqual(value(self.scheduler, "pseg_jobs_terminal_total", state="FAILED"), 1)
        self.assertEqual(value(self.scheduler, "pseg_queue_depth", state="queued"), 0)
        self.assertGreaterEqual(value(self.scheduler, "pseg_rpc_duration_seconds_count", method="CreateJob", code="OK"), 4)

        self.assertGreaterEqual(value(self.worker, "pseg_worker_jobs_total", outcome="published"), 3)
        self.assertGreaterEqual(value(self.worker, "pseg_worker_jobs_total", outcome="failed",
                                      reason="IMAGE_UNDECODABLE"), 1)
        self.assertGreaterEqual(value(self.worker, "pseg_prompts_per_job_bucket", le="2.0")
                                or value(self.worker, "pseg_prompts_per_job_bucket", le="2"), 3)
        for stage in ("queue", "fetch", "decode_image", "preprocess", "encode_image", "encode_text", "decode_mask"):
            self.assertGreaterEqual(value(self.worker, "pseg_stage_duration_seconds_count", stage=stage), 3, stage)
        self.assertEqual(value(self.worker, "pseg_worker_info", model="scenes"), 1)
        lib.until("nothing held", lambda: value(self.worker, "pseg_worker_jobs_held") == 0)

    def test_how_long_a_job_is_held(self):
        lib.until("nothing held", lambda: value(self.worker, "pseg_worker_oldest_job_seconds") == 0)
        names = [lib.create(self.stub, lib.png(512, 512, 100 + n), [f"phrase {n} {k}" for k in range(64)]).name
                 for n in range(20)]
        seen = lib.until("a job held", lambda: value(self.worker, "pseg_worker_oldest_job_seconds"))
        self.assertLess(seen, lib.START_S)
        for name in names:
            lib.wait(self.stub, name)
        lib.until("nothing held", lambda: value(self.worker, "pseg_worker_oldest_job_seconds") == 0)

    def test_what_waits_for_a_model(self):
        lib.until("the worker", lambda: value(self.scheduler, "pseg_workers", model="scenes") == 1)
        # A model whose worker is the test: its jobs wait, and it tells what they cost.
        self.cluster.fcall("register", "hand", 60000, "waits", "d" * 64, "a device", "0.1", "")
        names = [lib.create(self.stub, model="waits").name for _ in range(3)]
        self.assertIn(names[0][5:], self.cluster.fcall("claim", "hand", "waits", 1, 60000, 3))
        self.assertEqual(self.cluster.fcall("publish", "hand", names[0][5:], 1, 2500000, 0, ""), "SUCCEEDED")
        lib.until("the backlog", lambda: value(self.scheduler, "pseg_backlog_compute_seconds", model="waits") == 5)
        self.assertEqual(value(self.scheduler, "pseg_job_compute_seconds", model="waits"), 2.5)
        for name in names[1:]:
            self.stub.CancelJob(pb.CancelJobRequest(name=name), timeout=lib.CALL_S)
        self.cluster.fcall("unregister", "hand")
        lib.until("nothing", lambda: value(self.scheduler, "pseg_backlog_compute_seconds", model="waits") == 0 and
                  value(self.scheduler, "pseg_workers", model="waits") == 0)

    def test_calls_that_fail_have_their_code(self):
        lib.failure(self.stub.GetJob, pb.GetJobRequest(name="jobs/" + "0" * 32))
        lib.until("the call's code", lambda: value(self.scheduler, "pseg_rpc_duration_seconds_count", method="GetJob",
                                                   code="NOT_FOUND"))

    def test_probes(self):
        for process in (self.scheduler, self.worker):
            self.assertEqual(get(process, "/livez"), (200, "ok\n"))
            lib.until("ready", lambda: get(process, "/readyz") == (200, "ok\n"))
            self.assertEqual(get(process, "/")[0], 404)
            self.assertGreater(value(process, "process_resident_memory_bytes"), 1e6)
            self.assertGreater(value(process, "process_open_fds"), 5)

    def test_without_redis(self):
        cluster = lib.Cluster()
        with cluster:
            scheduler = cluster.scheduler("--metrics-listen", "127.0.0.1:0", "--redis-timeout-ms", "200ms")
            lib.until("ready", lambda: get(scheduler, "/readyz")[0] == 200)
            cluster.redis.kill()
            lib.until("not ready", lambda: get(scheduler, "/readyz")[0] == 503)
            self.assertEqual((value(scheduler, "pseg_redis_up"), get(scheduler, "/livez")[0]), (0, 200))

    def test_a_taken_address_is_named(self):
        port = re.search(r"metrics listen=\S+ port=(\d+)", self.scheduler.log()).group(1)
        p = self.cluster.scheduler("--metrics-listen", f"127.0.0.1:{port}", wait=False)
        self.assertEqual(p.wait(), 2)
        self.assertIn(f"127.0.0.1:{port} is taken", p.log())

    def test_documented_and_used_by_these_names(self):
        served = {}
        for process in (self.scheduler, self.worker):
            served.update(families(process))
        names = set()
        for family in served.values():
            name = family.name + ("_total" if family.type == "counter" else "")
            names.add(name)
            self.assertIn(f"`{name}", DOCS)
            self.assertTrue(family.documentation)
        for name in set(re.findall(r"`((?:pseg|process)_[a-z_]+)", DOCS)) - {"pseg_build_info"}:
            self.assertIn(name, names)
        dashboard = json.loads((FILES / "dashboard.json").read_text())
        used = (FILES / "alerts.yml").read_text() + " ".join(
            t["expr"] for p in dashboard["panels"] for t in p.get("targets", []))
        for name in set(re.findall(r"\b((?:pseg|process)_[a-z_]+)\b", used)) - {"pseg_"}:
            self.assertIn(re.sub(r"_(bucket|sum|count)$", "", name), names)
        alerts = re.findall(r"alert: (\w+)", (FILES / "alerts.yml").read_text())
        for alert in alerts:
            self.assertIn(f"| {alert} |", DOCS)
            self.assertIn(f"alertname: {alert}", (FILES / "alerts.test.yml").read_text())

    def test_rules(self):
        if not shutil.which("promtool"):
            self.skipTest("no promtool")
        for args in (["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"],
                     ["test", "rules", "alerts.test.yml"]):
            done = subprocess.run(["promtool", *args], cwd=FILES, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        text = get(self.worker, "/metrics")[1]
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


if __name__ == "__main__":
    lib.main()
