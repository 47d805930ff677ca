"""The counters by which programs that share one sum find out who comes last."""

from __future__ import annotations

import torch
from torch import Tensor

COUNTERS = 1 << 16
"""Counters of a device: those of many launches, so that launches on two streams share none."""


class Arrivals:
    """int32 counters on one device, zero whenever no launch that uses them is under way."""

    def __init__(self, device: torch.device) -> None:
        self._counters = torch.zeros(COUNTERS, dtype=torch.int32, device=device)
        self._next = 0

    def take(self, count: int) -> Tensor:
        """(>= count,) counters, used by no launch of late; at most COUNTERS."""
        count = -(-count // 4) * 4  # Triton compiles anew for a pointer that is not aligned to 16
        if self._next + count > COUNTERS:
            self._next = 0
        start = self._next
        self._next += count
        return self._counters[start : self._next]


_of_device: dict[torch.device, Arrivals] = {}


def arrival_counters(device: torch.device, count: int) -> Tensor | None:
    """Counters for one launch; None where there are none to be had.

    That is when more are asked for than a device has, and while a CUDA graph is captured on a
    device that has none yet: to make and zero them would become part of the graph.
    """
    if count > COUNTERS:
        return None
    if device not in _of_device:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        _of_device[device] = Arrivals(device)
    return _of_device[device].take(count)
