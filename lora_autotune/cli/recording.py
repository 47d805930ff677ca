"""The command ``record``."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_autotune.cli.arguments import out_folder
from lora_autotune.cli.command import public_command
from lora_autotune.cli.tasks import named_work
from lora_autotune.evaluators.cuda import CudaMachine
from lora_autotune.landscape import landscape_file_name, write_landscape
from lora_autotune.recorder import record as record_landscape
from lora_autotune.space import named_space
from lora_autotune.task import Task, Workload
from lora_autotune.trial import Failure, Trial


def record(arguments: Any) -> int:
    """Measure every config of every named task, one file each."""
    work = named_work(arguments)
    with CudaMachine(kernels=arguments.kernels) as machine:
        record_all(
            machine,
            list(work.items()),
            out_folder(arguments, "landscapes"),
            space_name=arguments.space or "wide",
            command=public_command(arguments.words),
        )
    return 0


def record_all(
    machine: CudaMachine,
    work: Sequence[tuple[Task, Workload]],
    out: Path,
    *,
    space_name: str,
    command: str,
) -> None:
    """Write a landscape of each task on some batches into a folder, as soon as it is measured.

    Raises:
        EvaluatorError: the machine cannot evaluate anything.
        LandscapeError: a file cannot be written.
    """
    today = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    for place, (task, workload) in enumerate(work, start=1):
        space = named_space(space_name, task.kernel)
        batches = " ".join(map(str, workload))
        print(f"[{place}/{len(work)}] {task} on {batches}: {len(space)} configs", flush=True)
        finished: list[Trial] = []

        def on_trial(trial: Trial, finished: list[Trial] = finished) -> None:
            finished.append(trial)
            if len(finished) % 100 == 0:
                failed = sum(isinstance(one.outcome, Failure) for one in finished)
                print(f"  {len(finished)} done, {failed} failed", flush=True)

        note = {"command": command, "date": today}
        evaluator = machine.evaluator(task, workload, prune=False, patient=True)
        try:
            landscape = record_landscape(evaluator, space, note=note, on_trial=on_trial)
        finally:
            evaluator.close()
        path = out / landscape_file_name(task, workload)
        write_landscape(path, landscape)
        config, cost = landscape.best()
        print(f"  best {1 / cost:.2f}x the default: {config}\nwrote {path}", flush=True)
