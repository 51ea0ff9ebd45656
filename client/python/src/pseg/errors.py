"""What can go wrong, as exceptions. Every one has the server's reason, which never changes its name
(docs/api.md lists them), beside the gRPC code by which classes are told apart."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Type

from . import _wire

if TYPE_CHECKING:
    from .types import Job


class PsegError(Exception):
    """A call that failed, or a job that did.

    code: the gRPC code, "NOT_FOUND". reason: "JOB_NOT_FOUND". message: one line for people.
    metadata: "value" and "limit" where the message names them. fields: paths of the fields at fault.
    resource: (type, name) of what was not found or taken. retry_after: seconds, where trying again
    later is right."""

    def __init__(self, message: str, *, code: str = "UNKNOWN", reason: str = "",
                 metadata: Optional[Dict[str, str]] = None, fields: Optional[List[str]] = None,
                 resource: Optional["tuple[str, str]"] = None, retry_after: Optional[float] = None) -> None:
        super().__init__(f"{message} ({reason or code})")
        self.message, self.code, self.reason = message, code, reason
        self.metadata = metadata or {}
        self.fields = fields or []
        self.resource, self.retry_after = resource, retry_after


class InvalidArgument(PsegError):
    pass


class NotFound(PsegError):
    pass


class AlreadyExists(PsegError):
    pass


class FailedPrecondition(PsegError):
    pass


class ResourceExhausted(PsegError):
    pass


class Unavailable(PsegError):
    pass


class DeadlineExceeded(PsegError):
    pass


class Unauthenticated(PsegError):
    pass


class PermissionDenied(PsegError):
    pass


class Cancelled(PsegError):
    pass


class JobFailed(PsegError):
    """The job ended as FAILED; `job` tells more."""

    job: "Job"


class JobCancelled(JobFailed):
    """The job ended as CANCELLED."""


class JobExpired(JobFailed):
    """The job was not done by its deadline."""


_BY_CODE: Dict[str, Type[PsegError]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "FAILED_PRECONDITION": FailedPrecondition,
    "RESOURCE_EXHAUSTED": ResourceExhausted,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "CANCELLED": Cancelled,
}
# google.rpc.Code, in the order of its numbers.
_CODES = ("OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
          "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE "
          "DATA_LOSS UNAUTHENTICATED").split()


def _facts(status: Any) -> Dict[str, Any]:
    """The details of a google.rpc.Status as PsegError takes them."""
    out: Dict[str, Any] = {}
    for any_ in status.details:
        kind = any_.type_url.rsplit("/", 1)[-1]
        if not kind.startswith("google.rpc."):
            continue
        try:
            detail = _wire.message(kind).FromString(any_.value)
        except KeyError:  # a detail of a newer server
            continue
        if kind == "google.rpc.ErrorInfo":
            out["reason"], out["metadata"] = detail.reason, dict(detail.metadata)
        elif kind == "google.rpc.BadRequest":
            out["fields"] = [v.field for v in detail.field_violations]
        elif kind == "google.rpc.ResourceInfo":
            out["resource"] = (detail.resource_type, detail.resource_name)
        elif kind == "google.rpc.RetryInfo":
            out["retry_after"] = detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9
    return out


def from_status(status: Any, kind: Optional[Type[PsegError]] = None) -> PsegError:
    """A google.rpc.Status, as of Job.error."""
    code = _CODES[status.code] if 0 <= status.code < len(_CODES) else "UNKNOWN"
    return (kind or _BY_CODE.get(code, PsegError))(status.message, code=code, **_facts(status))


def from_rpc(error: Any) -> PsegError:
    """A grpc.RpcError or grpc.aio.AioRpcError."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return from_status(_wire.message("google.rpc.Status").FromString(value))
    code = error.code().name
    reason = "SERVER_UNAVAILABLE" if code == "UNAVAILABLE" else code
    return _BY_CODE.get(code, PsegError)(error.details() or code, code=code, reason=reason)
