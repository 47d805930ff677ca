"""The command ``tune``."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_autotune.cli.screen import Screen
from lora_autotune.cli.tasks import named_work
from lora_autotune.errors import UsageError
from lora_autotune.evaluator import Evaluator
from lora_autotune.journal import Journal
from lora_autotune.landscape import Landscape, read_landscape
from lora_autotune.space import SearchSpace, named_space
from lora_autotune.strategy import strategy_factory
from lora_autotune.task import Task
from lora_autotune.tuner import TuningResult, write_result
from lora_autotune.tuner import tune as tune_task

COMMAND_VARIABLE = "LORA_AUTOTUNE_COMMAND"
"""Set by a script that stands for ``lora-autotune tune``, so that the user is told that name."""

SHIPPED_LANDSCAPES = Path(__file__).parent.parent / "configs" / "landscapes"

_Jobs = tuple[Collection[Task], str, Iterator[tuple[Evaluator, SearchSpace]]]
"""The tasks, what they are measured on, and an evaluator and a space for each in turn."""


def tune(arguments: Any) -> int:
    """Tune every named task; write files, a journal, and a table or JSON lines."""
    strategy_factory(arguments.strategy)  # a typo costs nothing yet
    replay = arguments.replay is not None
    with contextlib.ExitStack() as stack:
        if replay:
            tasks, platform, jobs = _recorded_jobs(arguments)
            first = f"Replaying recorded measurements of {platform}: no GPU is used"
        else:
            tasks, platform, jobs = _gpu_jobs(arguments, stack)
            first = f"Tuning on {platform}"
        screen = Screen(len(tasks), json=arguments.json)
        screen.say(f"{first}. {len(tasks)} tasks, strategy {arguments.strategy}.")
        journal = Journal(arguments.journal or arguments.out / "tune.journal")
        if arguments.resume:
            journal.check_resumable(tasks)
        results: list[TuningResult] = []
        try:
            with screen:
                for evaluator, space in jobs:
                    results.append(_tune_one(arguments, evaluator, space, journal, screen))
        except KeyboardInterrupt:
            _say_how_to_resume(arguments, journal, results)
            return 130
    files = [] if arguments.json else _written(results, arguments.out)
    if not arguments.json:
        screen.table(results, files, arguments.out)
    return 0 if all(result.selection.config is not None for result in results) else 1


def _tune_one(
    arguments: Any, evaluator: Evaluator, space: SearchSpace, journal: Journal, screen: Screen
) -> TuningResult:
    screen.begin(evaluator.task)
    record = journal.open(
        evaluator.task,
        evaluator.workload,
        evaluator.platform,
        space=space,
        replayed=evaluator.replayed,
        resume=arguments.resume,
    )
    try:
        result = tune_task(
            evaluator.task,
            evaluator=evaluator,
            space=space,
            strategy=arguments.strategy,
            trials=arguments.trials,
            timeout_s=arguments.timeout,
            seed=arguments.seed,
            record=record,
            on_progress=screen.progress,
        )
    finally:
        evaluator.close()
    screen.finish(result)
    if arguments.json:
        print(json.dumps(_as_json(result, write_result(result, arguments.out))), flush=True)
    return result


def _gpu_jobs(arguments: Any, stack: contextlib.ExitStack) -> _Jobs:
    work = named_work(arguments)
    from lora_autotune.evaluators.cuda import CudaMachine

    machine = stack.enter_context(CudaMachine())
    jobs = (
        (
            machine.evaluator(task, workload, seed=arguments.seed),
            named_space(arguments.space or "wide", task.kernel),
        )
        for task, workload in work.items()
    )
    return list(work), f"{machine.platform.device} (Triton {machine.platform.triton})", jobs


def _recorded_jobs(arguments: Any) -> _Jobs:
    from lora_autotune.evaluators.replay import ReplayEvaluator

    files = arguments.replay or sorted(SHIPPED_LANDSCAPES.glob("*.jsonl*"))
    landscapes = _wanted(arguments, [read_landscape(file) for file in files])
    if not landscapes:
        raise UsageError("no landscape was recorded for that", hint="record makes one on a GPU")
    by_task: dict[Task, Landscape] = {}
    for landscape in landscapes:
        if landscape.task in by_task:
            raise UsageError(f"two landscapes of {landscape.task}", hint="replay them one by one")
        by_task[landscape.task] = landscape
    platforms = {(one.platform.device, one.platform.triton) for one in landscapes}
    named = ", ".join(f"{device} (Triton {triton})" for device, triton in sorted(platforms))
    jobs = (
        (
            ReplayEvaluator(landscape),
            named_space(arguments.space, task.kernel) if arguments.space else landscape.space,
        )
        for task, landscape in by_task.items()
    )
    return list(by_task), named, jobs


def _wanted(arguments: Any, landscapes: Sequence[Landscape]) -> list[Landscape]:
    """Those that the arguments mean: the tasks of --model or --kernel, else every one that fits."""
    tasks = None
    if arguments.model is not None or arguments.kernel is not None:
        tasks = named_work(arguments)
    return [
        landscape
        for landscape in landscapes
        if (tasks is None or landscape.task in tasks)
        and arguments.rank in (None, landscape.task.R)
        and arguments.dtype in (None, landscape.task.dtype)
        and landscape.task.chunk_size in (arguments.chunk_sizes or [landscape.task.chunk_size])
        and tuple(arguments.tokens or landscape.workload) == landscape.workload
    ]


def _written(results: Sequence[TuningResult], out: Path) -> list[Path]:
    files = dict.fromkeys(write_result(result, out) for result in results)
    return [file for file in files if file is not None]


def _as_json(result: TuningResult, file: Path | None) -> dict[str, Any]:
    task, selection = result.task, result.selection
    pairs = zip(result.workload, selection.times_us, strict=False)
    return {
        "kernel": task.kernel,
        "K": task.K,
        "R": task.R,
        "S": task.S,
        "chunk_size": task.chunk_size,
        "config": None if selection.config is None else selection.config.as_dict(),
        "time_us": result.time_us,
        "default_us": result.default_us,
        "trials": result.trials,
        "failures": sum(result.failures.values()),
        "replayed": result.replayed,
        "file": None if file is None else str(file),
        "dtype": task.dtype,
        "speedup": result.speedup,
        "reason": selection.reason,
        "instances": [
            {"tokens": i.tokens, "adapters": i.adapters, "weight": i.weight, "time_us": us}
            for i, us in pairs
        ],
    }


def _say_how_to_resume(arguments: Any, journal: Journal, results: Sequence[TuningResult]) -> None:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    say(f"Interrupted. What was measured is in {journal.path}.")
    if arguments.write_partial:
        for file in _written(results, arguments.out):
            say(f"wrote {file}")
    elif results and not arguments.json:
        say(f"{len(results)} finished tasks were not written (--write-partial writes them).")
    script = os.environ.get(COMMAND_VARIABLE)
    command = shlex.quote(script) if script else "lora-autotune tune"
    words = [word for word in arguments.words[1:] if word != "--resume"]
    say(f"To continue: {command} {shlex.join([*words, '--resume'])}")
