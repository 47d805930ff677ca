"""What a kernel is compiled for, known from where its operands are."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

import triton

from lora_autotune.kernels.schedule import Target

if TYPE_CHECKING:
    import torch


def target(device: torch.device) -> Target:
    """What launches are planned for whose operands are on a device.

    Where there is no GPU, one multiprocessor is assumed.
    """
    return Target(_multiprocessors(device), capability(device))


def capability(device: torch.device | Literal["nowhere"]) -> int:
    """Compute capability of the GPU, 90 for 9.0; 0 where there is none.

    Operands that have no memory are compiled for the active driver's target.
    """
    if isinstance(device, str) or device.type == "meta":
        return _target_capability()
    return _device_capability(device) if device.type == "cuda" else 0


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    import torch

    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _device_capability(_device: torch.device) -> int:
    return _target_capability()


def _target_capability() -> int:
    active = triton.runtime.driver.active.get_current_target()
    return int(active.arch) if active.backend == "cuda" else 0
