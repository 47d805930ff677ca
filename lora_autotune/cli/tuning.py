"""The command ``tune``."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_autotune.cli.arguments import out_folder
from lora_autotune.cli.command import public_command
from lora_autotune.cli.planning import (
    asked_space,
    is_tuned,
    make_plan,
    searched_space,
    show_plan,
)
from lora_autotune.cli.screen import Screen
from lora_autotune.cli.tasks import (
    named_batches,
    named_work,
    names_batches,
    refuse_shared_entries,
    says_what_is_served,
)
from lora_autotune.errors import UsageError
from lora_autotune.evaluator import Platform
from lora_autotune.job import Job
from lora_autotune.journal import Journal
from lora_autotune.kernel_set import BUILTIN, has_one_binary, set_of
from lora_autotune.kernels_version import builtin_kernels_version
from lora_autotune.landscape import Landscape, read_landscape
from lora_autotune.provenance import refuse_other_kernels
from lora_autotune.result import TuningResult, task_config_path, write_result
from lora_autotune.strategy import strategy_factory
from lora_autotune.task import Task, default_workload
from lora_autotune.tuner import AT_ONCE, tune_all

COMMAND_VARIABLE = "LORA_AUTOTUNE_COMMAND"
"""Set by a script that stands for ``lora-autotune tune``, so that the user is told that name."""

SHIPPED_LANDSCAPES = Path(__file__).parent.parent / "configs" / "landscapes"

_Benches = tuple[Collection[Task], str, Iterator[Job]]
"""The tasks, what they are measured on, and a job for each in turn, as yet without a record."""


def tune(arguments: Any) -> int:
    """Tune every named task; write files, a journal, and a table or JSON lines."""
    strategy_factory(arguments.strategy)  # a typo costs nothing yet
    arguments.out = out_folder(arguments, "lora_configs")
    if arguments.dry_run:
        landscapes = None if arguments.replay is None else _landscapes(arguments)
        return show_plan(make_plan(arguments, landscapes), json=arguments.json)
    for option in ("device", "triton"):
        if getattr(arguments, option) is not None:
            raise UsageError(f"--{option} belongs to --dry-run")
    replay = arguments.replay is not None
    with contextlib.ExitStack() as stack:
        if replay:
            tasks, platform, benches = _recorded_benches(arguments)
            first = f"Replaying recorded measurements of {platform}: no GPU is used"
        else:
            tasks, platform, benches = _gpu_benches(arguments, stack)
            first = f"Tuning on {platform}"
        if not tasks:
            print(f"Nothing is missing in {arguments.out}.", file=sys.stderr)
            return 0
        screen = Screen(len(tasks), json=arguments.json)
        screen.say(f"{first}. {len(tasks)} tasks, strategy {arguments.strategy}.")
        journal = stack.enter_context(_journal(arguments, screen))
        if arguments.resume:
            journal.check_resumable(tasks)
        results: list[TuningResult] = []
        try:
            with screen:
                for result in tune_all(
                    _jobs(arguments, benches, journal),
                    at_once=1 if replay else AT_ONCE,  # a recording keeps nothing waiting
                    strategy=arguments.strategy,
                    trials=arguments.trials,
                    timeout_s=arguments.timeout,
                    seed=arguments.seed,
                    max_regression=arguments.max_regression,
                    on_progress=screen.progress,
                ):
                    results.append(result)
                    screen.finish(result)
        except KeyboardInterrupt:
            _report_interrupted(arguments, journal, results)
            return 130
    places = {task: place for place, task in enumerate(tasks)}
    results.sort(key=lambda result: places[result.task])
    files = _write(results, arguments)
    if arguments.json:
        _print_json(results, files)
    else:
        screen.table(results, _distinct(files), arguments.out)
    return 0 if all(result.selection.config is not None for result in results) else 1


def _journal(arguments: Any, screen: Screen) -> Journal:
    """The run's journal; what an earlier run left in the default place is kept aside."""
    if arguments.journal is not None:
        return Journal(arguments.journal)
    journal = Journal(_usual_journal(arguments), fresh=not arguments.resume)
    if journal.aside is not None:
        words = shlex.join(["--resume", "--journal", str(journal.aside)])
        screen.say(f"The record of an earlier run is kept as {journal.aside} ({words} goes on).")
    return journal


def _usual_journal(arguments: Any) -> Path:
    return Path(arguments.out / "tune.journal")


def _jobs(arguments: Any, benches: Iterator[Job], journal: Journal) -> Iterator[Job]:
    """Each with its record; all are opened before anything is measured."""
    for job in benches:
        evaluator = job.evaluator
        record = journal.open(
            evaluator.task,
            evaluator.workload,
            evaluator.platform,
            space=job.problem.space,
            replayed=evaluator.replayed,
            resume=arguments.resume,
        )
        yield replace(job, record=record)


def _gpu_benches(arguments: Any, stack: contextlib.ExitStack) -> _Benches:
    work = named_work(arguments)
    from lora_autotune.evaluators.head_start import start_early

    start_early()  # while this process imports the rest
    from lora_autotune.evaluators.cuda import CudaMachine

    everything = _wants_everything(arguments)
    named = says_what_is_served(arguments)
    machine = stack.enter_context(CudaMachine(kernels=arguments.kernels))
    for task in work:
        file = task_config_path(task, machine.platform, arguments.out)
        refuse_other_kernels(file, machine.platform.kernels)
    if arguments.only_missing:
        work = {t: w for t, w in work.items() if not is_tuned(t, machine.platform, arguments.out)}
    afresh = arguments.journal is None and not arguments.resume
    if work and afresh and _usual_journal(arguments).exists():
        machine.wait_until_open()  # a run that can measure nothing leaves that record in its place
    benches = (
        Job(
            evaluator=machine.evaluator(
                task, workload, prune=not everything, patient=everything, seed=arguments.seed
            ),
            held_out=None if named else machine.held_out(task, workload, seed=arguments.seed),
            space=asked_space(arguments, task),
        )
        for task, workload in work.items()
    )
    return list(work), _named(machine.platform), benches


def _recorded_benches(arguments: Any) -> _Benches:
    from lora_autotune.evaluators.replay import ReplayEvaluator

    landscapes = _landscapes(arguments)
    named = ", ".join(sorted({_named(one.platform) for one in landscapes}))
    if arguments.only_missing:
        landscapes = [o for o in landscapes if not is_tuned(o.task, o.platform, arguments.out)]
    prune = not _wants_everything(arguments)
    benches = (
        Job(evaluator=ReplayEvaluator(one, prune=prune), space=searched_space(arguments, one))
        for one in landscapes
    )
    return [one.task for one in landscapes], named, benches


def _wants_everything(arguments: Any) -> bool:
    """Whether every candidate is measured in full: only grid does so, and not with --prune."""
    return bool(arguments.strategy == "grid" and not arguments.prune)


def _named(platform: Platform) -> str:
    kernels = "" if platform.kernels == BUILTIN else f", kernels {platform.kernels}"
    return f"{platform.device} (Triton {platform.triton}{kernels})"


def _landscapes(arguments: Any) -> list[Landscape]:
    """What --replay means, one of each task."""
    files = arguments.replay or sorted(SHIPPED_LANDSCAPES.glob("*.jsonl*"))
    landscapes = _wanted(arguments, [read_landscape(file) for file in files])
    if not arguments.replay:
        landscapes = _one_of_each_task(landscapes)
    if not landscapes:
        raise UsageError("no landscape was recorded for that", hint="record makes one on a GPU")
    for task, count in Counter(landscape.task for landscape in landscapes).items():
        if count > 1:
            raise UsageError(f"two landscapes of {task}", hint="replay them one by one")
    for one in landscapes:
        if set_of(one.platform.kernels) != arguments.kernels:
            raise UsageError(
                f"{one.task} was recorded on the kernels {one.platform.kernels}",
                hint=f"those of --kernels {arguments.kernels} are asked for",
            )
    for platform in {landscape.platform for landscape in landscapes}:
        refuse_shared_entries(one.task for one in landscapes if one.platform == platform)
    return landscapes


def _one_of_each_task(landscapes: Sequence[Landscape]) -> list[Landscape]:
    """The one of each task, on each platform, that is most like a run here.

    That is one on the batches that tuning takes by default, where there is such; of those one of
    the kernels as they are now; of those the first, by name.
    """

    def likeness(one: Landscape) -> tuple[bool, bool]:
        between = has_one_binary(one.platform.kernels)
        is_usual = one.workload == default_workload(one.task.chunk_size, between=between)
        return is_usual, one.platform.kernels_version == builtin_kernels_version()

    chosen: dict[tuple[Task, Platform], Landscape] = {}
    for one in landscapes:
        best = chosen.setdefault((one.task, one.platform), one)
        if likeness(one) > likeness(best):
            chosen[one.task, one.platform] = one
    return list(chosen.values())


def _wanted(arguments: Any, landscapes: Sequence[Landscape]) -> list[Landscape]:
    """Those that the arguments mean: the tasks of --model or --kernel, else every one that fits."""
    tasks = None
    if arguments.model is not None or arguments.kernel is not None:
        tasks = named_work(arguments)
    batches = named_batches(arguments) if names_batches(arguments) else None
    return [
        landscape
        for landscape in landscapes
        if (tasks is None or landscape.task in tasks)
        and landscape.task.R in (arguments.rank or [landscape.task.R])
        and arguments.dtype in (None, landscape.task.dtype)
        and landscape.task.chunk_size in (arguments.chunk_sizes or [landscape.task.chunk_size])
        and (batches is None or batches.get(landscape.task.chunk_size) == landscape.workload)
    ]


def _write(results: Sequence[TuningResult], arguments: Any) -> list[Path | None]:
    """The config file of each result; None where nothing runs."""
    command = public_command(arguments.words)
    return [write_result(result, arguments.out, command=command) for result in results]


def _distinct(files: Sequence[Path | None]) -> list[Path]:
    return [file for file in dict.fromkeys(files) if file is not None]


def _print_json(results: Sequence[TuningResult], files: Sequence[Path | None]) -> None:
    for result, file in zip(results, files, strict=True):
        print(json.dumps(_as_json(result, file)), flush=True)


def _as_json(result: TuningResult, file: Path | None) -> dict[str, Any]:
    task, selection = result.task, result.selection
    pairs = zip(result.workload, selection.times_us, strict=False)
    return {
        **task.as_dict(),
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
        "held_out": [instance.as_dict() for instance in selection.held_out],
        "instances": [{**instance.as_dict(), "time_us": us} for instance, us in pairs],
    }


def _report_interrupted(arguments: Any, journal: Journal, results: Sequence[TuningResult]) -> None:
    """What Ctrl-C leaves behind, and how to go on; files only if they are asked for."""

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    say(f"Interrupted. What was measured is in {journal.path}.")
    files: Sequence[Path | None] = [None] * len(results)
    if arguments.write_partial:
        files = _write(results, arguments)
        for file in _distinct(files):
            say(f"wrote {file}")
    elif results:
        say(f"{len(results)} finished tasks were not written (--write-partial writes them).")
    if arguments.json:
        _print_json(results, files)
    say(f"To continue: {_command_to_resume(arguments.words)}")


def _command_to_resume(words: Sequence[str]) -> str:
    script = os.environ.get(COMMAND_VARIABLE)
    command = shlex.quote(script) if script else "lora-autotune tune"
    return f"{command} {shlex.join([*(w for w in words[1:] if w != '--resume'), '--resume'])}"
