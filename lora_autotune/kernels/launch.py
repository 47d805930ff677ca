"""From tensors to a launch: the one place that knows the kernels' arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from lora_autotune.kernels.arrivals import arrival_counters
from lora_autotune.kernels.batch import Batch
from lora_autotune.kernels.blank import empty
from lora_autotune.kernels.expand import expand_kernel
from lora_autotune.kernels.overlap import overlap_options
from lora_autotune.kernels.schedule import Schedule, cdiv, expand_schedule, shrink_schedule
from lora_autotune.kernels.shrink import shrink_kernel

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RAGGED_COLUMNS = 128
"""Most columns of x that expand loads at once for a rank that is no multiple of 8."""


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
        """Compile for the active driver's target without launching; tensors may be blanks."""
        return self.kernel.warmup(*self.args, grid=self.grid, **self.constants)


def shrink_launch(
    x: Tensor,
    weights: Tensor,
    output: Tensor,
    batch: Batch,
    num_slices: int,
    config: Mapping[str, int],
    *,
    schedule: Schedule | None = None,
) -> Launch:
    """The shrink kernel on (s, K), (adapters, S * R, K) -> (s, S * R), all contiguous.

    Args:
        x: (s, K).
        weights: (adapters, S * R, K).
        output: (s, S * R).
        batch: the rows' segments.
        num_slices: S.
        config: BLOCK_N, BLOCK_K and the options to pass on.
        schedule: how the work maps to programs; None: as suits the batch and the device.
    """
    columns, width = weights.shape[1:]
    if schedule is None:
        schedule = shrink_schedule(batch, columns, width, config, _multiprocessors(x.device))
    tile = dict(config)
    if schedule.tile is not None:
        tile["BLOCK_N"], tile["BLOCK_K"] = schedule.tile
    spans = cdiv(columns, tile["BLOCK_N"] * schedule.together)
    parts = schedule.parts
    partials, arrivals = output, batch.seg_indptr  # stand-ins: not touched by whole sums
    if parts > 1:
        counters = arrival_counters(x.device, spans * batch.grid_segments)
        if counters is None:
            parts = 1
        else:
            partials = empty((x.shape[0], parts, columns), "float32", x.device)
            arrivals = counters
    inner = _inner_runs(batch, schedule)
    return Launch(
        kernel=shrink_kernel,
        grid=(parts, spans, _groups(batch, schedule) + inner),
        args=(
            x,
            weights,
            output,
            partials,
            arrivals,
            batch.seg_indptr,
            batch.weight_indices,
            batch.lora_ranks,
            batch.permutation,
            batch.num_segs,
            inner,
            parts,
        ),
        constants={
            "K": width,
            "R": columns // num_slices,
            "S": num_slices,
            "ROUNDS": schedule.rounds,
            "GROUP": schedule.group,
            "SPLIT": parts > 1,
            "TOGETHER": schedule.together,
            "BLOCK_M": batch.chunk_size,
            **overlap_options(x.device),
            **tile,
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
    schedule: Schedule | None = None,
) -> Launch:
    """The expand kernel on (s, S * R), (adapters, OUTPUT_DIM, R) -> (s, >= OUTPUT_DIM).

    Args:
        x: contiguous.
        weights: contiguous.
        output: accumulated into; inner stride 1.
        batch: the rows' segments.
        slice_offsets: int64 (S + 1,), on the device.
        config: BLOCK_N, BLOCK_K and the options to pass on.
        schedule: how the work maps to programs; None: as suits the batch and the device.
    """
    output_dim, rank = weights.shape[1:]
    tiles = cdiv(output_dim, config["BLOCK_N"])
    if schedule is None:
        schedule = expand_schedule(batch, tiles, _multiprocessors(x.device))
    inner = _inner_runs(batch, schedule)
    return Launch(
        kernel=expand_kernel,
        grid=(
            cdiv(tiles, schedule.walk),
            1,
            _groups(batch, schedule) + inner,
        ),
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
            inner,
            schedule.walk,
        ),
        constants={
            "OUTPUT_DIM": output_dim,
            "R": rank,
            "S": slice_offsets.shape[0] - 1,
            "ROUNDS": schedule.rounds,
            "GROUP": schedule.group,
            "RAGGED_K": min(RAGGED_COLUMNS, 1 << (rank - 1).bit_length()),
            "BLOCK_M": batch.chunk_size,
            **overlap_options(x.device),
            **config,
        },
    )


def _inner_runs(batch: Batch, schedule: Schedule) -> int:
    """Most runs that begin within a group, where the rows of an adapter follow each other."""
    return batch.lora_ranks.shape[0] - 1 if schedule.group > 1 else 0


def _groups(batch: Batch, schedule: Schedule) -> int:
    segments = batch.grid_segments
    if schedule.rounds:  # one program at least finds what is beyond the likely segments
        segments = min(segments, max(1, batch.likely_segments))
    return cdiv(segments, schedule.group)


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    import torch

    return torch.cuda.get_device_properties(device).multi_processor_count
