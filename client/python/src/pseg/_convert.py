"""Between messages and types, and what both clients share: no calls are made here."""
from __future__ import annotations

import datetime
import hashlib
import os
import random
import uuid
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Type, Union

import grpc

from . import _wire, errors
from .types import Box, Encoding, Event, Job, Mask, Model, PromptResult, State

INLINE_MAX = 3 << 20  # bytes of an image within a request
CHUNK = 1 << 20
MESSAGE_MAX = 20 << 20  # a reply of Segment holds up to 16 MiB of masks
WAIT_S = 30.0  # one WaitJob
Prompts = Union[str, Sequence[str]]


class Target(NamedTuple):
    address: str
    credentials: Optional[grpc.ChannelCredentials]
    metadata: "tuple[tuple[str, str], ...]"
    options: "list[tuple[str, Any]]"


def _read(path: Optional[str]) -> Optional[bytes]:
    if path is None:
        return None
    with open(path, "rb") as f:
        return f.read()


def target(server: Optional[str], key: Optional[str], tls: Optional[bool], ca: Optional[str],
           cert: Optional[str], cert_key: Optional[str]) -> Target:
    """Absent arguments come from the variables of the `pseg` command: PSEG_SERVER, PSEG_KEY, ..."""
    server = server or os.environ.get("PSEG_SERVER") or "127.0.0.1:7433"
    key = key or os.environ.get("PSEG_KEY")
    ca, cert = ca or os.environ.get("PSEG_CA"), cert or os.environ.get("PSEG_CERT")
    cert_key = cert_key or os.environ.get("PSEG_CERT_KEY")
    if tls is None:
        tls = bool(ca or cert) or os.environ.get("PSEG_TLS", "").lower() in ("1", "true", "yes", "on")
    if bool(cert) != bool(cert_key):
        raise ValueError("cert and cert_key belong together")
    credentials = grpc.ssl_channel_credentials(_read(ca), _read(cert_key), _read(cert)) if tls else None
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    options = [("grpc.max_receive_message_length", MESSAGE_MAX), ("grpc.initial_reconnect_backoff_ms", 100),
               ("grpc.max_reconnect_backoff_ms", 5000)]
    return Target(server, credentials, metadata, options)


# ---- requests -----------------------------------------------------------------------------------


def job_spec(data: bytes, prompts: Prompts, inline: bool, *, model: str = "", threshold: float = 0.0,
             deadline: Optional[datetime.datetime] = None, ttl: Optional[datetime.timedelta] = None,
             labels: Optional[Mapping[str, str]] = None) -> Any:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    spec = _wire.message("pseg.v1.JobSpec")(model=model, mask_threshold=threshold, labels=dict(labels or {}))
    for text in texts:
        spec.prompts.add(text=text)
    if inline:
        spec.content = data
    else:
        spec.sha256 = hashlib.sha256(data).hexdigest()
    if deadline is not None:
        if deadline.tzinfo is None:
            raise ValueError("a deadline needs a time zone: datetime.now(timezone.utc) + ...")
        spec.deadline.FromDatetime(deadline.astimezone(datetime.timezone.utc).replace(tzinfo=None))
    if ttl is not None:
        spec.result_ttl.FromTimedelta(ttl)
    return spec


def new_request_id() -> str:
    return str(uuid.uuid4())


def upload_parts(data: bytes) -> Iterator[Any]:
    request = _wire.METHODS["UploadImage"].request
    yield request(header={"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)})
    for at in range(0, len(data), CHUNK):
        yield request(chunk=data[at:at + CHUNK])


def mask_format(encoding: Encoding, threshold: float = 0.0) -> Any:
    return _wire.message("pseg.v1.MaskFormat")(encoding=encoding.value, threshold=threshold)


def job_name(job: Union[str, Job]) -> str:
    return job.name if isinstance(job, Job) else job


def state_values(states: Iterable[State]) -> List[int]:
    return [s.value for s in states]


# ---- replies ------------------------------------------------------------------------------------


def _time(m: Any, field: str) -> Optional[datetime.datetime]:
    if not m.HasField(field):
        return None
    moment: datetime.datetime = getattr(m, field).ToDatetime()
    return moment.replace(tzinfo=datetime.timezone.utc)


def job(m: Any) -> Job:
    prompts = [p.text for p in m.prompts]
    receipt = {f.name: getattr(m.receipt, f.name) for f in m.receipt.DESCRIPTOR.fields if getattr(m.receipt, f.name)}
    results = []
    for r in m.results:
        box = Box(r.box.x, r.box.y, r.box.width, r.box.height) if r.HasField("box") else None
        text = prompts[r.prompt_index] if r.prompt_index < len(prompts) else ""
        results.append(PromptResult(text, r.predicted_iou, box, r.area_px, r.truncated))
    return Job(name=m.name, state=State(m.state), request_id=m.request_id, model=m.model, prompts=prompts,
               image_sha256=m.image_sha256, mask_threshold=m.mask_threshold, labels=dict(m.labels), results=results,
               error=errors.from_status(m.error) if m.HasField("error") else None,
               cancel_requested=m.cancel_requested, attempts=m.attempts,
               create_time=_time(m, "create_time"), start_time=_time(m, "start_time"),
               finish_time=_time(m, "finish_time"), deadline=_time(m, "deadline"),
               expire_time=_time(m, "expire_time"),
               stages={s.stage: s.duration.seconds + s.duration.nanos / 1e9 for s in m.stages},
               receipt=receipt, image_width=m.image_width, image_height=m.image_height)


def event(m: Any) -> Event:
    """Of a WatchJobsResponse that has one."""
    e = m.event
    return Event(e.name, State(e.state) if e.state else None, _time(e, "time"), e.worker, e.batch, m.resume_token)


def model(m: Any) -> Model:
    return Model(m.name, m.digest, m.workers, m.is_default)


def mask(m: Any, data: bytes, of: Optional[Job]) -> Mask:
    known = of is not None and m.prompt_index < len(of.prompts)
    result = of.results[m.prompt_index] if of is not None and m.prompt_index < len(of.results) else None
    return Mask(m.prompt_index, of.prompts[m.prompt_index] if known and of is not None else "", m.width, m.height,
                Encoding(m.encoding), m.threshold, data, result)


class MaskStream:
    """Puts the chunks of FetchMasks together."""

    def __init__(self, of: Optional[Job]) -> None:
        self._of, self._parts = of, []  # type: Optional[Job], List[bytes]

    def add(self, reply: Any) -> Optional[Mask]:
        self._parts.append(reply.mask.data)
        if not reply.last_chunk:
            return None
        whole, self._parts = b"".join(self._parts), []
        return mask(reply.mask, whole, self._of)


_FAILED: Dict[State, Type[errors.JobFailed]] = {
    State.FAILED: errors.JobFailed,
    State.CANCELLED: errors.JobCancelled,
    State.EXPIRED: errors.JobExpired,
}


def check_succeeded(j: Job) -> Job:
    """j, or the exception that its end is."""
    kind = _FAILED.get(j.state)
    if kind is None:
        return j
    why, code = j.error, "ABORTED"
    error = kind(f"{j.name}: {why.message}" if why else f"{j.name} ended as {j.state.name}",
                 code=why.code if why else code, reason=why.reason if why else f"JOB_{j.state.name}",
                 metadata=why.metadata if why else None)
    error.job = j
    raise error


def not_done(j: Job, timeout: Optional[float]) -> errors.DeadlineExceeded:
    return errors.DeadlineExceeded(
        f"{j.name} is {j.state.name} after {timeout:g} s; wait for it again, or give more time",
        code="DEADLINE_EXCEEDED", reason="DEADLINE_EXCEEDED", metadata={"job": j.name})


# ---- trying again -------------------------------------------------------------------------------


def pause(error: errors.PsegError, attempt: int) -> Optional[float]:
    """Seconds to wait before the next try, with jitter; None: trying again is wrong. UNAVAILABLE is
    tried again by itself, everything else where the server says when."""
    if error.retry_after is not None:
        return error.retry_after * (1.0 + 0.2 * random.random())
    if isinstance(error, errors.Unavailable):
        return float(min(5.0, 0.1 * 2.0**attempt) * (0.5 + random.random()))
    return None
