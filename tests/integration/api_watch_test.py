#!/usr/bin/env python3
"""WatchJobs: the order of events, whose they are, going on from a token at any scheduler, what was lost,
clients that do not read, and schedulers and Redis that die meanwhile."""
import hashlib
import json
import os
import pathlib
import signal
import subprocess

import grpc

import lib_pseg as lib
from lib_pseg import pb

BATCHES = "pseg.v1.BatchService"
# What a sanitizer keeps of freed memory is no growth of ours.
os.environ["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=1"
# Events as the queue writes them, of `n` entries with 8 jobs each: (tenant, first number, n).
FLOOD = """for i = 0, ARGV[3] - 1 do
    local e = { 'tenant', ARGV[1] }
    for k = 0, 7 do
        e[#e + 1] = 'id'
        e[#e + 1] = string.format('%032x', ARGV[2] + 8 * i + k)
        e[#e + 1] = 'state'
        e[#e + 1] = 'SUCCEEDED'
    end
    redis.call('XADD', KEYS[1], '*', unpack(e))
end"""
EVENTS = "pseg:{default}:events"


class Watch:
    """A stream of WatchJobs that has begun: its first message has come."""

    def __init__(self, stub, token="", **kw):
        self.call = stub.WatchJobs(pb.WatchJobsRequest(resume_token=token, **kw), timeout=3 * lib.START_S)
        self.token, self.gap, self.first = token, False, next(self.call)
        self.pending = [self.first]

    def message(self):
        m = self.pending.pop(0) if self.pending else next(self.call)
        self.token, self.gap = m.resume_token, self.gap or m.gap
        return m

    def event(self):
        while True:
            m = self.message()
            if m.HasField("event"):
                return m.event

    def events(self, n):
        return [self.event() for _ in range(n)]

    def stop(self):
        self.call.cancel()


def told(events):
    return [(e.name, e.state) for e in events]


def flood(cluster, tenant, first, n):
    assert cluster.redis_cli("EVAL", FLOOD, 1, EVENTS, tenant, first, n) == ""


def name(number):
    return f"jobs/{number:032x}"


class Watching(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.schedulers = [cluster.scheduler("--default-model", "empty") for _ in range(2)]
        cls.jobs = cluster.stub(cls.schedulers[0])
        cls.first, cls.second = (cluster.stub(s, BATCHES) for s in cls.schedulers)

    def end(self, name):
        self.jobs.CancelJob(pb.CancelJobRequest(name=name), timeout=lib.CALL_S)

    def test_a_job_by_its_name(self):
        job = lib.create(self.jobs)
        nobody = name(7)
        watch = Watch(self.second, names=[job.name, nobody, job.name])
        events = watch.events(2)
        self.assertEqual(told(events), [(nobody, 0), (job.name, pb.STATE_QUEUED)], "by id, each once")
        self.assertEqual(events[1].time.ToMicroseconds(), job.create_time.ToMicroseconds())
        self.cluster.claim(job.name)
        event = watch.event()
        self.assertEqual((event.name, event.state, event.worker, event.batch), (job.name, pb.STATE_RUNNING, "hand", ""))
        running = self.jobs.GetJob(pb.GetJobRequest(name=job.name), timeout=lib.CALL_S)
        self.assertLess(abs(event.time.ToMicroseconds() - running.start_time.ToMicroseconds()), 100000)
        self.cluster.fcall("release", "hand", job.name[5:], 1)
        self.assertEqual((watch.event().state), pb.STATE_QUEUED)
        self.end(job.name)
        self.assertEqual(watch.event().state, pb.STATE_CANCELLED)
        self.assertEqual(list(watch.call), [], "the end with OK")
        self.assertEqual(watch.call.code(), grpc.StatusCode.OK)
        # Taken up again it tells the present, and ends.
        again = self.first.WatchJobs(pb.WatchJobsRequest(names=[job.name], resume_token=watch.token),
                                     timeout=lib.CALL_S)
        self.assertEqual([(m.event.name, m.event.state) for m in again], [(job.name, pb.STATE_CANCELLED)])

    def test_all_jobs_in_order(self):
        watch = Watch(self.first)
        self.assertFalse(watch.first.HasField("event"))
        self.assertTrue(watch.first.resume_token)
        names = [lib.create(self.jobs, phrases=(f"circle {i}",)).name for i in range(20)]
        worker = self.cluster.worker("empty")
        events = told(watch.events(40))
        self.assertEqual(worker.stop(), 0)
        self.assertFalse(watch.gap)
        for n in names:
            self.assertEqual([s for j, s in events if j == n], [pb.STATE_RUNNING, pb.STATE_SUCCEEDED])
        # From each message on exactly the rest is told, at the other scheduler, too.
        again = Watch(self.second, watch.first.resume_token)
        tokens = [again.token]
        for _ in range(40):
            again.event()
            tokens.append(again.token)
        for at in (0, 1, 19, 20, 33, 39):
            self.assertEqual(told(Watch(self.second, tokens[at]).events(40 - at)), events[at:])
        last = lib.create(self.jobs)
        end = Watch(self.second, tokens[40])
        self.end(last.name)
        self.assertEqual(told(end.events(1)), [(last.name, pb.STATE_CANCELLED)])
        self.assertFalse(again.gap or end.gap)

    def test_a_large_entry_is_told_in_pieces(self):
        watch = Watch(self.first)
        flood(self.cluster, "default", 1 << 40, 50)
        self.assertEqual(told(watch.events(400)), [(name((1 << 40) + i), pb.STATE_SUCCEEDED) for i in range(400)])

    def test_a_batch(self):
        made = self.second.CreateBatch(pb.CreateBatchRequest(batch_id="watched"), timeout=lib.CALL_S)
        watch, everything = Watch(self.first, batch=made.name), Watch(self.first)

        def items():
            yield pb.SubmitJobsRequest(header=pb.SubmitHeader(batch=made.name))
            for seq in range(1, 4):
                yield pb.SubmitJobsRequest(item=pb.BatchItem(seq=seq, job=lib.spec(phrases=(f"star {seq}",))))
            yield pb.SubmitJobsRequest(seal=pb.SubmitSeal())
        self.assertTrue(list(self.second.SubmitJobs(items(), timeout=lib.CALL_S))[-1].sealed)
        alone = lib.create(self.jobs)
        self.end(alone.name)
        self.assertEqual(told(everything.events(1)), [(alone.name, pb.STATE_CANCELLED)])
        self.second.CancelBatch(pb.CancelBatchRequest(name=made.name), timeout=lib.CALL_S)
        events = watch.events(3)
        self.assertEqual({(e.state, e.batch) for e in events}, {(pb.STATE_CANCELLED, made.name)})
        self.assertEqual(len({e.name for e in events}), 3)
        self.assertEqual(told(everything.events(3)), told(events))
        self.assertEqual(told(Watch(self.second, watch.first.resume_token, batch=made.name).events(3)), told(events))
        named = self.second.WatchJobs(pb.WatchJobsRequest(names=[events[0].name]), timeout=lib.CALL_S)
        self.assertEqual([m.event.batch for m in named], [made.name])
        found = lib.failure(self.first.WatchJobs, pb.WatchJobsRequest(batch="batches/other"))
        self.assertFails(found, "NOT_FOUND", "BATCH_NOT_FOUND")

    def test_a_thousand_names(self):
        ids = [(1 << 48) + i for i in range(1000)]
        watch = self.first.WatchJobs(pb.WatchJobsRequest(names=[name(i) for i in ids]), timeout=lib.CALL_S)
        self.assertEqual([m.event.name for m in watch], [name(i) for i in ids])
        found = lib.failure(self.first.WatchJobs, pb.WatchJobsRequest(names=[name(i) for i in range(1001)]))
        self.assertFails(found, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "names")
        self.assertEqual(found.metadata, {"value": "1001", "limit": "1000"})

    def test_what_is_wrong_is_told(self):
        good = name(1)
        for request, reason, field in (
                (dict(names=[good, "jobs/1"]), "NAME_INVALID", "names[1]"),
                (dict(batch="x"), "NAME_INVALID", "batch"),
                (dict(batch="batches/" + "x" * 65), "NAME_INVALID", "batch"),
                (dict(names=[good], batch="batches/x"), "INVALID_ARGUMENT", "batch"),
                (dict(resume_token="tomorrow"), "PAGE_TOKEN_INVALID", "resume_token"),
                (dict(resume_token="1-2.x"), "PAGE_TOKEN_INVALID", "resume_token")):
            self.assertFails(lib.failure(self.first.WatchJobs, pb.WatchJobsRequest(**request)),
                             "INVALID_ARGUMENT", reason, field)

    def test_a_gap_is_told_once(self):
        watch = Watch(self.first)
        flood(self.cluster, "default", 1 << 41, 30)
        watch.events(1)
        token = watch.token
        watch.stop()
        self.cluster.redis_cli("XTRIM", EVENTS, "MAXLEN", 10)
        again = Watch(self.second, token)
        self.assertTrue(again.first.gap)
        first = again.event()
        self.assertEqual(first.name, name((1 << 41) + 20 * 8), "what is left of them")
        again.gap = False
        self.assertEqual(told(again.events(79)), [(name((1 << 41) + i), pb.STATE_SUCCEEDED) for i in range(161, 240)])
        self.assertFalse(again.gap)
        # Nothing is lost for a token that stands where the trimmed part ends.
        self.assertFalse(Watch(self.first, again.token).first.gap)
        # A stream that is gone altogether, as in a Redis without a log.
        self.cluster.redis_cli("DEL", EVENTS)
        gone = Watch(self.first, again.token)
        self.assertTrue(gone.first.gap)
        self.assertFalse(gone.first.HasField("event"))
        flood(self.cluster, "default", 1 << 42, 1)
        self.assertEqual(gone.event().name, name(1 << 42))
        self.assertFalse(Watch(self.second, gone.first.resume_token).first.gap)

    def test_a_token_moves_on_while_nothing_happens(self):
        """Others' events push out what an idle watcher would go on from."""
        watch = Watch(self.first)
        flood(self.cluster, "other", 1 << 43, 5)
        moved = watch.message()
        while moved.resume_token == watch.first.resume_token:
            moved = watch.message()
        self.assertFalse(moved.HasField("event") or moved.gap)
        self.cluster.redis_cli("XTRIM", EVENTS, "MAXLEN", 1)
        self.assertTrue(Watch(self.second, watch.first.resume_token).first.gap)
        self.assertFalse(Watch(self.second, moved.resume_token).first.gap)

    def test_clients_that_do_not_read(self):
        def resident_kb():
            text = pathlib.Path(f"/proc/{self.schedulers[1].child.pid}/status").read_text()
            return int(dict(line.split(":", 1) for line in text.splitlines())["VmRSS"].split()[0])
        idle = [Watch(self.second) for _ in range(20)]
        reader = Watch(self.second)
        before = resident_kb()
        flood(self.cluster, "default", 1 << 44, 1000)
        last = name((1 << 44) + 7999)
        while reader.event().name != last:
            pass
        # 8,000 events take about 0.8 MB for each of the 20, 16 MB in all, and more as messages in memory.
        self.assertLess(resident_kb() - before, 12000 * lib.SLOWER)
        self.assertFalse(reader.gap)
        self.assertEqual(told(idle[7].events(8000)), [(name((1 << 44) + i), pb.STATE_SUCCEEDED) for i in range(8000)])
        self.assertFalse(idle[7].gap)
        for watch in idle:
            watch.stop()


class Deaths(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty")
        cls.jobs, cls.stub = cluster.stub(cls.scheduler), cluster.stub(cls.scheduler, BATCHES)

    def cancel_one(self):
        job = lib.create(self.jobs)
        self.jobs.CancelJob(pb.CancelJobRequest(name=job.name), timeout=lib.CALL_S)
        return job.name, pb.STATE_CANCELLED

    def test_a_scheduler_is_killed(self):
        third = self.cluster.scheduler("--default-model", "empty")
        watch = Watch(self.cluster.stub(third, BATCHES))
        known = self.cancel_one()
        self.assertEqual(told(watch.events(1)), [known])
        third.kill()
        with self.assertRaises(grpc.RpcError) as caught:
            watch.event()
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        missed = self.cancel_one()
        again = Watch(self.stub, watch.token)
        self.assertEqual(told(again.events(1)), [missed])
        self.assertFalse(again.gap)

    def test_a_graceful_stop(self):
        third = self.cluster.scheduler("--default-model", "empty")
        stub = self.cluster.stub(third, BATCHES)
        watch, other = Watch(stub), Watch(stub, names=[lib.create(self.jobs).name])
        third.signal(signal.SIGTERM)
        for w in (watch, other):
            with self.assertRaises(grpc.RpcError) as caught:
                while True:
                    w.event()
            self.assertFails(lib.Failure(caught.exception), "UNAVAILABLE", "DRAINING")
        self.assertEqual(third.wait(), 0)
        known = self.cancel_one()
        self.assertEqual(told(Watch(self.stub, watch.token).events(1)), [known])

    def test_a_graceful_stop_does_not_wait_for_who_never_reads(self):
        third = self.cluster.scheduler("--default-model", "empty", "--grace-ms", f"{4 * lib.CALL_S}s")
        stub = self.cluster.stub(third, BATCHES)
        narrow = self.cluster.channel(third, options=[("grpc.http2.lookahead_bytes", 1 << 16), ("grpc.http2.bdp_probe", 0)])
        deaf, reader = Watch(lib.Stub(narrow, BATCHES)), Watch(stub)
        flood(self.cluster, "default", 1 << 45, 1000)
        names = [name((1 << 45) + i) for i in range(8000)]
        while reader.event().name != names[-1]:
            pass
        third.signal(signal.SIGTERM)
        self.assertEqual(third.wait(2 * lib.CALL_S), 0, "half of its grace")
        self.assertNotIn("calls are cancelled", third.log())
        found = []
        with self.assertRaises(grpc.RpcError) as caught:
            while True:
                found.append(deaf.event().name)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertLess(len(found), 8000)
        again = Watch(self.stub, deaf.token)
        self.assertEqual(found + [e.name for e in again.events(8000 - len(found))], names)

    def test_redis_is_killed(self):
        job = lib.create(self.jobs)
        watch, named = Watch(self.stub), Watch(self.stub, names=[job.name])
        self.assertEqual(named.event().state, pb.STATE_QUEUED)
        self.cluster.redis.kill()
        found = lib.failure(self.stub.WatchJobs, pb.WatchJobsRequest())
        self.assertFails(found, "UNAVAILABLE", "BROKER_UNAVAILABLE")
        self.cluster.start_redis()

        def ended():
            try:
                return self.jobs.CancelJob(pb.CancelJobRequest(name=job.name), timeout=lib.CALL_S)
            except grpc.RpcError as e:
                self.assertEqual(lib.Failure(e).reason, "BROKER_UNAVAILABLE")
                return None
        lib.until("redis", ended)
        self.assertEqual(told(watch.events(1)), [(job.name, pb.STATE_CANCELLED)])
        self.assertEqual(named.event().state, pb.STATE_CANCELLED)
        self.assertEqual(list(named.call), [])
        self.assertFalse(watch.gap or named.gap, "Redis' log has kept the stream")

    def test_redis_comes_back_empty(self):
        """As one without a log. Named jobs are gone; who watches all is told of a gap."""
        job = lib.create(self.jobs)
        self.cancel_one()
        watch, named = Watch(self.stub), Watch(self.stub, names=[job.name])
        self.assertEqual(named.event().state, pb.STATE_QUEUED)
        self.cluster.redis.kill()
        for path in self.cluster.folder.glob("appendonly*/*"):
            path.unlink()
        self.cluster.start_redis()
        self.assertEqual(named.event().state, 0)
        self.assertEqual(list(named.call), [])
        while not watch.gap:
            watch.message()


class Tenants(lib.Test):
    @classmethod
    def setup(cls, cluster):
        path = cluster.folder / "keys"
        path.write_text("".join(f"{hashlib.sha256(k.encode()).hexdigest()} {k}\n" for k in ("ours", "theirs")))
        cls.scheduler = cluster.scheduler("--default-model", "empty", "--keys", path)

    def test_each_sees_its_own(self):
        def stub(service):
            return self.cluster.stub(self.scheduler, service)

        def key(tenant):
            return (("authorization", f"Bearer {tenant}"),)
        jobs, batches = stub(lib.SERVICE), stub(BATCHES)
        names, calls = {}, {}
        for tenant in ("ours", "theirs"):
            calls[tenant] = batches.WatchJobs(pb.WatchJobsRequest(), timeout=lib.START_S, metadata=key(tenant))
            next(calls[tenant])
        for tenant in ("ours", "theirs", "ours"):
            job = jobs.CreateJob(pb.CreateJobRequest(job=lib.spec()), timeout=lib.CALL_S, metadata=key(tenant))
            jobs.CancelJob(pb.CancelJobRequest(name=job.name), timeout=lib.CALL_S, metadata=key(tenant))
            names.setdefault(tenant, []).append(job.name)
        for tenant, expected in names.items():
            found = []
            while len(found) < len(expected):
                m = next(calls[tenant])
                if m.HasField("event"):
                    found.append(m.event.name)
            self.assertEqual(found, expected)
        # Another's job does not exist, and another's token tells of one's own events alone.
        foreign = batches.WatchJobs(pb.WatchJobsRequest(names=names["theirs"]), timeout=lib.CALL_S,
                                    metadata=key("ours"))
        self.assertEqual([m.event.state for m in foreign], [0])
        found = lib.failure(batches.WatchJobs, pb.WatchJobsRequest())
        self.assertEqual(found.reason, "UNAUTHENTICATED")


class CommandLine(lib.Test):
    @classmethod
    def setup(cls, cluster):
        cls.scheduler = cluster.scheduler("--default-model", "empty")
        cls.stub = cluster.stub(cls.scheduler)

    def pseg(self, *args):
        """`pseg watch` with its output in a file, until it has begun."""
        self.count = getattr(self, "count", 0) + 1
        out = self.cluster.folder / f"{self.id().split('.')[-1]}{self.count}"
        with open(out, "wb") as o, open(f"{out}.err", "wb") as e:
            p = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", lib.BIN / "pseg", "watch", "--server",
                                  self.scheduler.target, *args], stdin=subprocess.DEVNULL, stdout=o, stderr=e)
        self.addCleanup(p.wait)
        self.addCleanup(p.kill)
        p.lines = lambda: out.read_text().splitlines()
        p.said = lambda: pathlib.Path(f"{out}.err").read_text()
        return p

    def cancel(self, name):
        return self.stub.CancelJob(pb.CancelJobRequest(name=name), timeout=lib.CALL_S, wait_for_ready=True)

    def test_a_job_until_its_end(self):
        job = lib.create(self.stub)
        p = self.pseg(job.name[5:])
        lib.until("the first line", p.lines)
        self.cancel(job.name)
        self.assertEqual(p.wait(lib.CALL_S), 0, p.said())
        self.assertEqual([line.split(" ", 1)[1] for line in p.lines()], [f"{job.name} QUEUED", f"{job.name} CANCELLED"])
        self.assertRegex(p.lines()[0], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z ")
        self.assertEqual(p.said(), "")

    def test_over_the_death_of_the_server(self):
        before = lib.create(self.stub)
        p = self.pseg("--json")
        lib.until("the first line", p.lines)
        self.cancel(before.name)
        lib.until("an event", lambda: len(p.lines()) > 1)
        during = lib.create(self.stub)
        self.scheduler.kill()
        lib.until("the notice", lambda: "going on from there" in p.said())
        self.assertEqual(self.cluster.fcall("cancel", "default", during.name[5:]).splitlines()[0], during.name[5:])
        type(self).scheduler = self.cluster.scheduler("--default-model", "empty", listen=self.scheduler.target)
        lib.until("the rest", lambda: any(during.name in line for line in p.lines()))
        told = [json.loads(line) for line in p.lines()]
        self.assertEqual([(j["name"], j["state"]) for j in told if "name" in j],
                         [(before.name, "CANCELLED"), (during.name, "CANCELLED")])
        self.assertFalse(any("gap" in j for j in told))
        p.kill()
        # Any line's token goes on from there.
        again = self.pseg("--json", "--resume-token", told[0]["resume_token"], "--timeout-ms", "20s")
        lib.until("both again", lambda: sum("name" in line for line in again.lines()) == 2)

    def test_mistakes(self):
        for args, status, words in ((("jobs/1",), 2, "NAME_INVALID"), (("--batch", "a b"), 2, "NAME_INVALID"),
                                    (("--resume-token", "x"), 2, "PAGE_TOKEN_INVALID"),
                                    (("jobs/1", "--batch", "a"), 2, "CONFIG_INVALID"),
                                    (("--timeout-ms", "300ms"), 4, "DEADLINE_EXCEEDED")):
            p = self.pseg(*args)
            self.assertEqual(p.wait(lib.CALL_S), status, p.said())
            self.assertIn(words, p.said())


if __name__ == "__main__":
    lib.main()
