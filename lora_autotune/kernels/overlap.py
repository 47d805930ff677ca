"""A launch that begins before the one in front of it ends (programmatic dependent launch)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lora_autotune.kernels.target import capability

if TYPE_CHECKING:
    import torch

LEAST_CAPABILITY = 90
"""From compute capability 9.0 on (CUDA C++ Programming Guide, "Programmatic Dependent Launch")."""


@triton.jit
def after_previous_launch(OVERLAP: tl.constexpr):
    """Wait until the launch in front has ended and its writes are seen; then let the next begin.

    What is read before this must not be written by the launch directly in front. Every program
    comes here, and lets the next launch begin only then: so whoever waits for this launch has
    waited for all before it too.
    """
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


def overlap_options(device: torch.device | Literal["nowhere"], *, ahead: int) -> dict[str, Any]:
    """Compile-time arguments and launch option of a kernel whose operands are on a device.

    Args:
        device: theirs.
        ahead: what is fetched before the wait, where there is one; 0: nothing.
    """
    if capability(device) >= LEAST_CAPABILITY:
        return {"AHEAD": ahead, "OVERLAP": True, "launch_pdl": True}
    return {"AHEAD": 0, "OVERLAP": False}
