"""What a task gains from the best of one that is like it, by replay and without a GPU.

    python scripts/bench_sharing.py [--seeds N] [--landscapes WORD..] [--strategy NAME]
        [--hints N..] [--folder DIR] [--journal FILE] [--jobs N]

Every ordered pair of landscapes of one kernel, dtype, rank and space, on the batches that both
have. The first, the scout, is searched with the usual budget; the second then starts from its best
configs, as many as --hints say, from the tuner's starting points, or from both. Its regret (its
best cost over the landscape's best, less 1) is printed after so many configs, the default's
included, as mean and 90th percentile over the seeds; "share" is what the tuner gives it, "budget"
what it gives a scout. Beside them stands a search from nothing. Pairs of one chunk size are the
case; those of different ones are for contrast. Then what the tuner's budgets come to for a model.

--journal: the record of `lora-autotune tune --model Qwen3-0.6B --rank 64`, of any strategy. For
each ordered pair of tasks that are alike: how the costs of the configs that both measured rank
(Spearman), and how far the best of the default and the first one's best are from the second's
best, as far as the second measured them. It says something about kernels of which there are no
landscapes yet; what it says of a pair is no more than that.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from search_replay import landscapes, replay

from lora_autotune.budgets import CLOSE_SHARE, FAR_SHARE, HINTS, budgets, default_trials
from lora_autotune.evaluator import Platform
from lora_autotune.journal import Journal
from lora_autotune.landscape import Landscape, read_landscape
from lora_autotune.model import load_model_shape, tasks_for
from lora_autotune.neighbours import Problem, close
from lora_autotune.space import DEFAULT_CONFIGS, Config, named_space
from lora_autotune.starting_points import starting_points
from lora_autotune.task import Instance, Task, default_workload
from lora_autotune.trial import Measurement, Trial, tuning_cost

LENGTHS = (12, 16, 18, 20, 24, 30)
MODEL, RANK = "Qwen3-0.6B", 64
SCRATCH = "from nothing"
WORST = 10.0
"""A regret is taken for no more than this: one hopeless search would be all of a mean."""


class Pair(NamedTuple):
    """A scout, and who starts from its best; both on the batches that they share."""

    scout: Landscape
    follower: Landscape

    @property
    def same_chunk(self) -> bool:
        return self.scout.task.chunk_size == self.follower.task.chunk_size

    @property
    def near(self) -> bool:
        return self.same_chunk and close(self.scout.task, self.follower.task)

    def __str__(self) -> str:
        one, other = self.scout.task, self.follower.task
        batches = "+".join(str(instance) for instance in self.scout.workload)
        ends = (f"({task.K},{task.S}) chunk {task.chunk_size}" for task in (one, other))
        return f"{one.kernel} {' -> '.join(ends)}, {batches}"


Job = tuple[Pair, int, str, tuple[int, ...]]
Rows = dict[str, list[float]]


def pairs(found: Sequence[Landscape]) -> Iterator[Pair]:
    """Every ordered pair that has anything in common, those of one chunk size first."""
    alike = [
        (one, other)
        for one, other in itertools.permutations(found, 2)
        if _kind(one) == _kind(other) and one.platform == other.platform
    ]
    alike.sort(key=lambda two: two[0].task.chunk_size != two[1].task.chunk_size)
    for one, other in alike:
        shared = tuple(instance for instance in one.workload if instance in other.workload)
        if shared:
            yield Pair(narrowed(one, shared), narrowed(other, shared))


def _kind(landscape: Landscape) -> tuple[object, ...]:
    task = landscape.task
    made_by = landscape.platform.kernels_version
    return task.kernel, task.dtype, task.R, made_by, tuple(landscape.space.axes.items())


def narrowed(landscape: Landscape, batches: tuple[Instance, ...]) -> Landscape:
    """The landscape on some of its batches."""
    places = [landscape.workload.index(instance) for instance in batches]

    def cut(trial: Trial) -> Trial:
        outcome = trial.outcome
        if not isinstance(outcome, Measurement):
            return trial
        times_us = tuple(outcome.times_us[place] for place in places)
        return replace(trial, outcome=replace(outcome, times_us=times_us))

    trials = {config: cut(trial) for config, trial in landscape.trials.items()}
    return replace(landscape, workload=batches, trials=trials)


def run(job: Job) -> Rows:
    """Regrets at LENGTHS, at the follower's share of the usual budget, and at the end of each."""
    pair, seed, strategy, hints = job
    usual = default_trials(pair.follower.space)
    share = round(usual * (CLOSE_SHARE if pair.near else FAR_SHARE))
    points = starting_points(pair.scout.task, pair.scout.space)
    scouted = default_trials(pair.scout.space)
    costs = replay(strategy, pair.scout, seed, scouted, first=points).costs
    best = [c for c in sorted(costs, key=costs.__getitem__) if c not in DEFAULT_CONFIGS.values()]
    regrets = {SCRATCH: replay(strategy, pair.follower, seed, usual).regrets}
    starts = {"starting points": points}
    for count in hints:
        starts[f"its best {count}"] = tuple(best[:count])
        starts[f"its best {count}, then both"] = (*best[:count], *points)
    for name, first in starts.items():
        found = replay(strategy, pair.follower, seed, max(usual, *LENGTHS), first=first)
        regrets[name] = found.regrets
    return {
        name: [*(values[length - 1] for length in (*LENGTHS, share)), values[-1]]
        for name, values in regrets.items()
    }


def show(title: str, cells: Mapping[str, np.ndarray]) -> None:
    """A line for each start; the means and 90th percentiles are means over the pairs."""
    print(f"\n{title}")
    heads = [*(f"at {length}" for length in LENGTHS), "share", "budget"]
    print(" " * 22 + "".join(f"{head:>13}" for head in heads) + "   regret in %, mean and p90")
    for name, regrets in cells.items():
        values = 100 * np.minimum(regrets, WORST)
        columns = zip(values.mean((0, 1)), np.quantile(values, 0.9, axis=1).mean(0), strict=True)
        text = [f"{mean:7.2f}{tail:6.1f}" for mean, tail in columns]
        print(f"{name:22}" + "".join(text))


def sharing(options: argparse.Namespace) -> None:
    """The pairs of landscapes."""
    files = landscapes(options.landscapes, options.folder)
    found = list(pairs([read_landscape(file) for file in files.values()]))
    jobs: list[Job] = [
        (pair, seed, options.strategy, tuple(options.hints))
        for pair in found
        for seed in range(options.seeds)
    ]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        results = pool.map(run, jobs, chunksize=max(1, min(10, options.seeds // 2)))
    groups: dict[str, list[dict[str, np.ndarray]]] = defaultdict(list)
    for place, pair in enumerate(found):
        rows = results[place * options.seeds : (place + 1) * options.seeds]
        cells = {name: np.array([[row[name] for row in rows]]) for name in rows[0]}
        show(str(pair), cells)
        group = "close" if pair.near else "farther" if pair.same_chunk else "other chunk size"
        groups[group].append(cells)
    for group, members in groups.items():
        both = {name: np.concatenate([cells[name] for cells in members]) for name in members[0]}
        show(f"mean over {len(members)} pairs, {group}, {options.seeds} seeds", both)


def plan(compile_s: Mapping[Task, float]) -> None:
    """What a model's tasks may spend, with scouts and without; and compiling, if it is known."""
    problems = [
        Problem(
            task=task,
            workload=default_workload(task.chunk_size),
            platform=None,
            space=named_space("wide", task.kernel),
        )
        for task in tasks_for(load_model_shape(MODEL), rank=RANK)
    ]
    spent = [budget.trials for budget in budgets(problems, "auto")]
    alone = [default_trials(problem.space) for problem in problems]
    share = sum(spent) / sum(alone)
    print(
        f"\n{MODEL} R={RANK}: {len(spent)} tasks, {sum(spent)} trials of {sum(alone)} ({share:.0%})"
    )
    if compile_s:
        each = [compile_s[problem.task] for problem in problems]
        new, old = float(np.dot(each, spent)), float(np.dot(each, alone))
        print(f"which compile for {new:.0f} worker-seconds instead of {old:.0f} ({new / old:.0%})")


def read_journal(path: Path, device: str, triton: str) -> dict[Task, list[Trial]]:
    """Each task's trials."""
    platform = Platform(device=device, triton=triton)
    with Journal(path) as journal:
        return {
            task: journal.open(
                task, default_workload(task.chunk_size), platform, resume=True
            ).trials
            for task in tasks_for(load_model_shape(MODEL), rank=RANK)
        }


def likeness(trials: Mapping[Task, Sequence[Trial]]) -> None:
    """What a run says of its pairs of tasks."""
    print(f"\nrank correlation (configs in common), regret of its best {HINTS} (known)")
    costs = {task: known for task, tried in trials.items() if (known := _costs(task, tried))}
    alike = [
        (one, other)
        for one, other in itertools.permutations(costs, 2)
        if (one.kernel, one.chunk_size) == (other.kernel, other.chunk_size)
    ]
    alike.sort(key=lambda two: (not close(*two), two[0].kernel, two[0].chunk_size))
    for one, other in alike:
        default = DEFAULT_CONFIGS[one.kernel]
        best = [c for c in sorted(costs[one], key=costs[one].__getitem__) if c != default]
        start = {default, *best[:HINTS]} & set(costs[other])
        regret = min(costs[other][c] for c in start) / min(costs[other].values()) - 1
        common = [c for c in costs[one] if c in costs[other]]
        ranks = [np.argsort(np.argsort([costs[t][c] for c in common])) for t in (one, other)]
        rho = float(np.corrcoef(*ranks)[0, 1]) if len(common) > 2 else float("nan")
        name = f"{one.kernel} chunk {one.chunk_size} ({one.K},{one.S}) -> ({other.K},{other.S})"
        print(
            f"{'close' if close(one, other) else '':6}{name:45}{rho:6.2f} ({len(common):2})"
            f"{100 * regret:7.1f}% ({len(start)})"
        )


def _costs(task: Task, trials: Sequence[Trial]) -> dict[Config, float]:
    """What each config costs that was timed on every batch; nothing where the default failed."""
    outcomes = {trial.config: trial.outcome for trial in trials}
    times = {c: one.times_us for c, one in outcomes.items() if isinstance(one, Measurement)}
    default = times.get(DEFAULT_CONFIGS[task.kernel])
    if default is None:
        return {}
    workload = default_workload(task.chunk_size)
    return {config: tuning_cost(us, default, workload) for config, us in times.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """All of it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=50, metavar="N")
    parser.add_argument("--landscapes", nargs="*", default=[], metavar="WORD")
    parser.add_argument("--strategy", default="gp", metavar="NAME")
    parser.add_argument("--hints", type=int, nargs="+", default=[3, 5, 8, 12], metavar="N")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="default: those that ship")
    parser.add_argument("--journal", type=Path, metavar="FILE")
    parser.add_argument("--device", default="NVIDIA H200", help="of the journal")
    parser.add_argument("--triton", default="3.6.0", help="of the journal")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy starts in the processes
    started = time.monotonic()
    sharing(options)
    trials = {}
    if options.journal is not None:
        trials = read_journal(options.journal, options.device, options.triton)
        likeness(trials)
    seconds = {task: [trial.compile_s or 0.0 for trial in tried] for task, tried in trials.items()}
    plan({task: float(np.mean(each)) for task, each in seconds.items()})
    print(f"\n{time.monotonic() - started:.0f} s with {options.jobs} processes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
