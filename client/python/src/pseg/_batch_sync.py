"""Client.batch(): a thread sends, the caller's own takes outcomes."""
from __future__ import annotations

import collections
import dataclasses
import itertools
import threading
import time
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Optional

import grpc

from . import _convert, _wire, errors
from ._batch import BatchItem, Core
from .progress import Progress
from .types import Encoding, Outcome, Segmentation

if TYPE_CHECKING:
    from .client import Client


class Patience:
    """Seconds to wait before another attempt, or the error where that is wrong or has lasted too long."""

    def __init__(self, limit_s: float) -> None:
        self._limit, self._since, self._attempt = limit_s, 0.0, 0

    def well(self) -> None:
        self._attempt = 0

    def next(self, error: errors.PsegError) -> float:
        now = time.monotonic()
        if self._attempt == 0:
            self._since = now
        wait = _convert.pause(error, self._attempt)
        if wait is None or now + wait - self._since > self._limit:
            raise error
        self._attempt += 1
        return wait


class _Attempt:
    """One stream of items. What is sent lies in `queue` until gRPC's thread takes it."""

    def __init__(self, cv: threading.Condition) -> None:
        self._cv, self.queue, self.is_over, self.error = cv, collections.deque(), False, None  # type: Any, Any, bool, Any
        self.call: Any = None

    def put(self, request: Any) -> bool:
        with self._cv:
            self._cv.wait_for(lambda: self.is_over or len(self.queue) < 8)
            self.queue.append(request)
            self._cv.notify_all()
            return not self.is_over

    def requests(self) -> Iterator[Any]:
        while True:
            with self._cv:
                self._cv.wait_for(lambda: self.is_over or self.queue)
                if self.is_over:
                    return
                request = self.queue.popleft()
                self._cv.notify_all()
            if request is None:
                return
            yield request

    def listen(self, answered: Callable[[Any], None]) -> None:
        error: Optional[errors.PsegError] = None
        try:
            for m in self.call:
                answered(m)
        except grpc.RpcError as e:
            error = errors.from_rpc(e)
        with self._cv:
            self.error = error or errors.Unavailable("the stream ended too early", code="UNAVAILABLE")
            self.is_over = True
            self._cv.notify_all()


class _Sender:
    """Sends all items in a thread of its own, over as many streams as it takes."""

    def __init__(self, client: "Client", core: Core, items: Iterable[BatchItem], retry_s: float) -> None:
        self.core, self.cv = core, threading.Condition()
        self.failure: Optional[BaseException] = None
        self.results: Any = None  # the call of results, cancelled when this fails
        self._client, self._source, self._patience = client, iter(items), Patience(retry_s)
        self._stop, self._attempt = False, _Attempt(self.cv)
        self._thread = threading.Thread(target=self._run, name="pseg-batch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with self.cv:
            self._stop = True
            self.cv.notify_all()
        if self._attempt.call is not None:
            self._attempt.call.cancel()
        self._thread.join()

    def told(self, token: str, seq: int) -> None:
        with self.cv:
            self.core.state.step(token, seq)
            self.cv.notify_all()

    def _answered(self, m: Any) -> None:
        self._patience.well()
        with self.cv:
            self.core.answered(m)
            self.cv.notify_all()

    def _next(self) -> Optional[BatchItem]:
        core = self.core
        item = core.again()
        if item is not None:
            return item
        n = core.to_skip()
        had = sum(1 for _ in itertools.islice(self._source, n))
        core.skipped(had, had < n)
        item = next(self._source, None)
        if item is not None:
            with self.cv:
                core.took(item)
        return item

    def _message(self, item: BatchItem) -> Any:
        request, large = self.core.request(item)
        if large is not None:
            try:
                self._client.upload(large, timeout=None)
            except (errors.InvalidArgument, errors.FailedPrecondition) as e:
                return self.core.bad(f"{e.reason} {e.message}")
        return request

    def _send(self, attempt: _Attempt) -> None:
        core = self.core
        attempt.put(core.header())
        while True:
            with self.cv:
                self.cv.wait_for(lambda: self._stop or attempt.is_over or core.is_sealed or core.has_room())
                if self._stop or attempt.is_over or core.is_sealed:
                    return
            item = self._next()
            if item is None:
                break
            if not attempt.put(self._message(item)):
                return
            with self.cv:
                core.sent()
        attempt.put(core.seal())

    def _one_stream(self) -> None:
        attempt = self._attempt = _Attempt(self.cv)
        with self.cv:
            self.core.asked = 0  # before the first answer can come
        attempt.call = self._client._calls["SubmitJobs"](attempt.requests(), metadata=self._client._metadata)
        listener = threading.Thread(target=attempt.listen, args=(self._answered,), name="pseg-batch-in", daemon=True)
        listener.start()
        try:
            self._send(attempt)
            attempt.put(None)
        except BaseException:
            attempt.call.cancel()
            raise
        finally:
            if self._stop:
                attempt.call.cancel()
            listener.join()
        if not self._stop and not self.core.is_sealed:
            wait = self._patience.next(attempt.error)
            with self.cv:
                self.cv.wait_for(lambda: self._stop, wait)

    def _run(self) -> None:
        try:
            while not self._stop and not self.core.is_sealed:
                self._one_stream()
        except BaseException as e:  # of the caller's iterable, too: his to see
            with self.cv:
                self.failure = e
            if self.results is not None:
                self.results.cancel()


def run(client: "Client", core: Core, items: Iterable[BatchItem], encoding: Encoding, retry_s: float,
        bar: Progress) -> Iterator[Outcome]:
    """The outcomes, until all are told. Closed early, it stops sending; the batch goes on where its state is
    kept, and is cancelled where nobody could take it up."""
    state = core.state
    if state.is_done:
        return
    if state.is_new:
        client._unary("CreateBatch", _wire.METHODS["CreateBatch"].request(batch_id=state.batch[8:]), retry_s)
    sender, patience = _Sender(client, core, items, retry_s), Patience(retry_s)
    try:
        while not state.is_done:
            sender.results = client._calls["StreamBatchResults"](core.results(encoding), metadata=client._metadata)
            if sender.failure:  # it came before there was a call to cancel
                raise sender.failure
            try:
                for m in sender.results:
                    patience.well()
                    if core.is_news(m):
                        with sender.cv:
                            outcome = core.outcome(m.result)
                        if m.result.masks_omitted and outcome.value:
                            masks = client.masks(outcome.value.job, encoding=encoding)
                            outcome = dataclasses.replace(outcome, value=Segmentation(outcome.value.job, masks))
                        bar.step(outcome.error is not None)
                        yield outcome
                        sender.told(m.resume_token, m.result.seq)
                    else:
                        sender.told(m.resume_token, 0)
                    if sender.failure:
                        raise sender.failure
                state.is_done = True
            except grpc.RpcError as e:
                if sender.failure:
                    raise sender.failure
                threading.Event().wait(patience.next(errors.from_rpc(e)))
    finally:
        if sender.results is not None:
            sender.results.cancel()
        sender.close()
        state.save()
        if not state.is_done and not state.is_kept:
            client._unary("CancelBatch", _wire.METHODS["CancelBatch"].request(name=state.batch), 5.0)
