"""The client for ordinary code; aio.py has the one for asyncio."""
from __future__ import annotations

import concurrent.futures
import datetime
import threading
import time
from typing import Any, Callable, Iterable, Iterator, List, Mapping, Optional, Tuple, Type, Union

import grpc

from . import _batch, _batch_sync, _convert, _watch, _wire, errors
from .image import ImageLike, image_bytes
from .progress import Progress, ProgressLike
from .types import Encoding, Job, Mask, Model, Outcome, Segmentation, State

Item = Tuple[ImageLike, _convert.Prompts]


class Client:
    """A connection to a scheduler. Threads may share it.

        with pseg.Client("127.0.0.1:7433") as client:
            found = client.segment("photo.jpg", ["the dog", "the red car on the left"])
            print(found.masks[0].array.sum(), found.masks[0].result.predicted_iou)

    server: host:port or unix:/path. key: bearer key. tls, ca, cert, cert_key: TLS, files in PEM. What
    is not given comes from PSEG_SERVER, PSEG_KEY, PSEG_TLS, PSEG_CA, PSEG_CERT and PSEG_CERT_KEY.
    retry_s: how long a call is tried again while the server cannot be reached or says "later".

    Calls raise pseg.PsegError; jobs are made with a request id, so that trying again never makes two.
    timeout: seconds for the whole of it, None: no end."""

    def __init__(self, server: Optional[str] = None, *, key: Optional[str] = None, tls: Optional[bool] = None,
                 ca: Optional[str] = None, cert: Optional[str] = None, cert_key: Optional[str] = None,
                 retry_s: float = 30.0) -> None:
        t = _convert.target(server, key, tls, ca, cert, cert_key)
        self._metadata, self._retry_s = t.metadata, retry_s
        self._channel = (grpc.secure_channel(t.address, t.credentials, t.options) if t.credentials
                         else grpc.insecure_channel(t.address, t.options))
        self._calls = {name: _wire.channel_call(self._channel, name) for name in _wire.METHODS}

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Any, trace: Any) -> None:
        self.close()

    def _retry(self, call: Callable[[Optional[float]], Any], timeout: Optional[float]) -> Any:
        """call(seconds left), again while that is right and time is left."""
        start, attempt = time.monotonic(), 0
        while True:
            left = None if timeout is None else max(0.001, timeout - (time.monotonic() - start))
            try:
                return call(left)
            except grpc.RpcError as e:
                error = errors.from_rpc(e)
            wait = _convert.pause(error, attempt)
            spent = time.monotonic() - start
            limit = self._retry_s if timeout is None else min(self._retry_s, timeout)
            if wait is None or spent + wait > limit:
                raise error
            attempt += 1
            threading.Event().wait(wait)

    def _unary(self, name: str, request: Any, timeout: Optional[float]) -> Any:
        return self._retry(lambda left: self._calls[name](request, timeout=left, metadata=self._metadata), timeout)

    # ---- one image ----

    def segment(self, image: ImageLike, prompts: _convert.Prompts, *, encoding: Encoding = Encoding.BITS,
                model: str = "", threshold: float = 0.0, labels: Optional[Mapping[str, str]] = None,
                deadline: Optional[datetime.datetime] = None, timeout: Optional[float] = 300.0) -> Segmentation:
        """The masks of prompts (one phrase, or up to 64) in image. Raises JobFailed, JobCancelled or
        JobExpired where the job ends so, DeadlineExceeded where it is not done in time: it goes on,
        and wait() takes it up by the name in .metadata["job"]."""
        start = time.monotonic()

        def left() -> Optional[float]:
            return None if timeout is None else max(0.001, timeout - (time.monotonic() - start))

        data = image_bytes(image)
        spec = self._spec(data, prompts, left(), model=model, threshold=threshold, labels=labels, deadline=deadline)
        request = _wire.METHODS["Segment"].request(request_id=_convert.new_request_id(), job=spec,
                                                   format=_convert.mask_format(encoding))
        reply = self._held(data, spec, left, lambda: self._retry(
            lambda t: self._calls["Segment"](request, timeout=min(t or _convert.WAIT_S, _convert.WAIT_S),
                                             metadata=self._metadata), left()))
        job = _convert.job(reply.job)
        if not job.state.is_terminal:
            job = self.wait(job, timeout=left())
        _convert.check_succeeded(job)
        if len(reply.masks) == len(job.prompts):
            return Segmentation(job, [_convert.mask(m, m.data, job) for m in reply.masks])
        return Segmentation(job, self.masks(job, encoding=encoding, timeout=left()))

    def submit(self, image: ImageLike, prompts: _convert.Prompts, *, request_id: Optional[str] = None,
               model: str = "", threshold: float = 0.0, labels: Optional[Mapping[str, str]] = None,
               deadline: Optional[datetime.datetime] = None, ttl: Optional[datetime.timedelta] = None,
               timeout: Optional[float] = 60.0) -> Job:
        """Makes a job and returns it at once. With the same request_id and content: the earlier one."""
        data = image_bytes(image)
        spec = self._spec(data, prompts, timeout, model=model, threshold=threshold, labels=labels,
                          deadline=deadline, ttl=ttl)
        request = _wire.METHODS["CreateJob"].request(request_id=request_id or _convert.new_request_id(), job=spec)
        return _convert.job(self._held(data, spec, lambda: timeout,
                                       lambda: self._unary("CreateJob", request, timeout)))

    def _spec(self, data: bytes, prompts: _convert.Prompts, timeout: Optional[float], **kw: Any) -> Any:
        inline = len(data) <= _convert.INLINE_MAX
        if not inline:
            self.upload(data, timeout=timeout)
        return _convert.job_spec(data, prompts, inline, **kw)

    def _held(self, data: bytes, spec: Any, left: Callable[[], Optional[float]], call: Callable[[], Any]) -> Any:
        """call(), once more after another upload if the image's time to live ended meanwhile."""
        try:
            return call()
        except errors.FailedPrecondition as e:
            if e.reason != "IMAGE_NOT_HELD" or not spec.sha256:
                raise
        self.upload(data, timeout=left())
        return call()

    def upload(self, image: ImageLike, *, timeout: Optional[float] = 300.0) -> str:
        """Stores an image of any size; its SHA-256. One that is held already is not sent again."""
        data = image_bytes(image)
        reply = self._retry(lambda t: self._calls["UploadImage"](_convert.upload_parts(data), timeout=t,
                                                                 metadata=self._metadata), timeout)
        return str(reply.sha256)

    # ---- jobs ----

    def get(self, job: Union[str, Job], *, timeout: Optional[float] = 30.0) -> Job:
        request = _wire.METHODS["GetJob"].request(name=_convert.job_name(job))
        return _convert.job(self._unary("GetJob", request, timeout))

    def wait(self, job: Union[str, Job], *, timeout: Optional[float] = 300.0) -> Job:
        """The job once it has ended, however. Raises DeadlineExceeded if it has not in time."""
        start = time.monotonic()
        request = _wire.METHODS["WaitJob"].request(name=_convert.job_name(job))
        while True:
            left = _convert.WAIT_S if timeout is None else timeout - (time.monotonic() - start)
            found = _convert.job(self._unary("WaitJob", request, min(max(left, 1.0), _convert.WAIT_S)))
            if found.state.is_terminal:
                return found
            if timeout is not None and time.monotonic() - start >= timeout:
                raise _convert.not_done(found, timeout)

    def cancel(self, job: Union[str, Job], *, timeout: Optional[float] = 30.0) -> Job:
        request = _wire.METHODS["CancelJob"].request(name=_convert.job_name(job))
        return _convert.job(self._unary("CancelJob", request, timeout))

    def jobs(self, states: Iterable[State] = (), *, timeout: Optional[float] = 30.0) -> Iterator[Job]:
        """The caller's jobs, newest first, page by page."""
        request = _wire.METHODS["ListJobs"].request(page_size=1000, states=_convert.state_values(states))
        while True:
            reply = self._unary("ListJobs", request, timeout)
            for m in reply.jobs:
                yield _convert.job(m)
            if not reply.next_page_token:
                return
            request.page_token = reply.next_page_token

    def watch(self, jobs: _watch.Jobs = (), *, batch: str = "", resume: str = "",
              retry_s: Optional[float] = None) -> _watch.Watch:
        """Changes of state as they happen, as Events in their order: of these jobs (up to 1,000), whose present state
        comes first and which end the iteration when all of them have ended; of one batch; or of all the caller's.

            with client.watch() as events:              # begun: what is submitted now is told
                job = client.submit("photo.jpg", "the dog")
                for event in events:
                    print(event.name, event.state)

        resume: .token of an event of an earlier watch, whose next this one's first is to be; any scheduler takes it.
        A stream that breaks is taken up where it was for retry_s (None: as the client) without an answer; one thread
        iterates, any may close()."""
        return _watch.Watch(self, _watch.Core(jobs, batch, resume), self._retry_s if retry_s is None else retry_s)

    def masks(self, job: Union[str, Job], *, prompt_indexes: Iterable[int] = (), encoding: Encoding = Encoding.BITS,
              threshold: float = 0.0, timeout: Optional[float] = 300.0) -> List[Mask]:
        """The masks of a job that succeeded, in any encoding, at any threshold."""
        of = job if isinstance(job, Job) else self.get(job, timeout=timeout)
        request = _wire.METHODS["FetchMasks"].request(name=of.name, prompt_indexes=list(prompt_indexes),
                                                      format=_convert.mask_format(encoding, threshold))

        def fetch(left: Optional[float]) -> List[Mask]:
            stream = _convert.MaskStream(of)
            parts = self._calls["FetchMasks"](request, timeout=left, metadata=self._metadata)
            return [m for m in map(stream.add, parts) if m is not None]

        found: List[Mask] = self._retry(fetch, timeout)
        return found

    def models(self, *, timeout: Optional[float] = 30.0) -> List[Model]:
        """Those that live workers serve, the default one first."""
        reply = self._unary("ListModels", _wire.METHODS["ListModels"].request(), timeout)
        return [_convert.model(m) for m in reply.models]

    # ---- many images ----

    def map(self, items: Iterable[Item], *, concurrency: int = 16, ordered: bool = False,
            progress: ProgressLike = False, total: Optional[int] = None, **options: Any) -> Iterator[Outcome]:
        """segment() over an iterable of (image, prompts), `concurrency` at a time: yields an Outcome
        each, as they come or in order; one that failed holds its error and ends nothing. items is
        read no further than is under way, so it may be endless. options: those of segment()."""
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be 1 or more")
        source = iter(enumerate(items))
        waiting: "List[concurrent.futures.Future[Outcome]]" = []

        def one(index: int, item: Item) -> Outcome:
            try:
                return Outcome(index, item, self.segment(item[0], item[1], **options), None)
            except errors.PsegError as e:
                return Outcome(index, item, None, e)
            except (OSError, ValueError, TypeError) as e:  # the item itself is no good
                return Outcome(index, item, None, errors.InvalidArgument(
                    str(e), code="INVALID_ARGUMENT", reason="ITEM_INVALID"))

        pool = concurrent.futures.ThreadPoolExecutor(concurrency, "pseg")
        try:
            with Progress(progress, total) as bar:
                while True:
                    while len(waiting) < concurrency:
                        found = next(source, None)
                        if found is None:
                            break
                        waiting.append(pool.submit(one, *found))
                    if not waiting:
                        return
                    if ordered:
                        done = [waiting[0]]
                        done[0].result()
                    else:
                        done = list(concurrent.futures.wait(
                            waiting, return_when=concurrent.futures.FIRST_COMPLETED).done)
                    for f in done:
                        waiting.remove(f)
                        outcome = f.result()
                        bar.step(outcome.error is not None)
                        yield outcome
        finally:
            for f in waiting:
                f.cancel()
            pool.shutdown(wait=True)

    def batch(self, items: Iterable[_batch.BatchItem], *, state: Optional[_batch.PathLike] = None,
              encoding: Encoding = Encoding.BITS, model: str = "", threshold: float = 0.0,
              labels: Optional[Mapping[str, str]] = None, priority: int = 0,
              ttl: Optional[datetime.timedelta] = None, window: int = 10000, progress: ProgressLike = False,
              total: Optional[int] = None, retry_s: Optional[float] = None) -> Iterator[Outcome]:
        """Sends (image, prompts) or (image, prompts, id) as one batch and yields an Outcome each, in the order of
        their ends; one that failed holds its error and ends nothing. For a million images: one stream carries the
        jobs, one the results, and no more than `window` are under way. items is read in another thread.

        state: a file by which a later call goes on where this one ended, however it ended, given the same items
        and options: nothing is sent twice. An outcome counts as dealt with when the next one is asked for; after
        a kill the last tenth of a second's may come again (.index tells). Without it, leaving early cancels the
        batch.
        retry_s: how long a server that cannot be reached is tried again; None: as the client."""
        spec = {"model": model, "threshold": threshold, "labels": labels, "ttl": ttl}
        core = _batch.Core(_batch.StateFile(state, _batch.facts(encoding, spec, priority)), window, spec, priority)
        with Progress(progress, total) as bar:
            yield from _batch_sync.run(self, core, items, encoding, self._retry_s if retry_s is None else retry_s, bar)
