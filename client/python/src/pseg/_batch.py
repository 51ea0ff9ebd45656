"""What both clients share of batch(): numbers, what is under way, requests and outcomes, the file by which
a batch is gone on with. No calls are made here, and nothing waits."""
from __future__ import annotations

import collections
import json
import os
import pathlib
import tempfile
import time
import uuid
from typing import Any, Deque, Dict, Iterable, Mapping, Optional, Tuple, Union

from . import _convert, _wire, errors
from .image import ImageLike, image_bytes
from .types import Encoding, Outcome, Segmentation

ID_BYTES = 255  # of a custom id
SAVE_S = 0.1
VERSION = 2  # of the file
BatchItem = Union[Tuple[ImageLike, _convert.Prompts], Tuple[ImageLike, _convert.Prompts, str]]
PathLike = Union[str, "os.PathLike[str]"]


class Told:
    """Which items were told: all up to `top` but for `missing`, which are never more than are under way."""

    def __init__(self, top: int = 0, missing: Iterable[int] = ()) -> None:
        self.top, self.missing = top, set(missing)

    def __len__(self) -> int:
        return self.top - len(self.missing)

    def __contains__(self, seq: int) -> bool:
        return seq <= self.top and seq not in self.missing

    def add(self, seq: int) -> None:
        self.missing.discard(seq)
        if seq > self.top:
            self.missing.update(range(self.top + 1, seq))
            self.top = seq


class StateFile:
    """Which batch it is and how far its outcomes were dealt with. Without a path: only in memory."""

    def __init__(self, path: Optional[PathLike], facts: Mapping[str, Any]) -> None:
        self._path = pathlib.Path(path) if path is not None else None
        self.batch, self.token, self.told, self.is_done, self.is_new = "", "", Told(), False, True
        self._facts, self._saved = json.loads(json.dumps(facts)), 0.0
        if self._path is not None and self._path.exists():
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if found.get("version") != VERSION:
                raise ValueError(f"{self._path} is no state of a batch, or of another version")
            if found["of"] != self._facts:
                raise ValueError(f"{self._path} is of a batch with other options: {found['of']}, now {self._facts}")
            self.batch, self.token, self.told = found["batch"], found["token"], Told(found["top"], found["missing"])
            self.is_done, self.is_new = found["done"], False
        else:
            self.batch = f"batches/{uuid.uuid4().hex}"
            self.save()

    @property
    def is_kept(self) -> bool:
        return self._path is not None

    def step(self, token: str, seq: int) -> None:
        """The outcome of item seq was dealt with, or (0) there was none in the message."""
        self.token = token or self.token
        if seq:
            self.told.add(seq)
        if time.monotonic() - self._saved > SAVE_S:
            self.save()

    def save(self) -> None:
        if self._path is None:
            return
        text = json.dumps({"version": VERSION, "of": self._facts, "batch": self.batch, "token": self.token,
                           "top": self.told.top, "missing": sorted(self.told.missing), "done": self.is_done})
        fd, name = tempfile.mkstemp(prefix=self._path.name + ".", dir=self._path.parent)
        with os.fdopen(fd, "w", encoding="utf-8") as f:
            f.write(text)
        os.replace(name, self._path)
        self._saved = time.monotonic()


def _cut(text: str) -> str:
    """Within the limit of a custom id, without control characters."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean.encode("utf-8", "replace")[:ID_BYTES].decode("utf-8", "ignore")


class Core:
    """Items are numbered from 1. The owner holds a lock around every method of one that threads share."""

    def __init__(self, state: StateFile, window: int, spec: Mapping[str, Any], priority: int) -> None:
        if window < 1:
            raise ValueError(f"window is {window}; it must be 1 or more")
        self.state, self._limit, self._spec, self._priority = state, window, spec, priority
        self.next = 1  # the item to be sent
        self.granted = 0  # the last one that the server has room for
        self.asked = 0  # where the server wants to go on; 0: it has not said yet
        self.is_sealed = False
        self._unsafe: "Deque[Tuple[int, BatchItem]]" = collections.deque()  # the server may not have them
        self._under_way: Dict[int, BatchItem] = {}
        self._taken = 0  # items that came from the caller, those passed over, too

    # ---- sending ----

    def header(self) -> Any:
        self.asked = self.granted = 0
        return _wire.METHODS["SubmitJobs"].request(header={"batch": self.state.batch})

    def answered(self, m: Any) -> None:
        while self._unsafe and self._unsafe[0][0] < m.next_seq:
            self._unsafe.popleft()
        if not self.asked:
            self.asked = self.next = m.next_seq
        self.granted, self.is_sealed = max(self.granted, m.window_end), self.is_sealed or m.sealed

    def has_room(self) -> bool:
        return bool(self.asked) and self.next <= self.granted and self.next - 1 - len(self.state.told) < self._limit

    def again(self) -> Optional[BatchItem]:
        """The item to send, if it was sent before; None: skip, take a new one and call `took`."""
        at = self.next - self._unsafe[0][0] if self._unsafe else -1
        return self._unsafe[at][1] if 0 <= at < len(self._unsafe) else None

    def to_skip(self) -> int:
        """How many items an earlier run has sent: they are passed over, and not looked at."""
        return self.next - 1 - self._taken

    def skipped(self, n: int, short: bool) -> None:
        self._taken += n
        if short:
            raise ValueError(f"the items end after {self._taken}, and an earlier run has sent {self.next - 1}: a batch "
                             "is gone on with by the same items")

    def took(self, item: BatchItem) -> None:
        self._taken += 1
        self._unsafe.append((self.next, item))
        self._under_way[self.next] = item

    def sent(self) -> None:
        self.next += 1

    def request(self, item: BatchItem) -> "tuple[Any, Optional[bytes]]":
        """The message of an item that is to be sent as the next one, and the image if it is to be uploaded
        first. What is wrong with the item itself becomes a refusal in its place."""
        request = _wire.METHODS["SubmitJobs"].request(item={"seq": self.next, "job": {}})
        try:
            image, prompts = item[0], item[1]
            data = image_bytes(image)
            given = str(item[2]) if len(item) > 2 else str(image) if isinstance(image, (str, os.PathLike)) else ""
            inline = len(data) <= _convert.INLINE_MAX
            request.item.job.CopyFrom(_convert.job_spec(data, prompts, inline, **self._spec))
            request.item.job.priority = self._priority
            request.item.custom_id = _cut(given.lstrip("!"))
            return request, None if inline else data
        except (OSError, ValueError, TypeError, IndexError, KeyError) as e:
            return self.bad(f"ITEM_INVALID {e}"), None

    def bad(self, why: str) -> Any:
        return _wire.METHODS["SubmitJobs"].request(
            item={"seq": self.next, "custom_id": _cut("!" + why), "job": {}})

    def seal(self) -> Any:
        return _wire.METHODS["SubmitJobs"].request(seal={})

    # ---- results ----

    def is_news(self, m: Any) -> bool:
        """Whether a message has an outcome that was not told before: where Redis fails over, some come again."""
        return m.WhichOneof("what") == "result" and m.result.seq not in self.state.told

    def results(self, encoding: Encoding) -> Any:
        return _wire.METHODS["StreamBatchResults"].request(
            name=self.state.batch, resume_token=self.state.token, format=_convert.mask_format(encoding))

    def outcome(self, r: Any) -> Outcome:
        """Where masks are omitted, value.masks is empty."""
        item = self._under_way.pop(r.seq, None)
        mark, _, rest = r.custom_id.partition(" ")
        name = "" if mark.startswith("!") else r.custom_id
        error: Optional[errors.PsegError] = None
        try:
            if not r.HasField("job"):
                if mark.startswith("!"):
                    error = errors.InvalidArgument(rest, code="INVALID_ARGUMENT", reason=mark[1:])
                elif r.HasField("error"):
                    error = errors.from_status(r.error)
                else:
                    error = errors.NotFound("the result's time to live was over before it was fetched",
                                            code="NOT_FOUND", reason="RESULT_EXPIRED")
            else:
                job = _convert.check_succeeded(_convert.job(r.job))
                masks = [_convert.mask(m, m.data, job) for m in r.masks]
                return Outcome(r.seq - 1, item, Segmentation(job, masks), None, name)
        except errors.JobFailed as e:
            error = e
        return Outcome(r.seq - 1, item, None, error, name)


def facts(encoding: Encoding, spec: Mapping[str, Any], priority: int) -> Dict[str, Any]:
    return {"encoding": encoding.name, "priority": priority, **{k: str(v) for k, v in sorted(spec.items())}}

