"""From tensors to a launch: the one place that knows the kernels' arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from lora_autotune.kernels.batch import Batch
from lora_autotune.kernels.expand import expand_kernel
from lora_autotune.kernels.shrink import shrink_kernel

MAX_WALK = 8
"""Most output tiles that one expand program walks with its x tile kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A kernel with everything it is called with.

    Attributes:
        kernel: the Triton function.
        grid: programs along each axis of the launch grid.
        args: its positional arguments.
        constants: its compile-time arguments, and the options that the config holds.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: Mapping[str, Any]

    def __call__(self) -> Any:
        """Launch on the current stream; returns the compiled kernel."""
        return self.kernel[self.grid](*self.args, **self.constants)

    def compile(self) -> Any:
        """Compile for the active driver's target without launching; tensors may be "meta"."""
        return self.kernel.warmup(*self.args, grid=self.grid, **self.constants)


def shrink_launch(
    x: Tensor,
    weights: Tensor,
    output: Tensor,
    batch: Batch,
    num_slices: int,
    config: Mapping[str, int],
) -> Launch:
    """The shrink kernel on (s, K), (adapters, S * R, K) -> (s, S * R), all contiguous."""
    columns = weights.shape[1]
    return Launch(
        kernel=shrink_kernel,
        grid=(batch.grid_segments * triton.cdiv(columns, config["BLOCK_N"]),),
        args=(
            x,
            weights,
            output,
            batch.seg_indptr,
            batch.weight_indices,
            batch.lora_ranks,
            batch.permutation,
            batch.num_segs,
        ),
        constants={
            "K": weights.shape[2],
            "R": columns // num_slices,
            "S": num_slices,
            "BLOCK_M": batch.chunk_size,
            **config,
        },
    )


def expand_launch(
    x: Tensor,
    weights: Tensor,
    output: Tensor,
    batch: Batch,
    slice_offsets: Tensor,
    config: Mapping[str, int],
    *,
    walk: int | None = None,
) -> Launch:
    """The expand kernel on (s, S * R), (adapters, OUTPUT_DIM, R) -> (s, >= OUTPUT_DIM).

    Args:
        x: contiguous.
        weights: contiguous.
        output: accumulated into; inner stride 1.
        batch: the rows' segments.
        slice_offsets: int64 (S + 1,), on the device.
        config: BLOCK_N, BLOCK_K and the options to pass on.
        walk: output tiles that one program walks; None: what suits the batch and the device.
    """
    output_dim = weights.shape[1]
    tiles = triton.cdiv(output_dim, config["BLOCK_N"])
    if walk is None:
        walk = walk_length(tiles, batch.likely_segments, _multiprocessors(x.device))
    return Launch(
        kernel=expand_kernel,
        grid=(triton.cdiv(tiles, walk), batch.grid_segments),
        args=(
            x,
            weights,
            output,
            output.stride(0),
            batch.seg_indptr,
            batch.weight_indices,
            batch.lora_ranks,
            batch.permutation,
            batch.scalings,
            slice_offsets,
            batch.num_segs,
            walk,
        ),
        constants={
            "OUTPUT_DIM": output_dim,
            "R": weights.shape[2],
            "S": slice_offsets.shape[0] - 1,
            "BLOCK_M": batch.chunk_size,
            **config,
        },
    )


def walk_length(tiles: int, segments: int, multiprocessors: int) -> int:
    """Output tiles that one program walks: as many as leave every multiprocessor 8 programs.

    Args:
        tiles: output tiles of one segment.
        segments: segments that are likely to hold rows.
        multiprocessors: of the device.
    """
    walk = MAX_WALK
    while walk > 1 and segments * triton.cdiv(tiles, walk) < 8 * multiprocessors:
        walk //= 2
    return walk


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
