"""How the work of an expand launch maps to programs."""

from __future__ import annotations

from collections.abc import Mapping

from lora_autotune.kernels.batch import TALL_ROWS, BatchSizes
from lora_autotune.kernels.schedule import (
    LOW_ROWS,
    Schedule,
    cdiv,
    is_mostly_whole,
    is_padded,
    reads_weights_once,
)

MAX_WALK = 8
"""Most output tiles that one program walks with its x tile kept."""

ENOUGH = 6
"""Programs that each multiprocessor is left with."""

LOW_COLUMNS, LOW_WARPS, LOW_REGISTERS = 128, 4, 128
"""Columns of a low tile, its warps, and registers that each of their threads may have where the
rank is not the least."""

LOW_STEPS = {16: 16, 64: 32}
DEEP_STEP = 64
"""Largest rank -> elements of it in a step, and of larger ones."""


def expand_schedule(
    sizes: BatchSizes, width: int, rank: int, config: Mapping[str, int], multiprocessors: int
) -> Schedule:
    """Tall tiles as for shrink; then as many a program as leave a multiprocessor ENOUGH programs.

    What is best for few rows hardly depends on the shape, and is not what is best for many: so a
    config is for many rows.

    Args:
        sizes: of the batch.
        width: K, of the output.
        rank: R.
        config: BLOCK_N and BLOCK_K.
        multiprocessors: of the device.
    """
    columns = config["BLOCK_N"]
    group = _group(sizes, cdiv(width, columns), multiprocessors)
    is_low = group * sizes.piece_rows <= LOW_ROWS
    if is_low:
        columns = LOW_COLUMNS
    spans = cdiv(width, columns)
    runs = cdiv(sizes.likely_pieces, group)
    walk = MAX_WALK
    while walk > 1 and runs * cdiv(spans, walk) < ENOUGH * multiprocessors:
        walk //= 2
    return Schedule(
        group=group,
        low_config=_low_config(rank, walk) if is_low else None,
        walk=walk,
        ahead=is_low and reads_weights_once(sizes),
        rounds=is_padded(sizes),
    )


def _group(sizes: BatchSizes, tiles: int, multiprocessors: int) -> int:
    enough = sizes.rows // TALL_ROWS * tiles >= multiprocessors
    return TALL_ROWS // sizes.piece_rows if is_mostly_whole(sizes) and enough else 1


def _low_config(rank: int, walk: int) -> tuple[tuple[str, int], ...]:
    """Of few rows. Where there is one step and one tile, there is nothing to load ahead."""
    step = next((step for most, step in LOW_STEPS.items() if rank <= most), DEEP_STEP)
    config = {
        "BLOCK_N": LOW_COLUMNS,
        "BLOCK_K": step,
        "num_warps": LOW_WARPS,
        "num_stages": 1 if rank <= step and walk == 1 else 3,
    }
    if rank > min(LOW_STEPS):
        config["maxnreg"] = LOW_REGISTERS
    return tuple(config.items())
