"""What a kernel is compiled for, known from where its operands are."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

import triton

if TYPE_CHECKING:
    import torch


def capability(device: torch.device | Literal["nowhere"]) -> int:
    """Compute capability of the GPU, 90 for 9.0; 0 where there is none.

    Operands that have no memory are compiled for the active driver's target.
    """
    if isinstance(device, str) or device.type == "meta":
        return _target_capability()
    return _device_capability(device) if device.type == "cuda" else 0


@cache
def _device_capability(_device: torch.device) -> int:
    return _target_capability()


def _target_capability() -> int:
    target = triton.runtime.driver.active.get_current_target()
    return int(target.arch) if target.backend == "cuda" else 0
