"""Client.watch() and AsyncClient.watch(): changes of state as they happen, over streams that break."""
from __future__ import annotations

import asyncio
import collections
import threading
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, Iterable, Optional, Set, Type, Union

import grpc
import grpc.aio

from . import _convert, _wire, errors
from ._batch_sync import Patience
from .types import Event, Job, State

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .client import Client

Jobs = Union[str, Job, Iterable[Union[str, Job]]]


class Core:
    """What both kinds share: from messages to events, with nothing told twice. No calls are made here."""

    def __init__(self, jobs: Jobs, batch: str, resume: str) -> None:
        self._names = [_convert.job_name(j) for j in ([jobs] if isinstance(jobs, (str, Job)) else jobs)]
        self._batch, self.token = batch, resume
        self._told: Dict[str, Optional[State]] = {}  # of named jobs
        self._again: Set[str] = set()  # of which a new stream tells the present state first
        self.ready: Deque[Event] = collections.deque()
        self.is_over = False

    def request(self) -> Any:
        self._again = set(self._told)
        return _wire.METHODS["WatchJobs"].request(names=self._names, batch=self._batch, resume_token=self.token)

    def take(self, m: Any) -> None:
        self.token = m.resume_token
        if m.gap:
            self.ready.append(Event("", None, None, "", "", self.token, True))
        if not m.HasField("event"):
            return
        event = _convert.event(m)
        if event.name in self._again:
            self._again.remove(event.name)
            if self._told[event.name] == event.state:
                return
        if self._names:
            self._told[event.name] = event.state
        self.ready.append(event)

    def ended(self) -> Optional[errors.PsegError]:
        """The stream has ended well: right where jobs were named, and all of them have ended."""
        if self._names:
            self.is_over = True
            return None
        return errors.Unavailable("the stream ended too early", code="UNAVAILABLE", reason="SERVER_UNAVAILABLE")


class Watch:
    """Events, one after the other, of Client.watch(). In a `with` it has begun once the block is entered:
    what happens from then on is told."""

    def __init__(self, client: "Client", core: Core, retry_s: float) -> None:
        self._client, self._core, self._patience = client, core, Patience(retry_s)
        self._call: Any = None
        self._closed = threading.Event()

    @property
    def token(self) -> str:
        """Where another watch would go on, after all that came so far."""
        return self._core.token

    def __enter__(self) -> "Watch":
        self._until(lambda: self._call is not None)
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Any, trace: Any) -> None:
        self.close()

    def __iter__(self) -> "Watch":
        return self

    def __next__(self) -> Event:
        self._until(lambda: bool(self._core.ready))
        if not self._core.ready:
            raise StopIteration
        return self._core.ready.popleft()

    def close(self) -> None:
        """Ends the iteration, also that of another thread."""
        self._closed.set()
        if self._call is not None:
            self._call.cancel()

    def _until(self, is_there: Callable[[], bool]) -> None:
        """Reads on until it is, or nothing more will come."""
        while not self._closed.is_set() and not self._core.is_over and not is_there():
            error = self._read()
            if error is not None and not self._closed.is_set():
                self._closed.wait(self._patience.next(error))

    def _read(self) -> Optional[errors.PsegError]:
        """One message, of a new stream if there is none; or what went wrong."""
        try:
            call = self._call
            if call is None:
                call = self._client._calls["WatchJobs"](self._core.request(), metadata=self._client._metadata)
            m = next(call, None)
            self._call = call
            if self._closed.is_set():  # which may have come before there was a call to cancel
                call.cancel()
            if m is not None:
                self._patience.well()
                self._core.take(m)
                return None
            self._call = None
            return self._core.ended()
        except grpc.RpcError as e:
            self._call = None
            return errors.from_rpc(e)


class AsyncWatch:
    """As Watch, of AsyncClient.watch(): `async with` and `async for`."""

    def __init__(self, client: "AsyncClient", core: Core, retry_s: float) -> None:
        self._client, self._core, self._patience = client, core, Patience(retry_s)
        self._call: Any = None
        self._is_closed = False

    @property
    def token(self) -> str:
        return self._core.token

    async def __aenter__(self) -> "AsyncWatch":
        await self._until(lambda: self._call is not None)
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], value: Any, trace: Any) -> None:
        self.close()

    def __aiter__(self) -> "AsyncWatch":
        return self

    async def __anext__(self) -> Event:
        await self._until(lambda: bool(self._core.ready))
        if not self._core.ready:
            raise StopAsyncIteration
        return self._core.ready.popleft()

    def close(self) -> None:
        """Ends the iteration, also that of another task."""
        self._is_closed = True
        if self._call is not None:
            self._call.cancel()

    async def _until(self, is_there: Callable[[], bool]) -> None:
        while not self._is_closed and not self._core.is_over and not is_there():
            error = await self._read()
            if error is not None and not self._is_closed:
                await asyncio.sleep(self._patience.next(error))

    async def _read(self) -> Optional[errors.PsegError]:
        call = self._call
        try:
            if call is None:
                call = self._client._calls["WatchJobs"](self._core.request(), metadata=self._client._metadata)
            m = await call.read()
            self._call = call
            if m is not grpc.aio.EOF:
                self._patience.well()
                self._core.take(m)
                return None
            self._call = None
            return self._core.ended()
        except asyncio.CancelledError:
            if not self._is_closed:
                call.cancel()
                raise
            return None
        except grpc.RpcError as e:
            self._call = None
            return errors.from_rpc(e)
