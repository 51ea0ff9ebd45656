"""PSEG's client: prompt-guided image segmentation as a service.

    import pseg

    with pseg.Client("127.0.0.1:7433") as client:
        found = client.segment("photo.jpg", "the dog on the left")
        mask = found.masks[0].array          # numpy, [height, width], bool
"""
from ._watch import AsyncWatch, Watch
from .aio import AsyncClient
from .client import Client
from .errors import (AlreadyExists, Cancelled, DeadlineExceeded, FailedPrecondition, InvalidArgument, JobCancelled,
                     JobExpired, JobFailed, NotFound, PermissionDenied, PsegError, ResourceExhausted, Unauthenticated,
                     Unavailable)
from .types import Box, Encoding, Event, Job, Mask, Model, Outcome, PromptResult, Segmentation, State, decode_rle

__all__ = [
    "AlreadyExists", "AsyncClient", "AsyncWatch", "Box", "Cancelled", "Client", "DeadlineExceeded", "Encoding", "Event",
    "FailedPrecondition", "InvalidArgument", "Job", "JobCancelled", "JobExpired", "JobFailed", "Mask", "Model",
    "NotFound", "Outcome", "PermissionDenied", "PromptResult", "PsegError", "ResourceExhausted", "Segmentation", "State",
    "Unauthenticated", "Unavailable", "Watch", "decode_rle",
]
