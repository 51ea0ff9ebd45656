"""A bar for map(): tqdm's where that is installed, else a line on standard error."""
from __future__ import annotations

import sys
import time
from typing import Any, Optional, Type, Union

ProgressLike = Union[bool, str]  # True, or a description


class Progress:
    def __init__(self, wanted: ProgressLike, total: Optional[int]) -> None:
        self._bar: Any = None
        self._is_line = False
        self._total, self._done, self._failed = total, 0, 0
        self._name = wanted if isinstance(wanted, str) else "segmented"
        self._start = self._shown = time.monotonic()
        if not wanted:
            return
        try:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, desc=self._name, unit="image")
        except ImportError:
            self._is_line = True

    def step(self, failed: bool) -> None:
        self._done += 1
        self._failed += failed
        if self._bar is not None:
            if failed:
                self._bar.set_postfix(failed=self._failed, refresh=False)
            self._bar.update(1)
        elif self._is_line and time.monotonic() - self._shown > 0.5:
            self._show("\r")

    def _show(self, begin: str, end: str = "") -> None:
        self._shown = time.monotonic()
        rate = self._done / max(self._shown - self._start, 1e-9)
        of = f" of {self._total}" if self._total is not None else ""
        left = f", {(self._total - self._done) / rate:.0f} s left" if self._total and self._done else ""
        failed = f", {self._failed} failed" if self._failed else ""
        print(f"{begin}{self._name} {self._done}{of}, {rate:.1f}/s{left}{failed}   ", end=end, file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], value: Any, trace: Any) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._is_line:
            self._show("\r", "\n")
