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

ENOUGH, COUNTED_COLUMNS = 6, 64
"""Programs that each multiprocessor is left with; and columns of the tall tiles that are counted to
see whether there is one for each, whatever the config's own have."""

LOW_COLUMNS, LOW_WARPS, LOW_REGISTERS = 128, 4, 128
"""Columns of a low tile, its warps, and registers that each of their threads may have."""

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
    group = _group(sizes, width, multiprocessors)
    runs = cdiv(sizes.likely_pieces, group)
    is_low = group * sizes.piece_rows <= LOW_ROWS and runs < multiprocessors
    spans = cdiv(width, LOW_COLUMNS if is_low else config["BLOCK_N"])
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


def _group(sizes: BatchSizes, width: int, multiprocessors: int) -> int:
    enough = sizes.rows // TALL_ROWS * cdiv(width, COUNTED_COLUMNS) >= multiprocessors
    return TALL_ROWS // sizes.piece_rows if is_mostly_whole(sizes) and enough else 1


def _low_config(rank: int, walk: int) -> tuple[tuple[str, int], ...]:
    """Of few rows.

    Where there is one step and one tile, there is nothing to load ahead. Limited registers pay in
    between: the least ranks need none, and the tiles of large ones that are no multiple of 8 spill.
    """
    step = next((step for most, step in LOW_STEPS.items() if rank <= most), DEEP_STEP)
    config = {
        "BLOCK_N": LOW_COLUMNS,
        "BLOCK_K": step,
        "num_warps": LOW_WARPS,
        "num_stages": 1 if rank <= step and walk == 1 else 3,
    }
    if min(LOW_STEPS) < rank and (rank <= max(LOW_STEPS) or rank % 8 == 0):
        config["maxnreg"] = LOW_REGISTERS
    return tuple(config.items())
