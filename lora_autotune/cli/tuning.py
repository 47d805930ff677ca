"""The command ``tune``."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_autotune.cli.screen import Screen
from lora_autotune.cli.tasks import named_tasks, named_workload
from lora_autotune.errors import UsageError
from lora_autotune.evaluator import Evaluator
from lora_autotune.journal import Journal
from lora_autotune.landscape import Landscape, read_landscape
from lora_autotune.space import SearchSpace, named_space
from lora_autotune.strategy import strategy_factory
from lora_autotune.task import Task
from lora_autotune.tuner import TuningResult, write_result
from lora_autotune.tuner import tune as tune_task

SHIPPED_LANDSCAPES = Path(__file__).parent.parent / "configs" / "landscapes"

_Job = tuple[Evaluator, SearchSpace]


def tune(arguments: Any) -> int:
    """Tune every named task; write files, a journal, and a table or JSON lines."""
    strategy_factory(arguments.strategy)  # a typo costs nothing yet
    replay = arguments.replay is not None
    with contextlib.ExitStack() as stack:
        if replay:
            count, platform, jobs = _recorded_jobs(arguments)
            first = f"Replaying recorded measurements of {platform}: no GPU is used"
        else:
            count, platform, jobs = _gpu_jobs(arguments, stack)
            first = f"Tuning on {platform}"
        screen = Screen(count, json=arguments.json)
        screen.say(f"{first}. {count} tasks, strategy {arguments.strategy}.")
        journal = Journal(arguments.journal or arguments.out / "tune.journal")
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


def _gpu_jobs(arguments: Any, stack: contextlib.ExitStack) -> tuple[int, str, Iterator[_Job]]:
    tasks = named_tasks(arguments)
    from lora_autotune.evaluators.cuda import CudaMachine

    machine = stack.enter_context(CudaMachine())
    jobs = (
        (
            machine.evaluator(task, named_workload(arguments, task), seed=arguments.seed),
            named_space(arguments.space, task.kernel),
        )
        for task in tasks
    )
    return len(tasks), f"{machine.platform.device} (Triton {machine.platform.triton})", jobs


def _recorded_jobs(arguments: Any) -> tuple[int, str, Iterator[_Job]]:
    from lora_autotune.evaluators.replay import ReplayEvaluator

    files = arguments.replay or sorted(SHIPPED_LANDSCAPES.glob("*.jsonl*"))
    landscapes = [read_landscape(file) for file in files]
    if arguments.model is not None or arguments.kernel is not None:
        wanted = set(named_tasks(arguments))
        landscapes = [landscape for landscape in landscapes if landscape.task in wanted]
    if not landscapes:
        raise UsageError("no landscape was recorded for that", hint="record makes one on a GPU")
    by_task: dict[Task, Landscape] = {}
    for landscape in landscapes:
        if landscape.task in by_task:
            raise UsageError(f"two landscapes of {landscape.task}", hint="replay them one by one")
        by_task[landscape.task] = landscape
    platforms = {(one.platform.device, one.platform.triton) for one in landscapes}
    named = ", ".join(f"{device} (Triton {triton})" for device, triton in sorted(platforms))
    jobs = ((ReplayEvaluator(landscape), landscape.space) for landscape in landscapes)
    return len(landscapes), named, jobs


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
    words = [word for word in sys.argv[1:] if word != "--resume"]
    say(f"To continue: lora-autotune {shlex.join([*words, '--resume'])}")
