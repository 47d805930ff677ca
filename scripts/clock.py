"""The time that a benchmark takes, and may take."""

from __future__ import annotations

import math
import sys
import time


class Clock:
    """Says on stderr what is done and how long that took, and when it is time to stop."""

    def __init__(self, limit_s: float = math.inf) -> None:
        self._began_s = self._since_s = time.perf_counter()
        self._limit_s = limit_s

    def __call__(self, text: str) -> None:
        now_s = time.perf_counter()
        print(f"{text}: {now_s - self._since_s:.1f} s", file=sys.stderr, flush=True)
        self._since_s = now_s

    @property
    def took_s(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._began_s

    @property
    def is_up(self) -> bool:
        """Nothing more should be begun."""
        return self.took_s > self._limit_s
