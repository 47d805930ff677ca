"""Tensors that have no memory, for a process that compiles and needs no torch.

The launch code reads shapes, strides and dtypes, and Triton besides where memory begins: all of it
is known without any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NOWHERE = "nowhere"
"""The device of blanks."""


@dataclass(frozen=True, slots=True)
class Blank:
    """A contiguous tensor of which only the outside is there.

    Attributes:
        shape: its shape.
        dtype: name of what it would hold ("float16"), by which Triton knows torch's as well.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def device(self) -> str:
        """Where it is not."""
        return NOWHERE

    def stride(self, axis: int) -> int:
        """Elements from one index of an axis to the next."""
        return math.prod(self.shape[axis:][1:])

    def data_ptr(self) -> int:
        """An address that is aligned like the beginning of any tensor of torch."""
        return 0


def empty(shape: Sequence[int], dtype: str, device: torch.device | str) -> Tensor:
    """An uninitialised tensor; a blank, which a launch takes for one, where the device is NOWHERE.

    Args:
        shape: its shape.
        dtype: name of what it holds.
        device: where it goes.
    """
    if device == NOWHERE:
        return cast("Tensor", Blank(tuple(shape), dtype))
    import torch

    return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=device)


def holding(values: Sequence[float], dtype: str, device: torch.device | str) -> Tensor:
    """A tensor (len(values),) of some numbers; a blank as for :func:`empty`."""
    if device == NOWHERE:
        return cast("Tensor", Blank((len(values),), dtype))
    import torch

    return torch.tensor(values, dtype=getattr(torch, dtype)).to(device)
