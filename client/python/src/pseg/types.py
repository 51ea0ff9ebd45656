"""What calls return."""
from __future__ import annotations

import datetime
import enum
import json
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

import numpy as np
import numpy.typing as npt

from .errors import PsegError


class State(enum.Enum):
    QUEUED = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELLED = 5
    EXPIRED = 6

    @property
    def is_terminal(self) -> bool:
        return self.value >= State.SUCCEEDED.value


class Encoding(enum.Enum):
    """How masks travel. BITS is the default: exact and easy to turn into an array."""

    PNG = 1
    RLE = 2
    BITS = 3
    POLYGON = 4
    FLOAT16 = 5


@dataclass(frozen=True)
class Box:
    """In pixels of the photo, from its top left corner."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class PromptResult:
    prompt: str
    predicted_iou: float
    box: Optional[Box]  # None: the mask is empty
    area_px: int
    truncated: bool  # the phrase has more tokens than the model reads


@dataclass(frozen=True)
class Job:
    name: str  # "jobs/ID"
    state: State
    request_id: str
    model: str
    prompts: List[str]
    image_sha256: str
    mask_threshold: float
    labels: Dict[str, str]
    results: List[PromptResult]  # one per prompt, once SUCCEEDED
    error: Optional[PsegError]
    cancel_requested: bool
    attempts: int
    create_time: Optional[datetime.datetime]
    start_time: Optional[datetime.datetime]
    finish_time: Optional[datetime.datetime]
    deadline: Optional[datetime.datetime]
    expire_time: Optional[datetime.datetime]
    stages: Dict[str, float]  # seconds by stage
    receipt: Dict[str, str]  # what made the result
    image_width: int
    image_height: int


@dataclass(frozen=True)
class Event:
    """A job has come to another state; or, is_gap, events were lost: get() and jobs() tell how jobs stand."""

    name: str  # "jobs/ID"; "" of a gap
    state: Optional[State]  # None: there is no such job, or no more
    time: Optional[datetime.datetime]  # when it came to this state
    worker: str  # that runs it; RUNNING only
    batch: str  # "batches/ID", if it is of one
    token: str  # where another watch goes on after this event
    is_gap: bool = False


@dataclass(frozen=True)
class Model:
    name: str
    digest: str
    workers: int
    is_default: bool


@dataclass(frozen=True)
class Mask:
    """A mask in the encoding that was asked for; `data` is as it came."""

    prompt_index: int
    prompt: str
    width: int
    height: int
    encoding: Encoding
    threshold: float
    data: bytes = field(repr=False)
    result: Optional[PromptResult] = None

    @property
    def array(self) -> "npt.NDArray[np.bool_]":
        """[height, width], True inside. Not of POLYGON; of PNG with Pillow only."""
        if self.encoding is Encoding.BITS:
            rows = np.frombuffer(self.data, np.uint8).reshape(self.height, (self.width + 7) // 8)
            return np.unpackbits(rows, axis=1, count=self.width).astype(np.bool_)
        if self.encoding is Encoding.RLE:
            return decode_rle(self.data, self.height, self.width)
        if self.encoding is Encoding.FLOAT16:
            return np.asarray(self.probabilities > (self.threshold or 0.5), np.bool_)
        if self.encoding is Encoding.PNG:
            import io

            from PIL import Image

            return np.asarray(np.asarray(Image.open(io.BytesIO(self.data)).convert("L")) > 127, np.bool_)
        raise ValueError("a mask as POLYGON has no array; ask for another encoding")

    @property
    def probabilities(self) -> "npt.NDArray[np.float16]":
        """[height, width], of FLOAT16 only."""
        if self.encoding is not Encoding.FLOAT16:
            raise ValueError(f"a mask as {self.encoding.name} has no probabilities; ask for FLOAT16")
        return np.frombuffer(self.data, "<f2").reshape(self.height, self.width).astype(np.float16)

    @property
    def rle(self) -> Dict[str, Any]:
        """As pycocotools takes it, of RLE only."""
        if self.encoding is not Encoding.RLE:
            raise ValueError(f"a mask as {self.encoding.name} has no run lengths; ask for RLE")
        return {"size": [self.height, self.width], "counts": self.data}

    @property
    def polygons(self) -> List[List[float]]:
        """Rings [x0, y0, x1, y1, ...], even-odd rule, of POLYGON only."""
        if self.encoding is not Encoding.POLYGON:
            raise ValueError(f"a mask as {self.encoding.name} has no polygons; ask for POLYGON")
        rings: List[List[float]] = json.loads(self.data)
        return rings


def decode_rle(counts: bytes, height: int, width: int) -> "npt.NDArray[np.bool_]":
    """COCO's compressed run lengths (the string form of cocoapi's maskApi): runs of outside and inside
    in turn, down the columns; from the fourth on each is a difference to the one two before it."""
    runs: List[int] = []
    at = 0
    while at < len(counts):
        value, shift, more = 0, 0, True
        while more:
            if at >= len(counts):
                raise ValueError("run lengths that end within a number")
            c = counts[at] - 48
            at += 1
            value |= (c & 0x1F) << shift
            shift += 5
            more = bool(c & 0x20)
            if not more and c & 0x10:
                value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise ValueError(f"run lengths of {sum(runs)} pixels for a mask of {height} x {width}")
    inside = np.zeros(len(runs), np.bool_)
    inside[1::2] = True
    return np.repeat(inside, runs).reshape(width, height).T


@dataclass(frozen=True)
class Segmentation:
    """A job that succeeded, with its masks in the order of its prompts."""

    job: Job
    masks: List[Mask]


@dataclass(frozen=True)
class Outcome:
    """One of many: what came in, and either `value` or `error`."""

    index: int  # of the item, from 0
    item: Any  # None: batch() sent it in an earlier run
    value: Optional[Segmentation]
    error: Optional[PsegError]
    id: str = ""  # of batch(): what the item had as its third, or its path
