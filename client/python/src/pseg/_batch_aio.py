"""AsyncClient.batch(): a task sends, the caller takes outcomes."""
from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Optional, Union

import grpc
import grpc.aio

from . import _wire, errors
from ._batch import BatchItem, Core
from ._batch_sync import Patience
from .progress import Progress
from .types import Encoding, Outcome, Segmentation

if TYPE_CHECKING:
    from .aio import AsyncClient


class _Sender:
    """As that of _batch_sync, in one task beside another that listens."""

    def __init__(self, client: "AsyncClient", core: Core,
                 items: Union[Iterable[BatchItem], AsyncIterable[BatchItem]], retry_s: float) -> None:
        self.core, self.changed = core, asyncio.Condition()
        self._client, self._source, self._patience = client, _each(items), Patience(retry_s)
        self._is_over = False
        self.task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def told(self, token: str, seq: int) -> None:
        self.core.state.step(token, seq)
        async with self.changed:
            self.changed.notify_all()

    async def _listen(self, call: Any) -> None:
        try:
            async for m in call:
                self._patience.well()
                self.core.answered(m)
                async with self.changed:
                    self.changed.notify_all()
        except grpc.RpcError:
            pass  # the call tells it once more
        self._is_over = True
        async with self.changed:
            self.changed.notify_all()

    async def _next(self) -> Optional[BatchItem]:
        core = self.core
        item = core.again()
        if item is not None:
            return item
        for _ in range(core.to_skip()):
            is_short = await _take(self._source) is None
            core.skipped(0 if is_short else 1, is_short)
        item = await _take(self._source)
        if item is not None:
            core.took(item)
        return item

    async def _message(self, item: BatchItem) -> Any:
        request, large = self.core.request(item)
        if large is not None:
            try:
                await self._client.upload(large, timeout=None)
            except (errors.InvalidArgument, errors.FailedPrecondition) as e:
                return self.core.bad(f"{e.reason} {e.message}")
        return request

    async def _send(self, call: Any) -> None:
        core = self.core
        await call.write(core.header())
        while True:
            async with self.changed:
                await self.changed.wait_for(lambda: self._is_over or core.is_sealed or core.has_room())
            if self._is_over or core.is_sealed:
                return
            item = await self._next()
            if item is None:
                break
            await call.write(await self._message(item))
            core.sent()
        await call.write(core.seal())

    async def _one_stream(self) -> None:
        self.core.asked, self._is_over = 0, False
        call = self._client._calls["SubmitJobs"](metadata=self._client._metadata)
        listener = asyncio.ensure_future(self._listen(call))
        try:
            try:
                await self._send(call)
                await call.done_writing()
            except (grpc.RpcError, asyncio.InvalidStateError):
                pass  # it has ended, and its status says how
            await listener
        finally:
            listener.cancel()
            call.cancel()
        if not self.core.is_sealed:
            error: errors.PsegError = errors.Unavailable("the stream ended too early", code="UNAVAILABLE")
            if await call.code() is not grpc.StatusCode.OK:
                error = errors.from_rpc(await _failure(call))
            await asyncio.sleep(self._patience.next(error))

    async def _run(self) -> None:
        while not self.core.is_sealed:
            await self._one_stream()


async def _failure(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(await call.code(), await call.initial_metadata(), await call.trailing_metadata(),
                                details=await call.details(), debug_error_string=None)


async def _each(items: Union[Iterable[BatchItem], AsyncIterable[BatchItem]]) -> AsyncIterator[BatchItem]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _take(source: AsyncIterator[BatchItem]) -> Optional[BatchItem]:
    try:
        return await source.__anext__()
    except StopAsyncIteration:
        return None


async def run(client: "AsyncClient", core: Core, items: Union[Iterable[BatchItem], AsyncIterable[BatchItem]],
              encoding: Encoding, retry_s: float, bar: Progress) -> AsyncGenerator[Outcome, None]:
    state = core.state
    if state.is_done:
        return
    if state.is_new:
        await client._unary("CreateBatch", _wire.METHODS["CreateBatch"].request(batch_id=state.batch[8:]), retry_s)
    sender, patience = _Sender(client, core, items, retry_s), Patience(retry_s)
    try:
        while not state.is_done:
            results = client._calls["StreamBatchResults"](core.results(encoding), metadata=client._metadata)
            reader = results.__aiter__()
            try:
                while True:
                    m = await _first(reader, sender.task)
                    if m is None:
                        break
                    patience.well()
                    if core.is_news(m):
                        outcome = core.outcome(m.result)
                        if m.result.masks_omitted and outcome.value:
                            masks = await client.masks(outcome.value.job, encoding=encoding)
                            outcome = dataclasses.replace(outcome, value=Segmentation(outcome.value.job, masks))
                        bar.step(outcome.error is not None)
                        yield outcome
                        await sender.told(m.resume_token, m.result.seq)
                    else:
                        await sender.told(m.resume_token, 0)
                state.is_done = True
            except grpc.RpcError as e:
                await asyncio.sleep(patience.next(errors.from_rpc(e)))
            finally:
                results.cancel()
    finally:
        await sender.close()
        state.save()
        if not state.is_done and not state.is_kept:
            await client._unary("CancelBatch", _wire.METHODS["CancelBatch"].request(name=state.batch), 5.0)


async def _first(reader: Any, sender: "asyncio.Task[None]") -> Any:
    """The next message, or None at the end; the sender's failure, as soon as it fails."""
    message = asyncio.ensure_future(reader.__anext__())
    waiting = {message, sender} if not sender.done() else {message}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if sender.done() and sender.exception():
            raise sender.exception()  # type: ignore[misc]
        return await message
    except StopAsyncIteration:
        return None
    finally:
        if not message.done():
            message.cancel()
