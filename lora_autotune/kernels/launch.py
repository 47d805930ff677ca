"""From tensors to a launch: the one place that knows the kernels' arguments."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from lora_autotune.kernels.arrivals import arrival_counters
from lora_autotune.kernels.batch import Batch, BatchSizes, cdiv
from lora_autotune.kernels.blank import empty
from lora_autotune.kernels.expand import expand_kernel
from lora_autotune.kernels.expand_schedule import expand_schedule
from lora_autotune.kernels.overlap import overlap_options
from lora_autotune.kernels.prefetch import LINE, prefetches
from lora_autotune.kernels.schedule import Schedule, power_of_two
from lora_autotune.kernels.shrink import shrink_kernel
from lora_autotune.kernels.shrink_schedule import shrink_schedule
from lora_autotune.kernels.target import target
from lora_autotune.kernels.variant import Variant

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RAGGED_COLUMNS = 128
"""Most columns of x that expand loads at once for a rank that is no multiple of 8."""

KEPT_PLANS = 4096
"""Plans that are kept: a server's layers share a few for each batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A kernel with everything it is called with.

    Attributes:
        variant: the Triton function and its compile-time arguments.
        grid: programs along each axis of the launch grid.
        args: its positional arguments.
        kind: see :meth:`lora_autotune.kernels.variant.Variant.launch`.
    """

    variant: Variant
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    kind: Hashable = None

    def __call__(self) -> Any:
        """Launch on the current stream; returns the compiled kernel."""
        return self.variant.launch(self.grid, self.args, self.kind)

    def compile(self) -> Any:
        """Compile for the active driver's target without launching; tensors may be blanks."""
        return self.variant.compile(self.grid, self.args)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What launches have in common whose shapes, config and device are the same.

    Attributes:
        variant: the Triton function and its compile-time arguments.
        grid: programs along the three axes of the launch grid.
        inner: those of them that are for runs within a group of segments.
        walk: output tiles that one program of expand walks.
        whole: the same with sums that are not divided; None: this one's are not.
    """

    variant: Variant
    grid: tuple[int, int, int]
    inner: int
    walk: int = 1
    whole: _Plan | None = None


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
    sizes = batch.sizes
    plan = _shrink_plan(
        sizes, columns, width, num_slices, tuple(config.items()), x.device, schedule
    )
    partials, arrivals = output, batch.seg_indptr  # stand-ins: not touched by whole sums
    if plan.whole is not None:
        parts, spans, _ = plan.grid
        counters = arrival_counters(x.device, spans * sizes.grid_segments * sizes.pieces)
        if counters is None:
            plan = plan.whole
        else:
            partials = empty((x.shape[0], parts, columns), "float32", x.device)
            arrivals = counters
    return Launch(
        variant=plan.variant,
        grid=plan.grid,
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
            plan.inner,
            plan.grid[0],
        ),
        kind=(x.dtype, weights.dtype, output.dtype),
    )


@lru_cache(KEPT_PLANS)
def _shrink_plan(
    sizes: BatchSizes,
    columns: int,
    width: int,
    num_slices: int,
    items: tuple[tuple[str, int], ...],
    device: torch.device,
    schedule: Schedule | None,
) -> _Plan:
    config = dict(items)
    if schedule is None:
        schedule = shrink_schedule(sizes, columns, width, config, target(device))
    config = schedule.applied_to(config)
    inner = _inner_runs(sizes, schedule)
    spans = cdiv(columns, config["BLOCK_N"] * schedule.together)
    groups = _groups(sizes, schedule) + inner
    constants = {
        "K": width,
        "R": columns // num_slices,
        "S": num_slices,
        "ROUNDS": schedule.rounds,
        "GROUP": schedule.group,
        "PIECES": sizes.pieces,
        "SPLIT": False,
        "SPREAD": schedule.spread,
        "TOGETHER": schedule.together,
        "BLOCK_M": sizes.piece_rows,
        **overlap_options(device, ahead=int(schedule.ahead)),
        **config,
    }
    whole = _Plan(
        variant=_variant(shrink_kernel, tuple(constants.items())),
        grid=(1, spans, groups),
        inner=inner,
    )
    if schedule.parts == 1:
        return whole
    return _Plan(
        variant=_variant(shrink_kernel, tuple({**constants, "SPLIT": True}.items())),
        grid=(schedule.parts, spans, groups),
        inner=inner,
        whole=whole,
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
        slice_offsets: int64 (S + 1,), on the device; not read if S is 1.
        config: BLOCK_N, BLOCK_K and the options to pass on.
        schedule: how the work maps to programs; None: as suits the batch and the device.
    """
    output_dim, rank = weights.shape[1:]
    slices = slice_offsets.shape[0] - 1
    plan = _expand_plan(
        batch.sizes, output_dim, rank, slices, tuple(config.items()), x.device, schedule
    )
    stride = output.stride(0)
    return Launch(
        variant=plan.variant,
        grid=plan.grid,
        args=(
            x,
            weights,
            output,
            stride,
            batch.seg_indptr,
            batch.weight_indices,
            batch.lora_ranks,
            batch.permutation,
            batch.scalings,
            slice_offsets,
            batch.num_segs,
            plan.inner,
            plan.walk,
        ),
        kind=(x.dtype, weights.dtype, output.dtype, stride),
    )


@lru_cache(KEPT_PLANS)
def _expand_plan(
    sizes: BatchSizes,
    output_dim: int,
    rank: int,
    slices: int,
    items: tuple[tuple[str, int], ...],
    device: torch.device,
    schedule: Schedule | None,
) -> _Plan:
    config = dict(items)
    if schedule is None:
        schedule = expand_schedule(sizes, output_dim, rank, config, target(device))
    config = schedule.applied_to(config)
    inner = _inner_runs(sizes, schedule)
    spans = cdiv(output_dim, config["BLOCK_N"])
    constants = {
        "OUTPUT_DIM": output_dim,
        "R": rank,
        "S": slices,
        "ROUNDS": schedule.rounds,
        "GROUP": schedule.group,
        "PIECES": sizes.pieces,
        "PREFETCH": prefetches(device, sizes.piece_rows * schedule.group),
        "RAGGED_K": min(RAGGED_COLUMNS, power_of_two(rank)),
        "BLOCK_M": sizes.piece_rows,
        **overlap_options(device, ahead=_lines(config["BLOCK_N"] * rank, schedule)),
        **config,
    }
    return _Plan(
        variant=_variant(expand_kernel, tuple(constants.items())),
        grid=(cdiv(spans, schedule.walk), 1, _groups(sizes, schedule) + inner),
        inner=inner,
        walk=schedule.walk,
    )


@cache
def _variant(kernel: Any, constants: tuple[tuple[str, Any], ...]) -> Variant:
    return Variant(kernel, dict(constants))


def _lines(weights: int, schedule: Schedule) -> int:
    """Lines of weights that expand fetches ahead, for Triton a power of two; 0: none."""
    return power_of_two(cdiv(weights, LINE)) if schedule.ahead else 0


def _inner_runs(sizes: BatchSizes, schedule: Schedule) -> int:
    """Most runs that begin within a group, where the rows of an adapter follow each other."""
    return sizes.adapters - 1 if schedule.group > 1 else 0


def _groups(sizes: BatchSizes, schedule: Schedule) -> int:
    segments = sizes.grid_segments
    if schedule.rounds:  # one program at least finds what is beyond the likely segments
        segments = min(segments, max(1, sizes.likely_segments))
    return cdiv(segments, schedule.group) * sizes.pieces
