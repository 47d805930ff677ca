"""How the work of a shrink launch maps to programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

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
from lora_autotune.loader import DEFAULT_SHRINK_CONFIG

Tile = tuple[int, int]
"""BLOCK_N and BLOCK_K."""

TALL_COLUMNS, MIDDLE_COLUMNS, LEAST_COLUMNS = 64, 32, 16
"""Columns of a tall tile, where those would be few, and where there are no more."""

TALL_DEPTH, LEAST_DEPTH = 128, 32
"""BLOCK_K of tall tiles, and the least that is left to one that is widened."""

FEW_DEEP, MANY = 0.15, 2.0
"""Tiles of TALL_ROWS and TALL_COLUMNS for each multiprocessor: fewer are few, of the deepest sums;
more are many."""

HALF, NEARLY_ALL = 0.5, 0.9
"""Programs for each multiprocessor between which some of those have two, and others none, where
there is room for two."""

MAX_STEP = 24 * 1024
"""Most elements of x and of the weights in one step over K: more, and no pipeline fits."""

MAX_TOGETHER = 4
"""Most column tiles that one program sums up together."""

MAX_PARTS = 16
"""Most parts that the sum over K is cut into."""

SPARSE, SPARSE_PART = (16, 256), (16, 128)
"""Tiles of segments that could fill tall ones, and hardly do: with whole sums, and with parts."""

THIN, NARROW, BROAD = (8, 512), (16, 512), (32, 256)
"""Low tiles, of as few columns as leave the multiprocessors no crowd of programs."""

SINGLE, SOME, CROWDED, FULL = 0.75, 2.0, 0.8, 1.4
"""Most programs for each multiprocessor of thin tiles, and of those with deep sums; and of narrow
ones where many of them read the same x, for there are over FEW_COLUMNS, and where not."""

FEW_COLUMNS = 64

DEEP, DEEPEST, SPARE = 4096, 8192, 0.35
"""The least K of a deep sum, of the deepest, and programs of thin tiles for each multiprocessor up
to which there are some to spare for its parts."""

LEAST_ROWS = 16
"""Fewer rows are multiplied as so many."""

WARPS, STAGES, MAX_STAGES, LONE_STAGES = 4, 3, 4, 5
"""Of a config that was not found but chosen; the last leave a multiprocessor the room for one
program of MIDDLE_COLUMNS."""

ROOM = 96 * 1024
"""Bytes of shared memory that every GPU has, and that each of two programs has of a large one."""


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


TALL_SUMS, SPARSE_SUMS = Division(2048, 512, 0.5), Division(2048, 512, 1.0)
"""Of tall tiles, which would be in each other's way, and of as tall ones that are not filled."""

SPARE_SUMS = Division(DEEP, 1024, math.inf)
LOW_SUMS, LEAST_SUMS = Division(3072, 768, 1.4), Division(DEEPEST, 768, 1.0)
"""Of low tiles: where there are multiprocessors to spare, elsewhere, and of LEAST_ROWS rows. To add
the parts up takes as long as another 1,024 of K."""


def shrink_schedule(
    sizes: BatchSizes, columns: int, width: int, config: Mapping[str, int], target: Target
) -> Schedule:
    """Large tiles where there is work for every multiprocessor anyway, else parts of the sum.

    Few rows want narrow, deep tiles, many rows want wide ones: so a config is for many. The default
    is no config: what is launched then is chosen here.

    Args:
        sizes: of the batch.
        columns: S * R.
        width: K.
        config: the one that was found, or the default.
        target: the GPU.
    """
    multiprocessors = target.multiprocessors
    found = None if config == DEFAULT_SHRINK_CONFIG else (config["BLOCK_N"], config["BLOCK_K"])
    group, runs = 1, sizes.likely_pieces
    if is_mostly_whole(sizes):
        group = TALL_ROWS // sizes.piece_rows
        runs = sizes.likely_runs(group)
        if runs * cdiv(columns, TALL_COLUMNS) <= MANY * multiprocessors:
            return _middle_schedule(sizes, group, runs, columns, width, found, multiprocessors)
    elif runs < multiprocessors:
        few = _low_schedule if sizes.piece_rows <= LOW_ROWS else _sparse_schedule
        return few(sizes, columns, width, multiprocessors)
    rows = group * sizes.piece_rows
    tile = _many_tile(columns) if found is None else widened(found, columns)
    together = tiles_together(rows, tile, columns) if runs >= multiprocessors else 1
    schedule = Schedule(group=group, together=together, rounds=is_padded(sizes))
    stages = _stages(rows, (tile[0] * together, tile[1]))
    return _with_tile(schedule, found, tile, stages)


def _with_tile(schedule: Schedule, found: Tile | None, tile: Tile, stages: int) -> Schedule:
    """With a tile in place of the one that was found; where none was, with a whole config."""
    if found is None:
        return replace(schedule, config=_config(tile, stages))
    return replace(schedule, tile=None if tile == found else tile)


def _many_tile(columns: int) -> Tile:
    """Of many segments, where no config was found.

    The fewer columns there are, the deeper; and the most of them come in broader tiles.
    """
    if columns <= TALL_COLUMNS:
        return max(LEAST_COLUMNS, power_of_two(columns)), TALL_DEPTH
    return TALL_COLUMNS if columns <= 3 * TALL_COLUMNS else 2 * TALL_COLUMNS, TALL_DEPTH // 2


def _middle_schedule(
    sizes: BatchSizes,
    group: int,
    runs: int,
    columns: int,
    width: int,
    found: Tile | None,
    multiprocessors: int,
) -> Schedule:
    """Of tall tiles that are not many.

    x is read once for every tile of MIDDLE_COLUMNS while there is no more than a program for each
    multiprocessor, else of TALL_COLUMNS; those also where there are programs for many but not for
    all of them, and sums are deep enough to be cut into more parts. With no more than a program for
    each the pipeline is as deep as there is use for.
    """

    def divided(most: int) -> tuple[Tile, int, float]:
        tile = min(most, max(LEAST_COLUMNS, power_of_two(columns))), TALL_DEPTH
        if found is not None:
            tile = narrowed(found, columns, most)
        load = runs * cdiv(columns, tile[0]) / multiprocessors
        parts = _parts(load, width, tile, TALL_SUMS)
        return tile, parts, load * parts

    tile, parts, load = divided(MIDDLE_COLUMNS)
    is_loose = HALF < load < NEARLY_ALL
    if width >= DEEPEST:
        is_broad = runs * cdiv(columns, TALL_COLUMNS) >= FEW_DEEP * multiprocessors
    else:
        is_broad = load > 1 or (is_loose and width >= DEEP)
    stages = LONE_STAGES if is_loose else MAX_STAGES
    if is_broad and columns > MIDDLE_COLUMNS:
        tile, parts, load = divided(TALL_COLUMNS)
        stages = MAX_STAGES if load <= 1 else _stages(TALL_ROWS, tile)
    schedule = Schedule(group=group, parts=parts, rounds=is_padded(sizes))
    return _with_tile(schedule, found, tile, stages)


def _sparse_schedule(sizes: BatchSizes, columns: int, width: int, multiprocessors: int) -> Schedule:
    """Of tall tiles with few rows each, whatever the config."""
    load = sizes.likely_pieces * cdiv(columns, SPARSE[0]) / multiprocessors
    parts = _parts(load, width, SPARSE_PART, SPARSE_SUMS)
    return Schedule(
        config=_config(SPARSE, STAGES) if parts == 1 else _config(SPARSE_PART, MAX_STAGES),
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
    elif load(THIN) <= (SOME if is_deep else SINGLE):
        tile = THIN
    elif load(NARROW) <= (CROWDED if columns > FEW_COLUMNS else FULL):
        tile = NARROW
    else:
        tile = BROAD
    parts = _parts(load(tile), width, tile, division)
    return Schedule(
        config=_low_config(rows, tile, width),
        spread=True,
        parts=parts,
        ahead=load(tile) * parts <= 1 and reads_weights_once(sizes),
        rounds=is_padded(sizes),
    )


def _low_config(rows: int, tile: Tile, width: int) -> tuple[tuple[str, int], ...]:
    """As many stages as the sum has use for, and as fit."""
    block_n, block_k = tile
    fits = 3 * (rows + block_n) * block_k * 2 <= ROOM  # one of four is being multiplied
    return _config(tile, MAX_STAGES if fits and width > MAX_STAGES * block_k else STAGES)


def _stages(rows: int, tile: Tile) -> int:
    """As many as leave room for two programs on a multiprocessor, STAGES at least."""
    block_n, block_k = tile
    return max(STAGES, min(MAX_STAGES, ROOM // ((rows + block_n) * block_k * 2)))


def _config(tile: Tile, stages: int) -> tuple[tuple[str, int], ...]:
    block_n, block_k = tile
    return (
        ("BLOCK_N", block_n),
        ("BLOCK_K", block_k),
        ("num_warps", WARPS),
        ("num_stages", stages),
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


def widened(tile: Tile, columns: int, most: int = TALL_COLUMNS) -> Tile:
    """A tile of the same area that has so many columns, as far as there are and it is deep.

    Args:
        tile: BLOCK_N and BLOCK_K of a config.
        columns: S * R.
        most: columns that it should have.
    """
    block_n, block_k = tile
    while block_n < min(columns, most) and block_k >= 2 * LEAST_DEPTH:
        block_n, block_k = 2 * block_n, block_k // 2
    return block_n, block_k


def narrowed(tile: Tile, columns: int, most: int) -> Tile:
    """A tile that is no wider than that, and no deeper than those that are not many.

    Args:
        tile: BLOCK_N and BLOCK_K of a config.
        columns: S * R.
        most: columns that it should have.
    """
    block_n, block_k = widened(tile, columns, most)
    return min(block_n, most), min(block_k, TALL_DEPTH)


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
