"""Clients of several tenants: each submits its jobs one after the other, a few at once, and repeats a request
until it is answered for good. What they promise and were promised goes into the history."""
import collections
import random
import threading
import time

from cluster import lib
from lib_pseg import pb
import grpc

REPEATED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED}
WINDOW = 32          # of one client, under way at once
BROKEN_IMAGE = b"\x89PNG\r\n\x1a\nthis is no picture"


class Kinds:
    """What share of the jobs is of which kind; the rest must succeed."""

    def __init__(self, cancel=0.02, deadline=0.02, bad=0.01):
        self.cancel, self.deadline, self.bad = cancel, deadline, bad

    def draw(self, rng):
        x = rng.random()
        for kind in ("cancel", "deadline", "bad"):
            x -= getattr(self, kind)
            if x < 0:
                return kind
        return "plain"


class Job:
    def __init__(self, rid, kind, model):
        self.rid, self.kind, self.model, self.tries, self.call, self.retry_at = rid, kind, model, 0, None, 0
        self.deadline_unix = None


class Client(threading.Thread):
    """`models`: names, each as often as it is to be drawn. rate: jobs a second, 0: as fast as they are taken."""

    def __init__(self, cluster, name, tenant, key, n_jobs, seed, models, kinds, rate=0):
        super().__init__(name=name, daemon=True)
        self.cluster, self.tenant, self.n_jobs, self.models, self.kinds = cluster, tenant, n_jobs, models, kinds
        self.rng, self.rate, self.stop_now = random.Random(seed), rate, False
        self.metadata = (("authorization", f"Bearer {key}"),) if key else None
        self.image = lib.png(8 + self.rng.randrange(24), 8 + self.rng.randrange(24), seed=seed)
        self.stubs, self.acked, self.fault = {}, 0, None

    def stub(self):
        """Of a scheduler drawn by lot: what one of them was asked the others must know."""
        member = self.rng.choice(self.cluster.schedulers)
        if member.name not in self.stubs:
            self.stubs[member.name] = lib.Stub(self.cluster.channel(member, options=[
                ("grpc.min_reconnect_backoff_ms", 100), ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500)]))
        return self.stubs[member.name]

    def begin(self, job):
        job.tries += 1
        spec = lib.spec(BROKEN_IMAGE if job.kind == "bad" else self.image, model=job.model)
        if job.deadline_unix:
            spec.deadline.seconds = int(job.deadline_unix)
            spec.deadline.nanos = int(job.deadline_unix % 1 * 1e9)
        job.call = self.stub().CreateJob.future(pb.CreateJobRequest(request_id=job.rid, job=spec), timeout=5,
                                                metadata=self.metadata)

    def new_job(self, number):
        job = Job(f"{self.name}-{number}", self.kinds.draw(self.rng), self.rng.choice(self.models))
        fields = {"bad": True} if job.kind == "bad" else {}
        if job.kind == "deadline":
            left = self.rng.uniform(0.5, 6)
            job.deadline_unix = time.time() + self.cluster.ahead_s + left  # Redis' clock is the one that counts
            fields["deadline"] = self.cluster.history.now() + left
        self.cluster.history.write("submit", rid=job.rid, tenant=self.tenant, model=job.model, **fields)
        self.begin(job)
        return job

    def settle(self, job):
        """True when the job needs no more calls."""
        error = job.call.exception()
        if error is None:
            reply = job.call.result()
            self.cluster.history.write("ack", rid=job.rid, job=reply.name[5:], created=reply.state)
            self.acked += 1
            if job.kind == "cancel":
                self.cluster.history.write("cancel", rid=job.rid)
                self.stub().CancelJob.future(pb.CancelJobRequest(name=reply.name), timeout=5, metadata=self.metadata)
            return True
        if error.code() in REPEATED and job.tries < 400:
            job.retry_at = time.monotonic() + min(0.05 * job.tries, 0.5)
            return False
        found = lib.Failure(error)
        self.cluster.history.write("refused", rid=job.rid, reason=found.reason)
        # A job whose deadline passed before it was taken is refused, and rightly so; so is a broken picture.
        if not (job.kind in ("deadline", "bad") and error.code() == grpc.StatusCode.INVALID_ARGUMENT):
            raise AssertionError(f"{job.rid} refused: {found}")
        return True

    def run(self):
        try:
            self.work()
        except BaseException as e:  # noqa: BLE001  (told by the main thread)
            self.fault = e

    def work(self):
        under_way, made, began = collections.deque(), 0, time.monotonic()
        tick = threading.Event()
        while (made < self.n_jobs and not self.stop_now) or under_way:
            while len(under_way) < WINDOW and made < self.n_jobs and not self.stop_now and \
                    (not self.rate or made < (time.monotonic() - began) * self.rate):
                under_way.append(self.new_job(made))
                made += 1
            for _ in range(len(under_way)):
                job = under_way.popleft()
                if job.call is None:
                    if time.monotonic() >= job.retry_at:
                        self.begin(job)
                    under_way.append(job)
                elif not job.call.done():
                    under_way.append(job)
                elif not self.settle(job):
                    job.call = None
                    under_way.append(job)
            tick.wait(0.002)
