"""How the work of a shrink launch maps to programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from lora_autotune.kernels.batch import TALL_ROWS, BatchSizes
from lora_autotune.kernels.schedule import (
    LOW_ROWS,
    Schedule,
    cdiv,
    is_mostly_whole,
    is_padded,
    reads_weights_once,
)

Tile = tuple[int, int]
"""BLOCK_N and BLOCK_K."""

MIDDLE_COLUMNS, TALL_COLUMNS = 32, 64
"""Columns of a tall tile where those of TALL_COLUMNS would be few, and columns that it has at least
where they are many."""

LEAST_DEPTH, MIDDLE_DEPTH = 32, 128
"""The least BLOCK_K that is left to a tall tile, and the most of one where they are few."""

MANY = 1.4
"""So many tiles of TALL_ROWS and TALL_COLUMNS for each multiprocessor are many."""

MAX_STEP = 24 * 1024
"""Most elements of x and of the weights in one step over K: more, and no pipeline fits."""

MAX_TOGETHER = 4
"""Most column tiles that one program sums up together."""

MAX_PARTS = 16
"""Most parts that the sum over K is cut into."""

THIN, NARROW, BROAD = (8, 512), (16, 512), (32, 256)
"""Low tiles, of as few columns as leave the multiprocessors no crowd of programs."""

FEW, SOME, CROWDED, FULL = 0.75, 2.0, 0.8, 1.4
"""Most programs for each multiprocessor of thin tiles, and of those with deep sums; and of narrow
ones where many of them read the same x, for there are over FEW_COLUMNS, and where not."""

FEW_COLUMNS = 64

DEEP, SPARE = 4096, 0.35
"""The least K of a deep sum, and programs of thin tiles for each multiprocessor up to which there
are some to spare for its parts."""

LEAST_ROWS, LOW_WARPS, LOW_BYTES = 16, 4, 96 * 1024
"""Of low tiles; fewer rows are multiplied as 16, and GPUs have so much shared memory at least."""


class Division(NamedTuple):
    """When the sum over K is divided among programs.

    Attributes:
        least_width: K from which on it is.
        least_part: K that each part has at least.
        busy: programs for each multiprocessor beyond which it is not divided further.
    """

    least_width: int
    least_part: int
    busy: float


TALL_SUMS, HIGH_SUMS = Division(2048, 512, 0.5), Division(2048, 512, 1.0)
"""Of tall tiles, which would be in each other's way, and of as tall ones that are not filled."""

SPARE_SUMS = Division(DEEP, 1024, math.inf)
LOW_SUMS, LEAST_SUMS = Division(3072, 768, 1.4), Division(8192, 768, 1.0)
"""Of low tiles: where there are multiprocessors to spare, elsewhere, and of LEAST_ROWS rows. To add
the parts up takes as long as another 1,024 of K."""


def shrink_schedule(
    sizes: BatchSizes, columns: int, width: int, config: Mapping[str, int], multiprocessors: int
) -> Schedule:
    """Large tiles where there is work for every multiprocessor anyway, else parts of the sum.

    Few rows want narrow, deep tiles, many rows want wide ones: so a config is for many rows. Where
    they are, a tile is taken for one of the same area, or less. In between, x is read once for
    every tile of MIDDLE_COLUMNS, and parts of the sum are what keeps the multiprocessors busy.

    Args:
        sizes: of the batch.
        columns: S * R.
        width: K.
        config: BLOCK_N and BLOCK_K.
        multiprocessors: of the device.
    """
    runs, is_whole = sizes.likely_pieces, is_mostly_whole(sizes)
    if not is_whole and runs < multiprocessors and sizes.piece_rows <= LOW_ROWS:
        return _low_schedule(sizes, columns, width, multiprocessors)
    tile = own = config["BLOCK_N"], config["BLOCK_K"]
    group = 1
    if is_whole:
        group = TALL_ROWS // sizes.piece_rows
        runs = cdiv(sizes.rows, TALL_ROWS)
    tiles = tall_tiles(own, columns)
    if is_whole and runs * cdiv(columns, TALL_COLUMNS) < MANY * multiprocessors:
        tile = tiles.middle
    elif is_whole or runs >= multiprocessors:
        tile = tiles.wide
    together = parts = 1
    if runs >= multiprocessors:
        together = tiles_together(group * sizes.piece_rows, tile, columns)
    else:
        load = runs * cdiv(columns, tile[0]) / multiprocessors
        parts = _parts(load, width, tile, TALL_SUMS if is_whole else HIGH_SUMS)
    return Schedule(
        group=group,
        tile=None if tile == own else tile,
        together=together,
        parts=parts,
        rounds=is_padded(sizes),
    )


def _low_schedule(sizes: BatchSizes, columns: int, width: int, multiprocessors: int) -> Schedule:
    """Of few rows, whatever the config."""
    rows, is_deep = sizes.piece_rows, width >= DEEP
    division = LEAST_SUMS if rows <= LEAST_ROWS else LOW_SUMS

    def load(tile: Tile) -> float:
        return sizes.likely_pieces * cdiv(columns, tile[0]) / multiprocessors

    if is_deep and load(THIN) <= SPARE:
        tile, division = THIN, SPARE_SUMS
    elif width >= division.least_width:
        tile = BROAD
    elif load(THIN) <= (SOME if is_deep else FEW):
        tile = THIN
    elif load(NARROW) <= (CROWDED if columns > FEW_COLUMNS else FULL):
        tile = NARROW
    else:
        tile = BROAD
    parts = _parts(load(tile), width, tile, division)
    return Schedule(
        low_config=_low_config(rows, tile, width),
        parts=parts,
        ahead=load(tile) * parts <= 1 and reads_weights_once(sizes),
        rounds=is_padded(sizes),
    )


def _low_config(rows: int, tile: Tile, width: int) -> tuple[tuple[str, int], ...]:
    """As many stages as the sum has use for, and as fit."""
    block_n, block_k = tile
    fits = 3 * (rows + block_n) * block_k * 2 <= LOW_BYTES  # one of four is being multiplied
    return (
        ("BLOCK_N", block_n),
        ("BLOCK_K", block_k),
        ("num_warps", LOW_WARPS),
        ("num_stages", 4 if fits and width > 4 * block_k else 3),
    )


def tiles_together(rows: int, tile: Tile, columns: int) -> int:
    """Column tiles that one program sums up at once, where there are programs enough.

    Args:
        rows: of a tile.
        tile: its BLOCK_N and BLOCK_K.
        columns: S * R.
    """
    spans = cdiv(columns, tile[0])
    step = (rows + spans * tile[0]) * tile[1]
    return 1 if spans > MAX_TOGETHER or step > MAX_STEP else spans


class TallTiles(NamedTuple):
    """BLOCK_N and BLOCK_K where tall tiles are a few, and where they are many."""

    middle: Tile
    wide: Tile


def tall_tiles(own: Tile, columns: int) -> TallTiles:
    """Those that stand in for a config's own.

    Args:
        own: BLOCK_N and BLOCK_K of the config.
        columns: S * R.
    """
    block_n, block_k = _widened(own, min(columns, MIDDLE_COLUMNS))
    return TallTiles(
        middle=(min(block_n, MIDDLE_COLUMNS), min(block_k, MIDDLE_DEPTH)),
        wide=_widened(own, min(columns, TALL_COLUMNS)),
    )


def _parts(load: float, width: int, tile: Tile, division: Division) -> int:
    """Programs among which the sum is divided, each of them with something to do.

    Args:
        load: programs for each multiprocessor with sums that are not divided.
        width: K.
        tile: BLOCK_N and BLOCK_K.
        division: how far it is.
    """
    parts = 1
    while width >= division.least_width and 2 * parts <= MAX_PARTS:
        if width < 2 * parts * division.least_part or load * parts > division.busy:
            break
        parts *= 2
    steps = cdiv(width, tile[1])
    return cdiv(steps, cdiv(steps, parts))


def _widened(tile: Tile, columns: int) -> Tile:
    """A tile of the same area that has so many columns, as far as its depth allows."""
    block_n, block_k = tile
    while block_n < columns and block_k >= 2 * LEAST_DEPTH:
        block_n, block_k = 2 * block_n, block_k // 2
    return block_n, block_k
