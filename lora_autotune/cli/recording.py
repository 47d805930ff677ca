"""The command ``record``."""

from __future__ import annotations

import datetime
from typing import Any

from lora_autotune.cli.arguments import out_folder
from lora_autotune.cli.command import public_command
from lora_autotune.cli.tasks import named_work
from lora_autotune.evaluators.cuda import CudaMachine
from lora_autotune.landscape import write_landscape
from lora_autotune.recorder import record as record_landscape
from lora_autotune.space import named_space
from lora_autotune.trial import Failure, Trial


def record(arguments: Any) -> int:
    """Measure every config of every named task, one file each."""
    work = named_work(arguments)
    out = out_folder(arguments, "landscapes")
    note = {
        "command": public_command(arguments.words),
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
    }
    with CudaMachine(kernels=arguments.kernels) as machine:
        for place, (task, workload) in enumerate(work.items(), start=1):
            space = named_space(arguments.space or "wide", task.kernel)
            print(f"[{place}/{len(work)}] {task}: {len(space)} configs", flush=True)
            finished: list[Trial] = []

            def on_trial(trial: Trial, finished: list[Trial] = finished) -> None:
                finished.append(trial)
                if len(finished) % 100 == 0:
                    failed = sum(isinstance(one.outcome, Failure) for one in finished)
                    print(f"  {len(finished)} done, {failed} failed", flush=True)

            evaluator = machine.evaluator(task, workload, prune=False, patient=True)
            try:
                landscape = record_landscape(evaluator, space, note=note, on_trial=on_trial)
            finally:
                evaluator.close()
            tokens = "-".join(str(instance.tokens) for instance in workload)
            name = f"{task.kernel}-K{task.K}-R{task.R}-S{task.S}-chunk{task.chunk_size}"
            path = out / f"{name}-tokens{tokens}.jsonl.gz"
            write_landscape(path, landscape)
            config, cost = landscape.best()
            print(f"  best {1 / cost:.2f}x the default: {config}\nwrote {path}", flush=True)
    return 0
