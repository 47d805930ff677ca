"""How a launch's work maps to programs: what its config does not say, and its batch decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lora_autotune.kernels.batch import TALL_ROWS, BatchSizes

MIDDLE_COLUMNS, TALL_COLUMNS = 32, 64
"""Columns of a tall tile of shrink where those of TALL_COLUMNS would be few, and columns that it
has at least where they are many."""

LEAST_DEPTH, MIDDLE_DEPTH = 32, 128
"""The least BLOCK_K that is left to a tall tile, and the most of one where they are few."""

LOW_ROWS, BROAD_COLUMNS = 32, 32
"""Most rows of low tiles, and columns of one of shrink where narrower ones would crowd."""

LOW_COLUMNS, LEAST_STEP, LOW_STEP, LOW_REGISTERS = 128, 16, 32, 128
"""Columns of a low tile of expand; elements of the rank in a step, the least that can be multiplied
where the rank has no more; and registers that a thread may have where it has."""

LOW_RANK = 64
"""Largest rank with such a tile. Beyond it, with the branch for ranks that are no multiple of 8, it
takes more shared memory than GPUs of compute capability 8.9 have."""

CROWDED = 0.8
"""So many programs of narrow low tiles for each multiprocessor are a crowd."""

MANY = 1.4
"""So many tiles of TALL_ROWS and TALL_COLUMNS for each multiprocessor are many."""

MAX_STEP = 24 * 1024
"""Most elements of x and of the weights in one step over K: more, and no pipeline fits."""

MAX_TOGETHER = 4
"""Most column tiles that one shrink program sums up together."""

MAX_WALK = 8
"""Most output tiles that one expand program walks with its x tile kept."""

MAX_PARTS = 16
"""Most parts that shrink's sum over K is cut into."""

PADDED = 1.5
"""A buffer this many times as long as the segments that are likely is not covered whole: to go on
in rounds costs registers."""

LEAST_SPLIT, LEAST_PART, SPARE_PART = 2048, 512, 256
"""Least K that is cut into parts, least K of a part, and least where multiprocessors are idle."""

SPARE = 0.75
"""Programs of low tiles for each multiprocessor up to which others are idle."""

BUSY = {"tall": 0.5, "narrow": 1.0, "broad": 1.5}
"""Programs for each multiprocessor beyond which shrink's sum is not divided further, by their tile:
tall ones would be in each other's way, those of few rows wait for memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Chosen without asking the device, so that a launch can be part of a CUDA graph.

    Attributes:
        group: consecutive segments that one program takes together: those with the adapter of the
            first, as one tile.
        tile: BLOCK_N and BLOCK_K in place of the config's; None: the config's.
        maxnreg: in place of the config's; 0: no limit, None: the config's.
        together: column tiles of shrink that one program sums up at once, from one x tile.
        parts: programs among which shrink's sum over K is divided.
        walk: output tiles of expand that one program walks.
        ahead: the weights are fetched into the L2 while the launch in front still runs.
        rounds: the grid covers the segments of a batch that is cut into whole chunks, not the whole
            buffer; programs go on to those behind, should there be any.
    """

    group: int = 1
    tile: tuple[int, int] | None = None
    maxnreg: int | None = None
    together: int = 1
    parts: int = 1
    walk: int = 1
    ahead: bool = False
    rounds: bool = False


def cdiv(length: int, block: int) -> int:
    """Blocks that a length takes. Triton's own takes microseconds on the host."""
    return -(-length // block)


def shrink_schedule(
    sizes: BatchSizes, columns: int, width: int, config: Mapping[str, int], multiprocessors: int
) -> Schedule:
    """Large tiles where there is work for every multiprocessor anyway, else parts of the sum.

    Few rows want narrow, deep tiles, many rows wide ones: so where rows are many a tile is
    taken for one of the same area, or less, and one config can serve both. In between, x is
    read once for every tile of MIDDLE_COLUMNS, and parts of the sum are what keeps the
    multiprocessors busy. Few rows of many columns want tiles that are deep all the same, but
    fewer of them.

    Args:
        sizes: of the batch.
        columns: S * R.
        width: K.
        config: BLOCK_N and BLOCK_K.
        multiprocessors: of the device.
    """
    own = config["BLOCK_N"], config["BLOCK_K"]
    tile, group, runs = own, 1, sizes.likely_pieces
    whole = _mostly_whole(sizes)
    if whole:
        group = TALL_ROWS // sizes.piece_rows
        runs = cdiv(sizes.rows, TALL_ROWS)
    tiles = shrink_tiles(own, columns, sizes.piece_rows)
    is_low = not whole and sizes.piece_rows <= LOW_ROWS and runs < multiprocessors
    if whole and runs * cdiv(columns, TALL_COLUMNS) < MANY * multiprocessors:
        tile = tiles.middle
    elif whole or runs >= multiprocessors:
        tile = tiles.wide
    elif is_low and _low_programs(runs, columns, width, own, multiprocessors) > CROWDED:
        tile = tiles.broad
    spans = cdiv(columns, tile[0])
    together = parts = 1
    if runs >= multiprocessors:
        together = tiles_together(group * sizes.piece_rows, tile, columns)
    else:
        kind = "tall" if whole else "narrow" if tile[0] < BROAD_COLUMNS else "broad"
        parts = _parts(runs * spans / multiprocessors, width, tile[1], kind, is_low=is_low)
    return Schedule(
        group=group,
        tile=None if tile == own else tile,
        together=together,
        parts=parts,
        ahead=(
            is_low and parts == 1 and runs * spans <= multiprocessors and _reads_weights_once(sizes)
        ),
        rounds=_is_padded(sizes),
    )


def tiles_together(rows: int, tile: tuple[int, int], columns: int) -> int:
    """Column tiles that one shrink program sums up at once, where there are programs enough.

    Args:
        rows: of a tile.
        tile: its BLOCK_N and BLOCK_K.
        columns: S * R.
    """
    spans = cdiv(columns, tile[0])
    step = (rows + spans * tile[0]) * tile[1]
    return 1 if spans > MAX_TOGETHER or step > MAX_STEP else spans


class Tiles(NamedTuple):
    """BLOCK_N and BLOCK_K of shrink's tiles, by what a batch is like.

    Attributes:
        broad: few rows, and much to read for them.
        middle: a few tall tiles.
        wide: many of them.
    """

    broad: tuple[int, int]
    middle: tuple[int, int]
    wide: tuple[int, int]


def shrink_tiles(own: tuple[int, int], columns: int, rows: int) -> Tiles:
    """Those that stand in for a config's own.

    Args:
        own: BLOCK_N and BLOCK_K of the config.
        columns: S * R.
        rows: most rows in a piece of a segment.
    """
    block_n, block_k = _widened(own, min(columns, MIDDLE_COLUMNS))
    is_broad = rows <= LOW_ROWS and columns >= BROAD_COLUMNS
    return Tiles(
        broad=(max(own[0], BROAD_COLUMNS), own[1]) if is_broad else own,
        middle=(min(block_n, MIDDLE_COLUMNS), min(block_k, MIDDLE_DEPTH)),
        wide=_widened(own, min(columns, TALL_COLUMNS)),
    )


def _low_programs(
    runs: int, columns: int, width: int, tile: tuple[int, int], multiprocessors: int
) -> float:
    """Programs of low tiles for each multiprocessor, those of a divided sum counted in."""
    load = runs * cdiv(columns, tile[0]) / multiprocessors
    return load * _parts(load, width, tile[1], "narrow", is_low=True)


def _parts(load: float, width: int, depth: int, kind: str, *, is_low: bool) -> int:
    """Programs among which the sum is divided, each of them with something to do.

    Args:
        load: programs for each multiprocessor with sums that are not divided.
        width: K.
        depth: BLOCK_K.
        kind: one of BUSY.
        is_low: whether tiles are of few rows.
    """
    parts = 1
    while width >= LEAST_SPLIT and 2 * parts <= MAX_PARTS:
        more = width >= 2 * parts * LEAST_PART and load * parts <= BUSY[kind]
        spare = is_low and width >= 2 * parts * SPARE_PART and 2 * load * parts <= SPARE
        if not (more or spare):
            break
        parts *= 2
    steps = cdiv(width, depth)
    return cdiv(steps, cdiv(steps, parts))


def _widened(tile: tuple[int, int], columns: int) -> tuple[int, int]:
    """A tile of the same area that has so many columns, as far as its depth allows."""
    block_n, block_k = tile
    while block_n < columns and block_k >= 2 * LEAST_DEPTH:
        block_n, block_k = 2 * block_n, block_k // 2
    return block_n, block_k


def expand_schedule(
    sizes: BatchSizes, width: int, rank: int, config: Mapping[str, int], multiprocessors: int
) -> Schedule:
    """Tall tiles as for shrink; then as many a program as leave a multiprocessor 6 programs.

    What is best for few rows hardly depends on the shape, and is not what is best for many: so a
    config's own tile and registers are for those, up to a rank of LOW_RANK.

    Args:
        sizes: of the batch.
        width: K, of the output.
        rank: R.
        config: BLOCK_N and BLOCK_K.
        multiprocessors: of the device.
    """
    own = config["BLOCK_N"], config["BLOCK_K"]
    group = _group(sizes, cdiv(width, own[0]), multiprocessors)
    is_low = group * sizes.piece_rows <= LOW_ROWS
    tile, maxnreg = own, None
    if is_low and rank <= LOW_RANK:
        step, maxnreg = (LEAST_STEP, 0) if rank <= LEAST_STEP else (LOW_STEP, LOW_REGISTERS)
        tile = LOW_COLUMNS, step
    spans = cdiv(width, tile[0])
    runs = cdiv(sizes.likely_pieces, group)
    walk = MAX_WALK
    while walk > 1 and runs * cdiv(spans, walk) < 6 * multiprocessors:
        walk //= 2
    return Schedule(
        group=group,
        tile=None if tile == own else tile,
        maxnreg=maxnreg,
        walk=walk,
        ahead=is_low and _reads_weights_once(sizes),
        rounds=_is_padded(sizes),
    )


def _is_padded(sizes: BatchSizes) -> bool:
    return PADDED * sizes.likely_segments <= sizes.grid_segments


def _group(sizes: BatchSizes, tiles: int, multiprocessors: int) -> int:
    enough = sizes.rows // TALL_ROWS * tiles >= multiprocessors
    return TALL_ROWS // sizes.piece_rows if _mostly_whole(sizes) and enough else 1


def _reads_weights_once(sizes: BatchSizes) -> bool:
    """Whether each adapter could have the rows of one program: no other fetches its weights."""
    return sizes.rows // sizes.piece_rows <= sizes.adapters


def _mostly_whole(sizes: BatchSizes) -> bool:
    """Whether most groups of segments have one adapter only, and as many rows as they can have."""
    return sizes.rows >= 2 * sizes.adapters * TALL_ROWS
