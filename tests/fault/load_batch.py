"""A client that sends its jobs as one batch: through SubmitJobs, with its results by StreamBatchResults beside it.
Both go on at any scheduler when they break, from nothing but a number and a token."""
import threading
import time

import grpc

import load
from cluster import lib
from lib_pseg import pb

SERVICE = "pseg.v1.BatchService"
STREAM_S = 20  # of one stream: then it is broken off and goes on elsewhere
SETTLE_S = 60  # for ends that a fail-over took back behind a reader that was done


class BatchClient(load.Client):
    """Items are made as the jobs of Client are, but none is cancelled."""

    def stub(self, service=SERVICE):
        member = self.rng.choice(self.cluster.schedulers)
        key = member.name, service
        if key not in self.stubs:
            self.stubs[key] = lib.Stub(self.cluster.channel(member, options=[
                ("grpc.min_reconnect_backoff_ms", 100), ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500)]), service)
        return self.stubs[key]

    def until_good(self, what):
        """what() until it does not fail for a reason that passes."""
        while True:
            try:
                return what()
            except grpc.RpcError as e:
                if e.code() not in load.REPEATED:
                    raise AssertionError(f"{self.name}: {lib.Failure(e)}") from e
            time.sleep(0.1)

    def call(self, method, request):
        return self.until_good(lambda: getattr(self.stub(), method)(request, timeout=5, metadata=self.metadata))

    def work(self):
        self.batch, self.sent, self.began = f"batches/{self.name}", 0, time.monotonic()
        self.call("CreateBatch", pb.CreateBatchRequest(batch_id=self.name))
        reader = threading.Thread(target=self.read_results, daemon=True)
        reader.start()
        self.until_good(self.submit)
        reader.join()
        if self.reader_fault:
            raise self.reader_fault
        counts = self.counts_at_the_end()
        self.cluster.history.write("batch", batch=self.name, items=self.n_jobs,
                                   counts={f.name: getattr(counts, f.name) for f in counts.DESCRIPTOR.fields})

    def counts_at_the_end(self):
        """A fail-over may take back ends that were told to a reader which is done: then it goes on from its token."""
        until = time.monotonic() + SETTLE_S
        while True:
            counts = self.call("GetBatch", pb.GetBatchRequest(name=self.batch)).counts
            if not counts.queued or time.monotonic() > until:
                return counts
            self.until_good(self.read_some)

    # ---- items ----

    def item(self, seq):
        rid = f"{self.name}-{seq}"
        kind = "bad" if self.kind_of(seq) == "bad" else "plain"
        spec = lib.spec(load.BROKEN_IMAGE if kind == "bad" else self.image, model=self.models[seq % len(self.models)],
                        labels={"item": rid.lower()})
        if seq > self.sent:
            self.sent = seq
            self.cluster.history.write("submit", rid=rid, tenant=self.tenant, model=spec.model,
                                       **({"bad": True} if kind == "bad" else {}))
        return pb.SubmitJobsRequest(item=pb.BatchItem(seq=seq, custom_id=rid, job=spec))

    def kind_of(self, seq):
        return "bad" if seq * 2654435761 % 1000 < 1000 * self.kinds.bad else "plain"

    def submit(self):
        """One stream: returns when the batch is sealed."""
        window, moved, over = [None, 0], threading.Condition(), threading.Event()

        def requests():
            yield pb.SubmitJobsRequest(header=pb.SubmitHeader(batch=self.batch))
            with moved:
                moved.wait_for(lambda: window[0] or over.is_set(), STREAM_S)
            seq = window[0] or self.n_jobs + 1
            while seq <= self.n_jobs and not over.is_set():
                with moved:
                    moved.wait_for(lambda s=seq: s <= window[1] or over.is_set(), STREAM_S)
                if self.rate and seq > (time.monotonic() - self.began) * self.rate:
                    over.wait(0.01)
                elif seq <= window[1]:
                    yield self.item(seq)
                    seq += 1
            if window[0] and not over.is_set():
                yield pb.SubmitJobsRequest(seal=pb.SubmitSeal())

        try:
            for answer in self.stub().SubmitJobs(requests(), timeout=STREAM_S, metadata=self.metadata):
                if not window[0] or answer.next_seq > window[0]:
                    self.cluster.history.write("promised", batch=self.name, next=answer.next_seq)
                with moved:
                    window[:] = answer.next_seq, answer.window_end
                    moved.notify_all()
                if answer.sealed:
                    return
        finally:
            over.set()
            with moved:
                moved.notify_all()

    # ---- results ----

    reader_fault = None

    def read_results(self):
        try:
            self.token = ""
            self.until_good(self.read_some)
        except BaseException as e:  # noqa: BLE001  (told by work)
            self.reader_fault = e

    def read_some(self):
        for m in self.stub().StreamBatchResults(pb.StreamBatchResultsRequest(name=self.batch, resume_token=self.token),
                                                timeout=STREAM_S, metadata=self.metadata):
            place = int(m.resume_token.partition("-")[0] or 0)  # how many ends lie before where it stands now
            if m.rewound:
                self.cluster.history.write("rewound", batch=self.name, place=place - m.HasField("result"))
            if m.HasField("result"):
                self.take(m.result, place)
            self.token = m.resume_token

    def take(self, r, place):
        rid = f"{self.name}-{r.seq}"
        assert r.custom_id == rid, (r.custom_id, rid)
        self.cluster.history.write("result", batch=self.name, seq=r.seq, place=place, state=int(r.state),
                                   refused=r.HasField("error"), job=r.job.name[5:])
        if r.HasField("error"):
            self.cluster.history.write("refused", rid=rid, reason=r.error.message)
        elif r.HasField("job"):
            self.cluster.history.write("ack", rid=rid, job=r.job.name[5:], created=int(r.state))
