"""How the published tuner measures, around our kernels: what bench_tuning.py compares with.

    published_protocol.py TASK ...

One configuration of the reference grid after the other: compile it in this process, launch it once
and ten times more, then fifty times between two events with a device-wide synchronisation after
each launch. One adapter of full rank, 30,720 tokens in float16, a tight grid, operands that stay
where they are, and the output's zero-fill within what is timed. The lowest mean wins. Prints a
JSON object for each task, in their order: config, trials, failures.

It needs a GPU. Give it a fresh TRITON_CACHE_DIR, or it does not compile anything.
"""

from __future__ import annotations

import argparse
import json

import torch
from task_words import from_word
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from lora_autotune.evaluators.plan import empty_operands, schedule_of, task_launch, task_offsets
from lora_autotune.kernels.batch import make_batch
from lora_autotune.kernels.target import target
from lora_autotune.space import Config, named_space
from lora_autotune.task import PREFILL, Task

WARM_UP, TIMED = 10, 50


def mean_time_us(task: Task, config: Config) -> float:
    """Mean microseconds between the events of TIMED launches."""
    batch = make_batch(
        torch.zeros(PREFILL.tokens, dtype=torch.int64),
        ranks=[task.R],
        scalings=[0.5],
        chunk_size=task.chunk_size,
        device="cuda",
    )
    operands = empty_operands(task, batch, device="cuda")
    for tensor in (operands.x, operands.weights):
        tensor.normal_()
    options = config.as_dict()
    schedule = schedule_of(task, batch, options, target(operands.x.device))
    launch = task_launch(
        task, operands, batch, task_offsets(task, device="cuda"), options, schedule
    )
    total_ms = 0.0
    for turn in range(1 + WARM_UP + TIMED):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        operands.output.zero_()
        launch()
        end.record()
        torch.cuda.synchronize()
        if turn > WARM_UP:
            total_ms += start.elapsed_time(end)
    return total_ms * 1e3 / TIMED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tasks", nargs="+", type=from_word, metavar="TASK", help="as task_words")
    for task in parser.parse_args().tasks:
        times_us, failures = {}, 0
        for config in named_space("reference", task.kernel):
            try:
                times_us[config] = mean_time_us(task, config)
            except (CompilationError, OutOfResources, PTXASError):
                failures += 1
        best = min(times_us, key=times_us.__getitem__)
        found = {"config": best.as_dict(), "trials": len(times_us) + failures}
        print(json.dumps({**found, "failures": failures}), flush=True)


if __name__ == "__main__":
    main()
