"""From what a caller has to the bytes of an image file."""
from __future__ import annotations

import io
import os
import pathlib
import struct
import zlib
from typing import IO, Any, Union

import numpy as np

ImageLike = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, IO[bytes], "np.typing.NDArray[Any]", Any]


def image_bytes(image: ImageLike) -> bytes:
    """image: a path, the bytes of a file, an open file, a Pillow image, or an array of uint8,
    [H, W, 3] RGB or [H, W] grey. Pixels are sent as PNG, files as they are."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        return pathlib.Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        return _png(image)
    if hasattr(image, "save") and hasattr(image, "mode"):
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()
    if hasattr(image, "read"):
        data = image.read()
        if not isinstance(data, bytes):
            raise TypeError("the image file is open as text; open it in binary mode")
        return data
    raise TypeError(f"an image cannot be a {type(image).__name__}: give a path, bytes, an open file, "
                    "a Pillow image or an array")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(a: "np.typing.NDArray[Any]") -> bytes:
    if a.dtype != np.uint8 or a.ndim not in (2, 3) or (a.ndim == 3 and a.shape[2] != 3) or 0 in a.shape:
        raise ValueError(f"an image as an array is uint8 [H, W, 3] or [H, W]; this is {a.dtype} {list(a.shape)}")
    height, width = a.shape[:2]
    rows = np.zeros((height, 1 + a[0].size), np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = a.reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if a.ndim == 3 else 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)) +
            _chunk(b"IEND", b""))
