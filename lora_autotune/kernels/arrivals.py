"""The counters by which programs that share one sum find out who comes last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lora_autotune.kernels.blank import NOWHERE, empty

if TYPE_CHECKING:
    import torch
    from torch import Tensor

COUNTERS = 1 << 16
"""Counters of a ring: those of many launches, so that launches close to each other share none."""

CAPTURED = "captured"
"""Launches that are part of CUDA graphs have a ring of their own, whatever stream captured them."""

_rings: dict[tuple[torch.device, object], _Ring] = {}


class _Ring:
    """int32 counters on one device, zero whenever no launch that uses them is under way."""

    def __init__(self, device: torch.device) -> None:
        import torch

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


def arrival_counters(device: torch.device | Literal["nowhere"], count: int) -> Tensor | None:
    """Counters for one launch on the current stream; None where there are none to be had.

    That is when more are asked for than there are, and while a CUDA graph is captured on a device
    that has none yet: to make and zero them would become part of the graph. Every stream has its
    own, and so have graphs. Two graphs of many launches must not run at the same time on two
    streams: they may share counters, and a counter that is left wrong stays so. NOWHERE they are a
    blank.
    """
    if count > COUNTERS:
        return None
    if isinstance(device, str):
        return empty((count,), "int32", NOWHERE)
    if device.type != "cuda":
        return _ring(device, None).take(count)
    import torch

    if torch.cuda.is_current_stream_capturing():
        ring = _rings.get((device, CAPTURED))
        return None if ring is None else ring.take(count)
    if (device, CAPTURED) not in _rings:
        _ring(device, CAPTURED)
        torch.cuda.synchronize(device)  # zeroed before any graph runs, on whatever stream
    return _ring(device, torch.cuda.current_stream(device).cuda_stream).take(count)


def _ring(device: torch.device, user: object) -> _Ring:
    if (device, user) not in _rings:
        _rings[device, user] = _Ring(device)
    return _rings[device, user]
