"""The client for asyncio: client.py's, each call a coroutine."""
from __future__ import annotations

import asyncio
import datetime
import time
from typing import (Any, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, List, Mapping, Optional, Set, Type,
                    Union)

import grpc
import grpc.aio

from . import _batch, _batch_aio, _convert, _watch, _wire, errors
from .client import Item
from .image import ImageLike, image_bytes
from .progress import Progress, ProgressLike
from .types import Encoding, Job, Mask, Model, Outcome, Segmentation, State


class AsyncClient:
    """As Client, of one event loop.

        async with pseg.AsyncClient("127.0.0.1:7433") as client:
            found = await client.segment("photo.jpg", "the dog")
            async for outcome in client.map(pairs, concurrency=64):
                ...

    Files are read within the loop: they are small beside the network. Cancelling a task cancels its
    call; a job that was made goes on."""

    def __init__(self, server: Optional[str] = None, *, key: Optional[str] = None, tls: Optional[bool] = None,
                 ca: Optional[str] = None, cert: Optional[str] = None, cert_key: Optional[str] = None,
                 retry_s: float = 30.0) -> None:
        t = _convert.target(server, key, tls, ca, cert, cert_key)
        self._metadata, self._retry_s = t.metadata, retry_s
        self._channel = (grpc.aio.secure_channel(t.address, t.credentials, t.options) if t.credentials
                         else grpc.aio.insecure_channel(t.address, t.options))
        self._calls = {name: _wire.channel_call(self._channel, name) for name in _wire.METHODS}

    async def close(self) -> None:
        await self._channel.close(None)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], value: Any, trace: Any) -> None:
        await self.close()

    async def _retry(self, call: Callable[[Optional[float]], Awaitable[Any]], timeout: Optional[float]) -> Any:
        start, attempt = time.monotonic(), 0
        while True:
            left = None if timeout is None else max(0.001, timeout - (time.monotonic() - start))
            try:
                return await call(left)
            except grpc.RpcError as e:
                error = errors.from_rpc(e)
            wait = _convert.pause(error, attempt)
            spent = time.monotonic() - start
            limit = self._retry_s if timeout is None else min(self._retry_s, timeout)
            if wait is None or spent + wait > limit:
                raise error
            attempt += 1
            await asyncio.sleep(wait)

    async def _unary(self, name: str, request: Any, timeout: Optional[float]) -> Any:
        async def call(left: Optional[float]) -> Any:
            return await self._calls[name](request, timeout=left, metadata=self._metadata)

        return await self._retry(call, timeout)

    # ---- one image ----

    async def segment(self, image: ImageLike, prompts: _convert.Prompts, *, encoding: Encoding = Encoding.BITS,
                      model: str = "", threshold: float = 0.0, labels: Optional[Mapping[str, str]] = None,
                      deadline: Optional[datetime.datetime] = None,
                      timeout: Optional[float] = 300.0) -> Segmentation:
        start = time.monotonic()

        def left() -> Optional[float]:
            return None if timeout is None else max(0.001, timeout - (time.monotonic() - start))

        data = image_bytes(image)
        spec = await self._spec(data, prompts, left(), model=model, threshold=threshold, labels=labels,
                                deadline=deadline)
        request = _wire.METHODS["Segment"].request(request_id=_convert.new_request_id(), job=spec,
                                                   format=_convert.mask_format(encoding))

        async def call(t: Optional[float]) -> Any:
            return await self._calls["Segment"](request, timeout=min(t or _convert.WAIT_S, _convert.WAIT_S),
                                                metadata=self._metadata)

        reply = await self._held(data, spec, left, lambda: self._retry(call, left()))
        job = _convert.job(reply.job)
        if not job.state.is_terminal:
            job = await self.wait(job, timeout=left())
        _convert.check_succeeded(job)
        if len(reply.masks) == len(job.prompts):
            return Segmentation(job, [_convert.mask(m, m.data, job) for m in reply.masks])
        return Segmentation(job, await self.masks(job, encoding=encoding, timeout=left()))

    async def submit(self, image: ImageLike, prompts: _convert.Prompts, *, request_id: Optional[str] = None,
                     model: str = "", threshold: float = 0.0, labels: Optional[Mapping[str, str]] = None,
                     deadline: Optional[datetime.datetime] = None, ttl: Optional[datetime.timedelta] = None,
                     timeout: Optional[float] = 60.0) -> Job:
        data = image_bytes(image)
        spec = await self._spec(data, prompts, timeout, model=model, threshold=threshold, labels=labels,
                                deadline=deadline, ttl=ttl)
        request = _wire.METHODS["CreateJob"].request(request_id=request_id or _convert.new_request_id(), job=spec)
        return _convert.job(await self._held(data, spec, lambda: timeout,
                                             lambda: self._unary("CreateJob", request, timeout)))

    async def _spec(self, data: bytes, prompts: _convert.Prompts, timeout: Optional[float], **kw: Any) -> Any:
        inline = len(data) <= _convert.INLINE_MAX
        if not inline:
            await self.upload(data, timeout=timeout)
        return _convert.job_spec(data, prompts, inline, **kw)

    async def _held(self, data: bytes, spec: Any, left: Callable[[], Optional[float]],
                    call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await call()
        except errors.FailedPrecondition as e:
            if e.reason != "IMAGE_NOT_HELD" or not spec.sha256:
                raise
        await self.upload(data, timeout=left())
        return await call()

    async def upload(self, image: ImageLike, *, timeout: Optional[float] = 300.0) -> str:
        data = image_bytes(image)

        async def call(left: Optional[float]) -> Any:
            return await self._calls["UploadImage"](_convert.upload_parts(data), timeout=left,
                                                    metadata=self._metadata)

        return str((await self._retry(call, timeout)).sha256)

    # ---- jobs ----

    async def get(self, job: Union[str, Job], *, timeout: Optional[float] = 30.0) -> Job:
        request = _wire.METHODS["GetJob"].request(name=_convert.job_name(job))
        return _convert.job(await self._unary("GetJob", request, timeout))

    async def wait(self, job: Union[str, Job], *, timeout: Optional[float] = 300.0) -> Job:
        start = time.monotonic()
        request = _wire.METHODS["WaitJob"].request(name=_convert.job_name(job))
        while True:
            left = _convert.WAIT_S if timeout is None else timeout - (time.monotonic() - start)
            found = _convert.job(await self._unary("WaitJob", request, min(max(left, 1.0), _convert.WAIT_S)))
            if found.state.is_terminal:
                return found
            if timeout is not None and time.monotonic() - start >= timeout:
                raise _convert.not_done(found, timeout)

    async def cancel(self, job: Union[str, Job], *, timeout: Optional[float] = 30.0) -> Job:
        request = _wire.METHODS["CancelJob"].request(name=_convert.job_name(job))
        return _convert.job(await self._unary("CancelJob", request, timeout))

    async def jobs(self, states: Iterable[State] = (), *, timeout: Optional[float] = 30.0) -> AsyncIterator[Job]:
        request = _wire.METHODS["ListJobs"].request(page_size=1000, states=_convert.state_values(states))
        while True:
            reply = await self._unary("ListJobs", request, timeout)
            for m in reply.jobs:
                yield _convert.job(m)
            if not reply.next_page_token:
                return
            request.page_token = reply.next_page_token

    def watch(self, jobs: _watch.Jobs = (), *, batch: str = "", resume: str = "",
              retry_s: Optional[float] = None) -> _watch.AsyncWatch:
        """As Client.watch, with `async with` and `async for`."""
        return _watch.AsyncWatch(self, _watch.Core(jobs, batch, resume), self._retry_s if retry_s is None else retry_s)

    async def masks(self, job: Union[str, Job], *, prompt_indexes: Iterable[int] = (),
                    encoding: Encoding = Encoding.BITS, threshold: float = 0.0,
                    timeout: Optional[float] = 300.0) -> List[Mask]:
        of = job if isinstance(job, Job) else await self.get(job, timeout=timeout)
        request = _wire.METHODS["FetchMasks"].request(name=of.name, prompt_indexes=list(prompt_indexes),
                                                      format=_convert.mask_format(encoding, threshold))

        async def fetch(left: Optional[float]) -> List[Mask]:
            stream, found = _convert.MaskStream(of), []
            async for part in self._calls["FetchMasks"](request, timeout=left, metadata=self._metadata):
                mask = stream.add(part)
                if mask is not None:
                    found.append(mask)
            return found

        found: List[Mask] = await self._retry(fetch, timeout)
        return found

    async def models(self, *, timeout: Optional[float] = 30.0) -> List[Model]:
        reply = await self._unary("ListModels", _wire.METHODS["ListModels"].request(), timeout)
        return [_convert.model(m) for m in reply.models]

    # ---- many images ----

    async def map(self, items: Union[Iterable[Item], AsyncIterable[Item]], *, concurrency: int = 64,
                  progress: ProgressLike = False, total: Optional[int] = None,
                  **options: Any) -> AsyncIterator[Outcome]:
        """As Client.map, in the order in which they are done."""
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; it must be 1 or more")
        source = _enumerate(items)
        waiting: "Set[asyncio.Task[Outcome]]" = set()

        async def one(index: int, item: Item) -> Outcome:
            try:
                return Outcome(index, item, await self.segment(item[0], item[1], **options), None)
            except errors.PsegError as e:
                return Outcome(index, item, None, e)
            except (OSError, ValueError, TypeError) as e:
                return Outcome(index, item, None, errors.InvalidArgument(
                    str(e), code="INVALID_ARGUMENT", reason="ITEM_INVALID"))

        try:
            with Progress(progress, total) as bar:
                is_open = True
                while True:
                    while is_open and len(waiting) < concurrency:
                        try:
                            index, item = await source.__anext__()
                        except StopAsyncIteration:
                            is_open = False
                            break
                        waiting.add(asyncio.ensure_future(one(index, item)))
                    if not waiting:
                        return
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        outcome = task.result()
                        bar.step(outcome.error is not None)
                        yield outcome
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def batch(self, items: Union[Iterable[_batch.BatchItem], AsyncIterable[_batch.BatchItem]], *,
                    state: Optional[_batch.PathLike] = None, encoding: Encoding = Encoding.BITS, model: str = "",
                    threshold: float = 0.0, labels: Optional[Mapping[str, str]] = None, priority: int = 0,
                    ttl: Optional[datetime.timedelta] = None, window: int = 10000, progress: ProgressLike = False,
                    total: Optional[int] = None, retry_s: Optional[float] = None) -> AsyncIterator[Outcome]:
        """As Client.batch. Leave it early within contextlib.aclosing, or it ends when it is collected."""
        spec = {"model": model, "threshold": threshold, "labels": labels, "ttl": ttl}
        core = _batch.Core(_batch.StateFile(state, _batch.facts(encoding, spec, priority)), window, spec, priority)
        with Progress(progress, total) as bar:
            outcomes = _batch_aio.run(self, core, items, encoding, self._retry_s if retry_s is None else retry_s, bar)
            try:
                async for outcome in outcomes:
                    yield outcome
            finally:
                await outcomes.aclose()


async def _enumerate(items: Union[Iterable[Item], AsyncIterable[Item]]) -> "AsyncIterator[tuple[int, Item]]":
    index = 0
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield index, item
            index += 1
    else:
        for item in items:
            yield index, item
            index += 1
