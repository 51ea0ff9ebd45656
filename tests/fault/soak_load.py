"""What a soak puts on the service: clients of single jobs, clients of batches whose streams are broken off and go on,
and a watcher of all. Each counts what it did in `done`, and ends with `fault` at the first answer that is wrong."""
import collections
import threading

import grpc

STREAM_S = 15     # of a watch: then it goes on from its token, at the other scheduler
BATCH_ITEMS = 200
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Load(threading.Thread):
    def __init__(self, lib, stubs, number, pause_s):
        super().__init__(daemon=True)
        self.lib, self.stubs, self.number, self.pause_s = lib, stubs, number, pause_s
        self.done, self.fault, self.stopping = collections.Counter(), None, threading.Event()

    def run(self):
        try:
            while not self.stopping.wait(self.pause_s):
                self.step(self.done["steps"])
                self.done["steps"] += 1
        except BaseException as e:  # noqa: BLE001  (told by the main thread)
            self.fault = e

    def again(self, what):
        """what() until it is answered: a machine that others use, too, may stall for longer than a deadline. Each
        call here may be repeated; how often they were is counted."""
        while True:
            try:
                return what()
            except grpc.RpcError as e:
                if e.code() not in AGAIN:
                    raise
                self.done["repeated"] += 1
                self.stopping.wait(0.2)


class Jobs(Load):
    """Submits, waits, fetches, uploads, cancels and lists, one after the other."""

    def step(self, i):
        lib, stub, pb = self.lib, self.stubs[i % len(self.stubs)], self.lib.pb
        image = lib.png(32 + i % 64, 48, seed=1000 * self.number + i % 500)
        model = "scenes" if i % 10 == 0 else "empty"
        job = self.again(lambda: lib.create(stub, image, phrases=("the small red circle",), model=model,
                                            request_id=f"soak-{self.number}-{i}", result_ttl={"seconds": 60}))
        self.done["jobs"] += 1
        if i % 7 == 3:
            self.again(lambda: stub.CancelJob(pb.CancelJobRequest(name=job.name), timeout=lib.CALL_S))
        end = self.again(lambda: lib.wait(stub, job.name))
        if end.state not in (pb.STATE_SUCCEEDED, pb.STATE_CANCELLED) or (end.state == pb.STATE_CANCELLED and i % 7 != 3):
            raise AssertionError(f"{job.name} ended as {end.state}: {end.error}")
        if end.state == pb.STATE_SUCCEEDED and i % 3 == 0:
            self.done["masks"] += self.again(lambda: sum(p.last_chunk for p in stub.FetchMasks(
                pb.FetchMasksRequest(name=job.name), timeout=lib.CALL_S)))
        if i % 50 == 0:
            self.again(lambda: stub.ListJobs(pb.ListJobsRequest(page_size=20), timeout=lib.CALL_S))


class Batches(Load):
    """A batch after the other, kept for a minute. Every third one's stream of items is broken off in the middle,
    every second one's stream of results: both go on at the other scheduler, and each item is told once."""

    def step(self, i):
        lib, pb = self.lib, self.lib.pb
        name = f"soak-batch-{self.number}-{i}"
        self.again(lambda: self.stubs[0].CreateBatch(pb.CreateBatchRequest(batch_id=name, ttl={"seconds": 60}),
                                                     timeout=lib.CALL_S))
        if i % 3 == 0:
            self.again(lambda: self.submit(self.stubs[i % 2], name, BATCH_ITEMS // 2, seal=False))
        self.again(lambda: self.submit(self.stubs[(i + 1) % 2], name, BATCH_ITEMS, seal=True))
        self.token, told = "", collections.Counter()
        if i % 2:
            self.again(lambda: self.read(self.stubs[0], name, told, BATCH_ITEMS // 3))
        self.again(lambda: self.read(self.stubs[1], name, told, None))
        if sorted(told) != list(range(1, BATCH_ITEMS + 1)) or max(told.values()) > 1:
            raise AssertionError(f"{name}: {len(told)} of {BATCH_ITEMS} items told, at most {max(told.values())} times")
        self.done["jobs"] += BATCH_ITEMS
        self.done["batches"] += 1

    def submit(self, stub, name, up_to, seal):
        pb, lib = self.lib.pb, self.lib
        moved, window = threading.Condition(), [0, 0]

        def requests():
            yield pb.SubmitJobsRequest(header=pb.SubmitHeader(batch=f"batches/{name}"))
            with moved:
                moved.wait_for(lambda: window[0], lib.CALL_S)
            for seq in range(window[0], up_to + 1):
                with moved:
                    moved.wait_for(lambda s=seq: s <= window[1], lib.CALL_S)
                image = lib.png(24 + seq % 8, 24, seed=seq % 16)
                yield pb.SubmitJobsRequest(item=pb.BatchItem(
                    seq=seq, custom_id=f"{name}/{seq}", job=lib.spec(image, model="empty", result_ttl={"seconds": 60})))
            if seal:
                yield pb.SubmitJobsRequest(seal=pb.SubmitSeal())
            else:
                with moved:
                    moved.wait_for(lambda: window[0] > up_to, lib.CALL_S)

        call = stub.SubmitJobs(requests(), timeout=lib.START_S)
        for answer in call:
            with moved:
                window[:] = answer.next_seq, answer.window_end
                moved.notify_all()
            if not seal and answer.next_seq > up_to // 2:
                call.cancel()
                return
        if window[0] != up_to + 1:
            raise AssertionError(f"{name}: {window[0] - 1} of {up_to} items were taken")

    def read(self, stub, name, told, at_most):
        lib, pb = self.lib, self.lib.pb
        call = stub.StreamBatchResults(pb.StreamBatchResultsRequest(
            name=f"batches/{name}", resume_token=self.token, format=pb.MaskFormat()), timeout=2 * lib.START_S)
        for m in call:
            self.token = m.resume_token
            if m.HasField("result"):
                told[m.result.seq] += 1
                self.done["masks"] += len(m.result.masks)
                if m.result.state != pb.STATE_SUCCEEDED:
                    raise AssertionError(f"{name}, item {m.result.seq} ended as {m.result.state}: {m.result.error}")
            if at_most and sum(told.values()) >= at_most:
                call.cancel()
                return


class Watch(Load):
    """All changes of all jobs, without a gap, and each end once: `ends` of done must be the number of jobs."""

    token, began = "", None

    def step(self, i):
        lib, pb = self.lib, self.lib.pb
        try:
            for m in self.stubs[i % len(self.stubs)].WatchJobs(pb.WatchJobsRequest(resume_token=self.token),
                                                               timeout=STREAM_S):
                if m.gap:
                    raise AssertionError("the watch has a gap")
                self.token = m.resume_token
                self.began.set()
                self.done["ends"] += m.HasField("event") and m.event.state >= pb.STATE_SUCCEEDED
        except grpc.RpcError as e:
            if e.code() not in AGAIN:
                raise AssertionError(f"the watch ended: {lib.Failure(e)}") from e


def start(lib, stubs, batch_stubs, clients, batches, pause_s):
    """The loads, running; the watch is the last."""
    watch = Watch(lib, batch_stubs, 0, 0)
    watch.began = threading.Event()
    watch.start()
    lib.until("the watch's first message", lambda: watch.began.is_set() or watch.fault)
    loads = [*(Jobs(lib, stubs, n, pause_s) for n in range(clients)),
             *(Batches(lib, batch_stubs, n, 4 * pause_s) for n in range(batches))]
    for load in loads:
        load.start()
    return [*loads, watch]


def stop(loads, lib):
    """Ends them; the last one when it has told the end of every job."""
    *clients, watch = loads
    for load in clients:
        load.stopping.set()
    for load in clients:
        load.join(2 * lib.START_S)
    done = sum((x.done for x in clients), collections.Counter())
    faults = [repr(x.fault) for x in loads if x.fault]
    if not faults:
        try:
            lib.until(f"the end of {done['jobs']} jobs told by the watch", lambda: watch.done["ends"] >= done["jobs"])
        except AssertionError as e:
            faults.append(f"{e}: {watch.done['ends']}")
    watch.stopping.set()
    watch.join(2 * STREAM_S)
    if not faults and watch.done["ends"] != done["jobs"]:
        faults.append(f"the watch told of {watch.done['ends']} ends of {done['jobs']} jobs")
    return done + watch.done, faults
