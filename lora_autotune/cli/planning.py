"""What ``tune --dry-run`` shows: the work ahead, and what is done already."""

from __future__ import annotations

import importlib
import json as json_module
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lora_autotune.budgets import budgets, everything
from lora_autotune.cli.tasks import named_work, says_what_is_served
from lora_autotune.config_file import read_config_file
from lora_autotune.errors import UsageError
from lora_autotune.evaluator import Platform
from lora_autotune.evaluators.cores import compile_workers
from lora_autotune.landscape import Landscape
from lora_autotune.neighbours import Problem
from lora_autotune.result import task_config_path
from lora_autotune.space import SearchSpace, named_space
from lora_autotune.task import Task, Workload, held_out_workload

WORKER_SECONDS = 57 * 16 / 584
"""Seconds of one compile worker that a trial takes, finalists included: 28 tasks of 584 trials took
48 to 57 s on an H100's host of 16 cores. Compiling is most of it."""

LEAST_SECONDS = 40 / 640
"""What a trial takes however many compile: 640 trials took 40 s with 30 compile workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One task of a run that is yet to be made.

    Attributes:
        configs: how many its space has.
        trials: most that will be evaluated, the default's included.
        held_out: batches that its winner is measured on, too.
        tuned: there is an entry for it; None: nobody knows which GPU or Triton is meant.
        estimate_s: its share of the seconds that the run will take; None where it is replayed.
    """

    task: Task
    workload: Workload
    held_out: Workload
    configs: int
    trials: int
    tuned: bool | None
    estimate_s: float | None


def make_plan(arguments: Any, landscapes: Sequence[Landscape] | None) -> list[Planned]:
    """What a run with these arguments would do.

    Args:
        arguments: those of ``tune``.
        landscapes: what is to be replayed; None: the GPU is tuned on.

    Raises:
        UsageError: only what is missing is asked for, and nobody knows on which GPU and Triton.
    """
    problems, tuned = [], []
    for problem in _problems(arguments, landscapes):
        where = problem.platform
        done = None if where is None else is_tuned(problem.task, where, arguments.out)
        if done is None and arguments.only_missing:
            raise UsageError(
                "nobody knows for which GPU and Triton something is missing",
                hint="give --device NAME and --triton VERSION",
            )
        if not (done and arguments.only_missing):
            problems.append(problem)
            tuned.append(done)
    plan = []
    unsaid = landscapes is None and not says_what_is_served(arguments)
    allowed = budgets(problems, arguments.strategy, arguments.trials)
    for problem, done, budget in zip(problems, tuned, allowed, strict=True):
        trials = min(everything(problem), budget.trials)
        planned = Planned(
            task=problem.task,
            workload=problem.workload,
            held_out=held_out_workload(problem.workload, problem.task.chunk_size) if unsaid else (),
            configs=len(problem.space),
            trials=trials,
            tuned=done,
            estimate_s=_estimate_s(trials) if landscapes is None else None,
        )
        plan.append(planned)
    return plan


def _estimate_s(trials: int) -> float:
    return trials * max(WORKER_SECONDS / compile_workers(), LEAST_SECONDS)


def is_tuned(task: Task, platform: Platform, out: Path) -> bool:
    """Whether the config files under a folder have an entry for a task's chunk size.

    Raises:
        ConfigFileError: the task's file is no config file.
    """
    path = task_config_path(task, platform, out)
    return path.exists() and task.chunk_size in read_config_file(path)


def searched_space(arguments: Any, landscape: Landscape) -> SearchSpace:
    """Where a landscape is searched: the space that --space names, or all of it."""
    return asked_space(arguments, landscape.task) if arguments.space else landscape.space


def asked_space(arguments: Any, task: Task) -> SearchSpace:
    """The space that --space names, of the task's kernel."""
    return named_space(arguments.space or "wide", task.kernel)


def show_plan(plan: Sequence[Planned], *, json: bool) -> int:
    """Print a table, plain lines where there is no terminal, or an object per task."""
    total = Console(file=sys.stderr if json else sys.stdout, highlight=False)
    if json:
        for planned in plan:
            print(json_module.dumps(_as_json(planned)))
    elif total.is_terminal:
        total.print(_table(plan))
    else:
        for planned in plan:
            print(_line(planned))
    total.print(_summary(plan), markup=False, soft_wrap=True)
    return 0


def _problems(arguments: Any, landscapes: Sequence[Landscape] | None) -> list[Problem]:
    if landscapes is None:
        platform = _platform_meant(arguments)
        return [
            Problem(task=task, workload=load, platform=platform, space=asked_space(arguments, task))
            for task, load in named_work(arguments).items()
        ]
    return [
        Problem(
            task=one.task,
            workload=one.workload,
            platform=one.platform,
            space=searched_space(arguments, one),
        )
        for one in landscapes
    ]


def _platform_meant(arguments: Any) -> Platform | None:
    """What --device and --triton say, or what is here; None: neither."""
    device, triton = arguments.device, arguments.triton
    try:
        triton = triton or importlib.import_module("triton").__version__
        device = device or importlib.import_module("torch").cuda.get_device_name()
    except Exception:  # not installed, no driver, no GPU: there is nothing to name
        return None
    return Platform(device=device, triton=triton)


def _as_json(planned: Planned) -> dict[str, Any]:
    task = planned.task
    return {
        **task.as_dict(),
        "dtype": task.dtype,
        "instances": [instance.as_dict() for instance in planned.workload],
        "held_out": [instance.as_dict() for instance in planned.held_out],
        "configs": planned.configs,
        "trials": planned.trials,
        "tuned": planned.tuned,
        "estimate_s": None if planned.estimate_s is None else round(planned.estimate_s, 1),
    }


def _table(plan: Sequence[Planned]) -> Table:
    table = Table("task", "chunk", "batches", "configs", "trials", "tuned", "about s")
    for planned in plan:
        task = planned.task
        table.add_row(
            f"{task.kernel} K={task.K} R={task.R} S={task.S}",
            str(task.chunk_size),
            "\n".join(_shares(planned.workload)),
            str(planned.configs),
            str(planned.trials),
            {True: "yes", False: "no", None: "?"}[planned.tuned],
            "-" if planned.estimate_s is None else f"{planned.estimate_s:.1f}",
        )
    return table


def _line(planned: Planned) -> str:
    tuned = {True: "tuned already", False: "not tuned yet", None: "perhaps tuned"}[planned.tuned]
    about = "" if planned.estimate_s is None else f", about {planned.estimate_s:.1f} s"
    return (
        f"{planned.task}: {' '.join(_shares(planned.workload))}; {planned.configs} configs,"
        f" {planned.trials} trials{about}; {tuned}"
    )


def _shares(workload: Workload) -> list[str]:
    """Each batch, with its share of the weight where there are several."""
    total = sum(instance.weight for instance in workload)
    if len(workload) == 1:
        return [str(workload[0])]
    return [f"{instance} ({instance.weight / total:.0%})" for instance in workload]


def _summary(plan: Sequence[Planned]) -> str:
    tasks = "1 task" if len(plan) == 1 else f"{len(plan)} tasks"
    text = f"{tasks}, {sum(planned.trials for planned in plan)} trials"
    estimates = [planned.estimate_s for planned in plan if planned.estimate_s is not None]
    if estimates:
        workers = compile_workers()
        text += f", about {sum(estimates):.0f} s with {workers} compile worker{'s'[: workers > 1]}"
    if any(planned.tuned is None for planned in plan):
        text += "; --device and --triton say what is tuned already"
    else:
        text += f"; {sum(bool(planned.tuned) for planned in plan)} tuned already"
    held_out = dict.fromkeys(str(instance) for planned in plan for instance in planned.held_out)
    if held_out:
        count = sum(bool(planned.held_out) for planned in plan)
        of = "" if count == len(plan) else f" of {count} of the tasks"
        text += f"\nwinners{of} must not lose on {', '.join(held_out)} either, which are held out"
    return text
