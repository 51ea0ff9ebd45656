#!/usr/bin/env python3
"""AdminService and `pseg quarantine`: what is in quarantine, from the first line of its evidence to its
end, on an address with keys of its own, and for nobody else."""
import hashlib
import json
import os
import subprocess

import grpc

import lib_pseg as lib
from lib_pseg import pb

ADMIN = "pseg.v1.AdminService"
ENV = {k: v for k, v in os.environ.items() if not k.startswith("PSEG_")}


def line(key, name):
    return f"{hashlib.sha256(key.encode()).hexdigest()} {name}\n"


class Admin(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.folder = cluster.folder
        (cls.folder / "keys").write_text(line("tenant-key", "team"))
        (cls.folder / "admins").write_text(line("admin-key", "olga"))
        (cls.folder / "tenants").write_text("team weight=3 jobs=100 bytes=2M rate=50\n* jobs=7\n")
        ready = cls.folder / "admin.ready"
        cls.scheduler = cluster.scheduler(
            "--default-model", "empty", "--keys", cls.folder / "keys", "--tenants", cls.folder / "tenants",
            "--admin-listen", "127.0.0.1:0", "--admin-keys", cls.folder / "admins", "--admin-ready-file", ready)
        cls.address = lib.until("the admin's address", lambda: ready.exists() and ready.read_text())
        cls.stub = cluster.stub(cls.scheduler)
        cls.tenant = [("authorization", "Bearer tenant-key")]
        cls.olga = [("authorization", "Bearer admin-key")]
        cls.channel = grpc.insecure_channel(cls.address)
        cluster.channels.append(cls.channel)
        cls.admin = lib.Stub(cls.channel, ADMIN)

    def create(self, **kw):
        return self.stub.CreateJob(pb.CreateJobRequest(job=lib.spec(), **kw), timeout=lib.CALL_S, metadata=self.tenant)

    def failed(self, log="", **kw):
        """A job in quarantine: three workers in turn died of it, each with that log."""
        job = self.create(**kw)
        for attempt in range(1, 4):
            worker = f"w{attempt}"
            self.cluster.fcall("register", worker, 2000, "empty", "d" * 64, "a device", "0.1", log)
            lib.until("a claim", lambda w=worker: job.name[5:] in self.cluster.fcall("claim", w, "empty", 1, 60000, 3))
            said = self.cluster.fcall("fail", worker, job.name[5:], attempt, "DEVICE_FAILED", f"broke {attempt}", 1, 1, 3)
            self.assertEqual(said, "FAILED" if attempt == 3 else "QUEUED")
        return job

    def ask(self, method, q, metadata=None):
        return getattr(self.admin, method)(q, timeout=lib.CALL_S, metadata=metadata or self.olga)

    def names(self):
        return [j.name for j in self.ask("ListQuarantinedJobs", pb.ListQuarantinedJobsRequest()).jobs]

    def pseg(self, *args, status=0, address=None, key="admin-key"):
        done = subprocess.run([lib.BIN / "pseg", "quarantine", *args, "--admin", address or self.address],
                              capture_output=True, text=True, env={**ENV, "PSEG_ADMIN_KEY": key}, timeout=lib.CALL_S)
        self.assertEqual(done.returncode, status, done.stderr)
        return done.stdout if status == 0 else done.stderr

    def test_a_case_and_its_end(self):
        job = self.failed(log="loading\nkernel hangs", request_id="mine")
        listed = [j for j in self.ask("ListQuarantinedJobs", pb.ListQuarantinedJobsRequest()).jobs if j.name == job.name]
        self.assertEqual([(j.tenant, j.model, j.reason, j.attempts, j.request_id, j.evidence) for j in listed],
                         [("team", "empty", "DEVICE_FAILED", 3, "mine", "")])
        case = self.ask("GetQuarantinedJob", pb.GetQuarantinedJobRequest(name=job.name))
        for part in ("attempt 1", "attempt 3", "on w2", "a device", "broke 1", "kernel hangs"):
            self.assertIn(part, case.evidence)
        self.assertGreater(case.quarantine_time.seconds, job.create_time.seconds - 1)
        again = self.ask("RequeueQuarantinedJob", pb.RequeueQuarantinedJobRequest(name=job.name))
        self.assertNotEqual(again.name, job.name)
        self.assertEqual(again.state, pb.STATE_QUEUED)
        mine = self.stub.GetJob(pb.GetJobRequest(name=again.name), timeout=lib.CALL_S, metadata=self.tenant)
        self.assertEqual([p.text for p in mine.prompts], [p.text for p in job.prompts], "the tenant's own, as before")
        old = self.stub.GetJob(pb.GetJobRequest(name=job.name), timeout=lib.CALL_S, metadata=self.tenant)
        self.assertEqual(old.state, pb.STATE_FAILED, "what has ended stays so")
        self.assertNotIn(job.name, self.names())
        self.assertIn(f"requeued job={job.name[5:]} by=olga as={again.name[5:]}", self.scheduler.log())
        twice = self.ask("RequeueQuarantinedJob", pb.RequeueQuarantinedJobRequest(name=job.name))
        self.assertEqual(twice.name, again.name, "an answer that was lost is asked for again")
        for method in ("Get", "Drop"):
            q = getattr(pb, f"{method}QuarantinedJobRequest")(name=job.name)
            found = lib.failure(getattr(self.admin, f"{method}QuarantinedJob"), q, metadata=self.olga)
            self.assertFails(found, "NOT_FOUND", "JOB_NOT_FOUND")
            self.assertEqual((found.resource.resource_type, found.resource.resource_name),
                             ("pseg.v1.QuarantinedJob", job.name))
        self.stub.CancelJob(pb.CancelJobRequest(name=again.name), timeout=lib.CALL_S, metadata=self.tenant)

    def test_dropping(self):
        job = self.failed()
        self.ask("DropQuarantinedJob", pb.DropQuarantinedJobRequest(name=job.name))
        self.assertNotIn(job.name, self.names())
        self.assertIn(f"dropped job={job.name[5:]} by=olga", self.scheduler.log())

    def test_pages(self):
        made = [self.failed().name for _ in range(5)]
        seen, token = [], ""
        while True:
            page = self.ask("ListQuarantinedJobs", pb.ListQuarantinedJobsRequest(page_size=2, page_token=token))
            self.assertLessEqual(len(page.jobs), 2)
            seen += [j.name for j in page.jobs]
            token = page.next_page_token
            if not token:
                break
        self.assertEqual(seen, self.names())
        self.assertEqual([n for n in seen if n in made], made[::-1], "newest first")
        for name in made:
            self.ask("DropQuarantinedJob", pb.DropQuarantinedJobRequest(name=name))
        for size in (-1, 101):
            found = lib.failure(self.admin.ListQuarantinedJobs, pb.ListQuarantinedJobsRequest(page_size=size),
                                metadata=self.olga)
            self.assertFails(found, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "page_size")
        for token in ("x", "0" * 31, "G" * 32):
            found = lib.failure(self.admin.ListQuarantinedJobs, pb.ListQuarantinedJobsRequest(page_token=token),
                                metadata=self.olga)
            self.assertFails(found, "INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", "page_token")
        found = lib.failure(self.admin.GetQuarantinedJob, pb.GetQuarantinedJobRequest(name="jobs/1"), metadata=self.olga)
        self.assertFails(found, "INVALID_ARGUMENT", "NAME_INVALID", "name")

    def test_logs_that_are_no_text(self):
        """A worker may log any bytes; a terminal must not obey them."""
        job = self.failed(log="ok \x1b[2J\x07 \udcff\udcfe end")
        case = self.ask("GetQuarantinedJob", pb.GetQuarantinedJobRequest(name=job.name))
        self.assertIn("?? end", case.evidence)
        shown = self.pseg("show", job.name)
        self.assertIn("ok ?[2J? ?? end", shown)
        self.ask("DropQuarantinedJob", pb.DropQuarantinedJobRequest(name=job.name))

    def test_limits(self):
        found = {t.tenant: (t.weight, t.max_jobs, t.max_bytes, t.rate, t.burst)
                 for t in self.ask("ListTenantLimits", pb.ListTenantLimitsRequest()).tenants}
        self.assertEqual(found, {"team": (3, 100, 2 << 20, 50, 50), "*": (1, 7, 0, 0, 0)})

    def test_usage(self):
        def usage():
            return {u.tenant: (u.jobs, u.bytes, u.batches)
                    for u in self.ask("ListTenantLimits", pb.ListTenantLimitsRequest(with_usage=True)).usage}
        before = usage().get("team", (0, 0, 0))
        image = lib.png(31, 17, seed=77)
        job = self.stub.CreateJob(pb.CreateJobRequest(job=lib.spec(image)), timeout=lib.CALL_S, metadata=self.tenant)
        lib.Stub(self.cluster.channel(self.scheduler), "pseg.v1.BatchService").CreateBatch(
            pb.CreateBatchRequest(batch_id="used"), timeout=lib.CALL_S, metadata=self.tenant)
        self.assertEqual(usage(), {"team": (before[0] + 1, before[1] + len(image), before[2] + 1)})
        self.assertEqual(len(self.ask("ListTenantLimits", pb.ListTenantLimitsRequest()).usage), 0, "not asked for")
        self.assertIn(f"team uses jobs={before[0] + 1} bytes={before[1] + len(image)} batches={before[2] + 1}",
                      self.pseg("limits"))
        self.assertEqual(json.loads(self.pseg("limits", "--json"))["usage"][0]["jobs"], before[0] + 1)
        self.stub.CancelJob(pb.CancelJobRequest(name=job.name), timeout=lib.CALL_S, metadata=self.tenant)
        self.assertEqual(usage()["team"][0], before[0])

    def test_the_command(self):
        job = self.failed(log="last words")
        self.assertIn(f"{job.name} ", self.pseg("list"))
        listed = json.loads(self.pseg("list", "--json"))["jobs"]
        self.assertEqual([j["attempts"] for j in listed if j["name"] == job.name], [3])
        self.assertIn("last words", self.pseg("show", job.name[5:]))
        self.assertIn("last words", json.loads(self.pseg("show", job.name, "--json"))["evidence"])
        new = self.pseg("requeue", job.name).strip()
        self.assertTrue(new.startswith("jobs/") and new != job.name, new)
        self.assertEqual(self.pseg("requeue", job.name).strip(), new)
        self.stub.CancelJob(pb.CancelJobRequest(name=new), timeout=lib.CALL_S, metadata=self.tenant)
        other = self.failed()
        self.assertEqual(self.pseg("drop", other.name), "")
        self.assertIn("(JOB_NOT_FOUND)", self.pseg("show", other.name, status=3))
        self.assertIn("team weight=3 jobs=100", self.pseg("limits"))
        self.assertIn("(UNAUTHENTICATED)", self.pseg("list", key="tenant-key", status=1))
        for args in (("show",), ("list", "x"), ("burn",), ()):
            self.assertIn("(CONFIG_INVALID)", self.pseg(*args, status=2))

    def test_nobody_else(self):
        q = pb.ListQuarantinedJobsRequest()
        for metadata in (None, self.tenant, [("authorization", "Bearer ")], [("authorization", "Bearer x")]):
            found = lib.failure(self.admin.ListQuarantinedJobs, q, metadata=metadata)
            self.assertFails(found, "UNAUTHENTICATED", "UNAUTHENTICATED")
        # Neither port serves what the other does.
        public = lib.Stub(self.cluster.channel(self.scheduler), ADMIN)
        for metadata in (self.olga, self.tenant):
            found = lib.failure(public.ListQuarantinedJobs, q, metadata=metadata)
            self.assertFails(found, "UNIMPLEMENTED", "UNSUPPORTED")
        found = lib.failure(lib.Stub(self.channel).ListJobs, pb.ListJobsRequest(), metadata=self.olga)
        self.assertFails(found, "UNIMPLEMENTED", "UNSUPPORTED")
        found = lib.failure(self.stub.ListJobs, pb.ListJobsRequest(), metadata=self.olga)
        self.assertFails(found, "UNAUTHENTICATED", "UNAUTHENTICATED")

    def test_a_key_is_withdrawn(self):
        (self.folder / "admins").write_text(line("admin-key", "olga") + line("second", "ivan"))
        second = [("authorization", "Bearer second")]

        def known():
            try:
                return self.ask("ListTenantLimits", pb.ListTenantLimitsRequest(), second) is not None
            except grpc.RpcError as e:
                self.assertEqual(e.code(), grpc.StatusCode.UNAUTHENTICATED)
                return False
        lib.until("a key being added", known, 10)
        (self.folder / "admins").write_text(line("admin-key", "olga"))
        lib.until("a key being withdrawn", lambda: not known(), 10)

    def test_a_unix_socket_and_mistakes(self):
        path = self.folder / "admin.sock"
        scheduler = self.cluster.scheduler("--default-model", "empty", "--admin-listen", f"unix:{path}")
        self.assertIn("no limits", self.pseg("limits", address=f"unix:{path}"))
        self.assertEqual(scheduler.stop(), 0)
        for args, part in ((("--admin-listen", "127.0.0.1:0"), "--admin-keys"),
                           (("--admin-keys", self.folder / "admins"), "--admin-listen"),
                           (("--admin-listen", "0.0.0.0:0", "--admin-keys", self.folder / "admins"), "--tls-cert")):
            done = subprocess.run([lib.BIN / "pseg-scheduler", "--log-level", "error", "--listen", "127.0.0.1:0",
                                   *map(str, args)], capture_output=True, text=True, timeout=lib.CALL_S)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(part, done.stderr)


if __name__ == "__main__":
    lib.main()
