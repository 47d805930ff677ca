"""How good the search is, by replay and without a GPU: ours, plain Optuna's and Kernel Tuner's.

    python scripts/bench_search.py [--seeds N] [--landscapes WORD..]
        [--strategies WORD..] [--jobs N] [--without-kernel-tuner]

The landscapes are those that ship, and those of earlier kernels in tests, which left more to find.
Prints, for each landscape and for the mean over them, the regret after 30 and after 50 configs and
how many configs it takes to come within 1% of the best. Regret: the best cost so far over the
landscape's best, less 1. Every different config that was asked for counts, failures included; for
ours so does the default, which is always measured. Ours run with 8 configs in flight, the others in
sequence, which is easier for them. A strategy that ends early keeps what it has. What `tune` does
is called "+ starting points": they were chosen from other runs, on H200s but for one.

Then the wall-clock time to 1%, modelled: the recorded compile times on 14 workers, the measured
time that the strategy thinks, and 50 ms of the one GPU for each config. The better of the
model-based ones is what `--strategy auto` picks.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import search_rivals
from search_replay import Run, landscapes, replay

from lora_autotune.landscape import read_landscape
from lora_autotune.starting_points import starting_points

COUNT = 50
EARLY = 30
STARTED = " + starting points"
OURS = ("gp" + STARTED, "tpe" + STARTED, "gp", "tpe", "random")
PLAIN = "optuna TPESampler()"
FOREIGN = "kernel tuner "


class Cell(NamedTuple):
    """One strategy on one landscape, over all seeds."""

    early: tuple[float, float]
    late: tuple[float, float]
    mean: tuple[float, float]
    configs: tuple[float, float]
    seconds: tuple[float, float]
    ask_ms: float


def run(job: tuple[str, Path, int]) -> Run | str:
    """One search, or why there is none."""
    name, file, seed = job
    if name in OURS:
        landscape = read_landscape(file)
        first = starting_points(landscape.task, landscape.space) if STARTED in name else ()
        return replay(name.removesuffix(STARTED), landscape, seed, COUNT, first=first)
    if name == PLAIN:
        regrets = search_rivals.plain_optuna(file, seed, COUNT)
    else:
        try:
            regrets = search_rivals.kernel_tuner(name.removeprefix(FOREIGN), file, seed, COUNT)
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0]
    return Run(regrets=regrets, asking_s=0.0, within_s=float("inf"))


def summary(runs: Sequence[Run]) -> Cell:
    """Medians and 90th percentiles, in percent, configs and seconds."""
    regrets = np.array([[*r.regrets, *r.regrets[-1:] * COUNT][:COUNT] for r in runs]) * 100
    reached = regrets <= 1
    first = np.where(reached.any(1), reached.argmax(1) + 1, np.inf)
    return Cell(
        early=spread(regrets[:, EARLY - 1]),
        late=spread(regrets[:, -1]),
        mean=(float(regrets[:, EARLY - 1].mean()), float(regrets[:, -1].mean())),
        configs=spread(first),
        seconds=spread([r.within_s for r in runs]),
        ask_ms=1000 * float(np.mean([r.asking_s for r in runs])) / (COUNT - 1),
    )


def spread(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Median and 90th percentile; an infinite one is not interpolated."""
    low, high = np.quantile(np.asarray(values), [0.5, 0.9], method="higher")
    return float(low), float(high)


def average(cells: Sequence[Cell]) -> Cell:
    """The mean over landscapes of every number."""

    def pair(get: Callable[[Cell], tuple[float, float]]) -> tuple[float, float]:
        low, high = np.mean([get(cell) for cell in cells], axis=0)
        return float(low), float(high)

    return Cell(
        early=pair(lambda cell: cell.early),
        late=pair(lambda cell: cell.late),
        mean=pair(lambda cell: cell.mean),
        configs=pair(lambda cell: cell.configs),
        seconds=pair(lambda cell: cell.seconds),
        ask_ms=float(np.mean([cell.ask_ms for cell in cells])),
    )


def show(title: str, cells: dict[str, Cell]) -> None:
    """One table, the best mean first."""
    print(f"\n{title}")
    widths = (21, 23, 17, 17, 7)
    heads = ("regret at 30, %", "regret at 50, %", "configs to 1%", "seconds to 1%", "ms")
    kinds = (*["mean median  p90"] * 2, *["median   p90"] * 2, "an ask")
    for words in (heads, kinds):
        print(" " * 36 + "".join(f"{w:>{size}}" for w, size in zip(words, widths, strict=True)))
    for name, cell in sorted(cells.items(), key=lambda item: item[1].mean[::-1]):
        early, late = cell.mean
        text = f"{name:36}{early:9.2f}{cell.early[0]:6.1f}{cell.early[1]:6.1f}"
        text += f"{late:11.2f}{cell.late[0]:6.1f}{cell.late[1]:6.1f}"
        text += "".join(f"{number(x):>{w}}" for x, w in zip(cell.configs, (11, 6), strict=True))
        if name in OURS:
            text += "".join(f"{number(x):>{w}}" for x, w in zip(cell.seconds, (11, 6), strict=True))
            text += f"{cell.ask_ms:7.1f}"
        print(text)


def number(value: float) -> str:
    """A number, or a dash where the goal was not reached."""
    return f"{value:.1f}" if np.isfinite(value) else "-"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Search quality by replay; needs no GPU.")
    parser.add_argument("--seeds", type=int, default=50, metavar="N")
    parser.add_argument("--landscapes", nargs="*", default=[], metavar="WORD")
    parser.add_argument("--strategies", nargs="*", default=[], metavar="WORD")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes")
    parser.add_argument("--without-kernel-tuner", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The whole comparison; returns the exit status."""
    options = parse(arguments)
    names = [*OURS, PLAIN]
    if not options.without_kernel_tuner:
        if not search_rivals.has_kernel_tuner():
            print(
                f"Kernel Tuner is not installed: pip install {search_rivals.KERNEL_TUNER}, "
                "or go on --without-kernel-tuner",
                file=sys.stderr,
            )
            return 2
        names += [FOREIGN + name for name in search_rivals.KERNEL_TUNER_STRATEGIES]
    names = [n for n in names if not options.strategies or any(w in n for w in options.strategies)]
    files = landscapes(options.landscapes)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy starts in the processes
    started = time.monotonic()
    table: dict[str, dict[str, Cell]] = {land: {} for land in files}
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for name in names:
            jobs = [(name, file, seed) for file in files.values() for seed in range(options.seeds)]
            results = pool.map(run, jobs, chunksize=max(1, min(10, options.seeds // 2)))
            if failed := [result for result in results if isinstance(result, str)]:
                print(f"{name} does not run ({len(failed)} of {len(jobs)}): {failed[0]}")
                continue
            runs = [result for result in results if isinstance(result, Run)]
            for index, land in enumerate(files):
                part = runs[index * options.seeds : (index + 1) * options.seeds]
                table[land][name] = summary(part)
    for land, cells in table.items():
        show(land, cells)
    done = functools.reduce(set.intersection, (set(cells) for cells in table.values()))
    show(
        f"mean over {len(files)} landscapes, {options.seeds} seeds",
        {name: average([cells[name] for cells in table.values()]) for name in done},
    )
    print(f"\n{time.monotonic() - started:.0f} s with {options.jobs} processes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
