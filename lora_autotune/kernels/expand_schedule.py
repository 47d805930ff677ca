"""How the work of an expand launch maps to programs."""

from __future__ import annotations

from collections.abc import Mapping

from lora_autotune.kernels.batch import TALL_ROWS, BatchSizes, cdiv
from lora_autotune.kernels.schedule import (
    LOW_ROWS,
    Schedule,
    Target,
    is_mostly_whole,
    is_padded,
    power_of_two,
    reads_weights_once,
)
from lora_autotune.loader import DEFAULT_EXPAND_CONFIG

MAX_WALK, WALKED_COLUMNS = 8, 384
"""Most output tiles that one program walks with its x tile kept; of tall tiles, most columns."""

WALK_START = 0.45
"""What a program does before its first tile takes as long as so many tiles."""

REGISTERS, REGISTER_UNIT, AT_A_TIME = 65536, 8, 2
"""Registers of a multiprocessor, and what a thread's come in; by them it is known how many programs
it has at a time where theirs are limited. Where they are not, it is taken to have so many."""

COUNTED_COLUMNS = 64
"""Columns of the tall tiles that are counted to see whether there is one for each multiprocessor,
whatever the config's own have."""

WARPS, STAGES = 4, 3
"""Of what is launched where no config is in force."""

WIDE, NARROW = 128, 64
"""Columns then, and those of tall tiles where the rank is not small, unless they are many."""

LEAST_RANK, SMALL_RANK, MIDDLE_RANK, LARGE_RANK = 16, 32, 64, 128
"""Up to which it is one of the least, small, or neither small nor large; beyond the last it is not
taken in one step."""

CROWD, MANY = 4, 6
"""Programs of tall tiles that a multiprocessor has at a time, and tiles of WIDE columns for each of
them that are many."""

ROOMY = range(90, 120)
"""Compute capabilities that multiply from shared memory, and so have registers for WIDE columns in
CROWD programs (wgmma and tcgen05; 12.x has neither)."""

LOW_ENOUGH, LOW_REGISTERS = 6, 128
"""Programs of low tiles that each multiprocessor is left with, and registers of their threads."""

LOW_STEPS = {16: 16, 64: 32}
"""Largest rank -> elements of it in a step of a low tile, and of larger ones DEEP_STEP."""

LEAST_STEP, RAGGED_STEP, DEEP_STEP = 16, 32, 64
"""Elements of the rank in a step: the least; the most of tall tiles where the rank is no multiple
of 8; and the most of others."""


def expand_schedule(
    sizes: BatchSizes, width: int, rank: int, config: Mapping[str, int], target: Target
) -> Schedule:
    """Tall tiles as for shrink; then as many for each program as keep the multiprocessors busy.

    What is best for few rows hardly depends on the shape, and is not what is best for many: so a
    config is for many rows. The default is no config: what is launched then is chosen here.

    Args:
        sizes: of the batch.
        width: K, of the output.
        rank: R.
        config: the one that was found, or the default.
        target: the GPU.
    """
    multiprocessors = target.multiprocessors
    group = _group(sizes, width, multiprocessors)
    runs = cdiv(sizes.likely_pieces, group)
    rows = group * sizes.piece_rows
    if rows <= LOW_ROWS and runs < multiprocessors:
        return _low_schedule(sizes, width, rank, multiprocessors)
    if is_mostly_whole(sizes):
        runs = sizes.likely_runs(group)
    is_default, is_tall = config == DEFAULT_EXPAND_CONFIG, rows > LOW_ROWS
    launched = config
    if is_default and is_tall:
        is_many = runs * cdiv(width, WIDE) >= MANY * CROWD * multiprocessors
        has_room = group == 1 and not is_padded(sizes) and target.capability in ROOMY
        launched = _tall_config(width, rank, is_many=is_many, has_room=has_room)
    elif is_default:
        launched = _crowded_config(rank)
    columns = launched["BLOCK_N"]
    most = max(1, WALKED_COLUMNS // columns) if is_tall else MAX_WALK
    return Schedule(
        group=group,
        config=tuple(launched.items()) if is_default else None,
        walk=_walk(runs, cdiv(width, columns), _at_a_time(launched) * multiprocessors, most),
        rounds=is_padded(sizes),
    )


def _group(sizes: BatchSizes, width: int, multiprocessors: int) -> int:
    enough = sizes.rows // TALL_ROWS * cdiv(width, COUNTED_COLUMNS) >= multiprocessors
    return TALL_ROWS // sizes.piece_rows if is_mostly_whole(sizes) and enough else 1


def _walk(runs: int, spans: int, at_a_time: int, most: int) -> int:
    """Tiles of each program with which all of them are done soonest.

    Args:
        runs: tiles above each other.
        spans: and side by side; one program walks some of those.
        at_a_time: programs that the device has.
        most: tiles that it walks.
    """

    def time(walk: int) -> float:
        return cdiv(runs * cdiv(spans, walk), at_a_time) * (WALK_START + walk)

    return min(range(1, most + 1), key=time)


def _at_a_time(config: Mapping[str, int]) -> int:
    if "maxnreg" not in config:
        return AT_A_TIME
    threads = 32 * config.get("num_warps", WARPS)
    return max(1, REGISTERS // (threads * config["maxnreg"]))


def _tall_config(width: int, rank: int, *, is_many: bool, has_room: bool) -> dict[str, int]:
    """Of tall tiles: CROWD at a time on a multiprocessor.

    One less of the least ranks, and of other small ones where there is no room. Registers are not
    limited where rows are no multiples of 32 bytes: there a limit spills up to 1,000 bytes a
    thread.

    Args:
        width: K.
        rank: R.
        is_many: whether tiles are.
        has_room: whether a thread of CROWD programs has registers for one of WIDE columns: not
            where tiles have several segments or are worked off in rounds, for those loops keep
            some, nor on a GPU that is not ROOMY.
    """
    if rank > LARGE_RANK:
        return _crowded_config(rank)
    is_small, is_even = rank <= SMALL_RANK, width % 16 == 0
    is_plain = is_even and rank % 8 == 0 and has_room
    is_wide = is_small or (is_plain and is_many and rank <= MIDDLE_RANK)
    is_heavy = rank <= LEAST_RANK or (is_small and not is_plain)
    step = max(LEAST_STEP, power_of_two(rank))
    config = {
        "BLOCK_N": WIDE if is_wide else NARROW,
        "BLOCK_K": min(step, RAGGED_STEP) if rank % 8 else step,
        "num_warps": WARPS,
        "num_stages": 1,
    }
    if is_even:
        config["maxnreg"] = _registers(CROWD - 1 if is_heavy else CROWD)
    return config


def _registers(at_a_time: int) -> int:
    """Most of a thread's where a multiprocessor is to have so many programs at a time."""
    return REGISTERS // (32 * WARPS * at_a_time) // REGISTER_UNIT * REGISTER_UNIT


def _crowded_config(rank: int) -> dict[str, int]:
    """Of segments that are many and have few rows each, and of large ranks."""
    return {
        "BLOCK_N": WIDE,
        "BLOCK_K": min(max(LEAST_STEP, power_of_two(rank)), DEEP_STEP),
        "num_warps": WARPS,
        "num_stages": STAGES,
    }


def _low_schedule(sizes: BatchSizes, width: int, rank: int, multiprocessors: int) -> Schedule:
    """Of few rows, whatever the config."""
    walk, spans = MAX_WALK, cdiv(width, WIDE)
    while walk > 1 and sizes.likely_pieces * cdiv(spans, walk) < LOW_ENOUGH * multiprocessors:
        walk //= 2
    return Schedule(
        config=tuple(_low_config(rank, walk).items()),
        walk=walk,
        ahead=reads_weights_once(sizes),
        rounds=is_padded(sizes),
    )


def _low_config(rank: int, walk: int) -> dict[str, int]:
    """Of few rows.

    Where there is one step and one tile, there is nothing to load ahead. Limited registers pay in
    between: the least ranks need none, and the tiles of large ones that are no multiple of 8 spill.
    """
    step = next((step for most, step in LOW_STEPS.items() if rank <= most), DEEP_STEP)
    config = {
        "BLOCK_N": WIDE,
        "BLOCK_K": step,
        "num_warps": WARPS,
        "num_stages": 1 if rank <= step and walk == 1 else STAGES,
    }
    if min(LOW_STEPS) < rank and (rank <= max(LOW_STEPS) or rank % 8 == 0):
        config["maxnreg"] = LOW_REGISTERS
    return config
