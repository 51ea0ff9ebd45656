"""A BatchService for tests of clients: it keeps the promises of proto/pseg/v1/batch.proto, ends every item
at once, and breaks what it is told to break. Not a test of its own.

Results go by a recipe, so that a client's output can be checked: an item whose image's bytes are b"bad"
fails as IMAGE_UNDECODABLE, one without an image is refused as IMAGE_MISSING, any other one has for each
prompt a mask of 4 x 3 pixels whose counts are the digits of the prompt's length."""
import concurrent.futures
import hashlib
import threading

import grpc

import lib_pseg as lib
from lib_pseg import pb

SERVICE = "pseg.v1.BatchService"


def status_of(code, reason, text):
    info = lib.message("google.rpc.ErrorInfo")(reason=reason, domain="pseg")
    status = lib.message("google.rpc.Status")(code=code.value[0], message=text)
    status.details.add().Pack(info)
    return status


def abort(context, code, reason, text):
    status = status_of(code, reason, text)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, text)


class Batch:
    def __init__(self, name):
        self.name, self.next, self.is_sealed, self.is_cancelled = name, 1, False, False
        self.ended = []  # (seq, custom_id, sha or "", prompts or reason), in the order of their ends
        self.changed = threading.Condition()


class Fake:
    """window: how many items may be under way; the other arguments break things:
    break_submit, break_results: after so many messages a stream ends as UNAVAILABLE, again and again;
    rewind: after so many results of all streams, one tells the last seven of them again, and says so."""

    def __init__(self, window=50, break_submit=0, break_results=0, omit_masks=False, rewind=0, listen="127.0.0.1:0"):
        self.window, self.break_submit, self.break_results = window, break_submit, break_results
        self.omit_masks, self.rewind, self.told = omit_masks, rewind, 0
        self.batches, self.images = {}, {}
        self.counts = {"content": 0, "sha256": 0, "uploads": 0, "uploaded": 0, "checks": 0, "submits": 0, "streams": 0}
        self.submits = set()  # contexts of the streams that are open
        self.errors = []  # breaches of the contract by the client
        self.last_grant = 1 << 62  # no window goes past this item
        self.refuse = None  # (code, reason, text) for every call
        self.hold_results = threading.Event()  # cleared: no result is told
        self.hold_results.set()
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(32),
                                  options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 << 20)])
        for service, names in ((SERVICE, lib.METHODS[SERVICE]), (lib.SERVICE, lib.METHODS[lib.SERVICE])):
            handlers = {n: self._handler(n, m) for n, m in names.items() if hasattr(self, n)}
            self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.port = self.server.add_insecure_port(listen)
        self.target = f"127.0.0.1:{self.port}"
        self.server.start()

    def wake(self):
        """Ends the streams of items that wait for nothing but the client."""
        for context in list(self.submits):
            context.cancel()

    def stop(self):
        self.server.stop(0).wait()

    def _handler(self, name, m):
        kind = ("stream" if m.client_streaming else "unary") + "_" + ("stream" if m.server_streaming else "unary")

        def call(request, context):
            if self.refuse:
                abort(context, *self.refuse)
            return getattr(self, name)(request, context)

        return getattr(grpc, f"{kind}_rpc_method_handler")(
            call, lib.message(m.input_type[1:]).FromString, lib.message(m.output_type[1:]).SerializeToString)

    # ---- batches ----

    def _find(self, name, context):
        found = self.batches.get(name)
        if not found:
            abort(context, grpc.StatusCode.NOT_FOUND, "BATCH_NOT_FOUND", f"{name} does not exist")
        return found

    def CreateBatch(self, q, context):
        name = f"batches/{q.batch_id}"
        b = self.batches.setdefault(name, Batch(name))
        return pb.Batch(name=name, next_seq=b.next, sealed=b.is_sealed)

    def GetBatch(self, q, context):
        b = self._find(q.name, context)
        return pb.Batch(name=q.name, next_seq=b.next, sealed=b.is_sealed)

    def CancelBatch(self, q, context):
        b = self._find(q.name, context)
        with b.changed:
            b.is_sealed = b.is_cancelled = True
            b.changed.notify_all()
        return pb.Batch(name=q.name, next_seq=b.next, sealed=True, cancel_requested=True)

    def SubmitJobs(self, requests, context):
        first = next(requests)
        b = self._find(first.header.batch, context)
        self.counts["submits"] += 1
        self.submits.add(context)
        context.add_callback(lambda: self.submits.discard(context))
        granted = min(b.next - 1 + self.window, self.last_grant)
        yield pb.SubmitJobsResponse(next_seq=b.next, window_end=granted, sealed=b.is_sealed)
        if b.is_sealed:
            return
        for n, q in enumerate(requests, 1):
            if q.WhichOneof("part") == "seal":
                with b.changed:
                    b.is_sealed = True
                    b.changed.notify_all()
                yield pb.SubmitJobsResponse(next_seq=b.next, window_end=granted, sealed=True)
                return
            seq = q.item.seq
            if seq > granted:
                self.errors.append(f"item {seq} is past the window {granted}")
                abort(context, grpc.StatusCode.INVALID_ARGUMENT, "BATCH_WINDOW", "past the window")
            with b.changed:
                if b.is_cancelled:
                    abort(context, grpc.StatusCode.FAILED_PRECONDITION, "BATCH_SEALED", "it is sealed")
                if seq > b.next:
                    self.errors.append(f"item {seq} comes, and {b.next} was due")
                    abort(context, grpc.StatusCode.INVALID_ARGUMENT, "BATCH_OUT_OF_ORDER", "out of order")
                if seq == b.next:
                    b.ended.append((seq, q.item.custom_id, *self._outcome(q.item.job)))
                    b.next += 1
                    b.changed.notify_all()
            if n == self.break_submit:
                abort(context, grpc.StatusCode.UNAVAILABLE, "DRAINING", "the server stops")
            if seq % 16 == 0 or seq == granted:
                granted = min(b.next - 1 + self.window, self.last_grant)
                yield pb.SubmitJobsResponse(next_seq=b.next, window_end=granted)

    def _outcome(self, job):
        kind = job.WhichOneof("image")
        if not kind:
            return "", "IMAGE_MISSING"
        self.counts[kind] += 1
        data = job.content if kind == "content" else self.images.get(job.sha256)
        if data is None:
            return "", "IMAGE_NOT_HELD"
        if kind == "content":
            self.images[hashlib.sha256(data).hexdigest()] = b"" if len(data) < 100 else data[:1]
        if data == b"bad":
            return "", "IMAGE_UNDECODABLE"
        return (job.model, job.mask_threshold), tuple(p.text for p in job.prompts)

    def _mask(self, i, prompt):
        return pb.Mask(prompt_index=i, width=4, height=3, encoding=2, data=str(len(prompt)).encode())

    def _job(self, name, seq, prompts):
        return pb.Job(name=f"jobs/{name[8:]}-{seq}", state=pb.STATE_SUCCEEDED, image_width=4, image_height=3,
                      prompts=[pb.Prompt(text=p) for p in prompts],
                      results=[lib.message("pseg.v1.PromptResult")(prompt_index=i, predicted_iou=0.5, area_px=len(p))
                               for i, p in enumerate(prompts)])

    def StreamBatchResults(self, q, context):
        b = self._find(q.name, context)
        self.counts["streams"] += 1
        at, told, rewound = int(q.resume_token or 0), 0, False
        while True:
            self.hold_results.wait(60)
            with b.changed:
                while at == len(b.ended) and not b.is_sealed:
                    b.changed.wait(1)
                    if not context.is_active():
                        return
                if at == len(b.ended):
                    return
                seq, custom_id, _, what = b.ended[at]
            at, told = at + 1, told + 1
            r = pb.BatchResult(seq=seq, custom_id=custom_id, state=pb.STATE_FAILED)
            if isinstance(what, str):
                r.error.CopyFrom(status_of(grpc.StatusCode.INVALID_ARGUMENT, what, "it is no good"))
            else:
                r.state = pb.STATE_SUCCEEDED
                r.job.CopyFrom(self._job(q.name, seq, what))
                r.masks_omitted = self.omit_masks
                if not self.omit_masks:
                    r.masks.extend(self._mask(i, p) for i, p in enumerate(what))
            yield pb.StreamBatchResultsResponse(resume_token=str(at), result=r, rewound=rewound)
            self.told, rewound = self.told + 1, False
            if self.rewind and self.told % self.rewind == 0:
                at, rewound = max(0, at - 7), True
            if told == self.break_results:
                abort(context, grpc.StatusCode.UNAVAILABLE, "DRAINING", "the server stops")

    # ---- the other service's part in it ----

    def BatchCheckImages(self, q, context):
        self.counts["checks"] += len(q.sha256)
        return pb.BatchCheckImagesResponse(images=[pb.Image(sha256=s, size_bytes=int(s in self.images)) for s in q.sha256])

    def UploadImage(self, requests, context):
        header = next(requests).header
        self.counts["uploads"] += 1
        existed = header.sha256 in self.images
        if not existed:
            data = b"".join(q.chunk for q in requests)
            assert hashlib.sha256(data).hexdigest() == header.sha256
            self.counts["uploaded"] += 1
            self.images[header.sha256] = data[:1]
        return pb.Image(sha256=header.sha256, size_bytes=header.size_bytes, existed=existed)

    def FetchMasks(self, q, context):
        name, seq = q.name[5:].rsplit("-", 1)
        what = next(w for s, _, _, w in self.batches[f"batches/{name}"].ended if s == int(seq))
        for i in q.prompt_indexes or range(len(what)):
            yield pb.FetchMasksResponse(mask=self._mask(i, what[i]), last_chunk=True)
