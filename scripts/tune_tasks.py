"""Tune any tasks in one process, by the same loop as the command line.

    tune_tasks.py [--strategy NAME] [--space NAME] TASK ...

Prints a JSON object for each task, in their order: config, trials, failures; and to stderr when,
in seconds since the process was started, each stage was reached. It needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from task_words import from_word

from lora_autotune.evaluators.head_start import start_early


def age_s() -> float:
    """Seconds since this process was started: field 22 of proc_pid_stat(5)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--space", default="wide")
    parser.add_argument("tasks", nargs="+", type=from_word, metavar="TASK", help="as task_words")
    arguments = parser.parse_args()
    start_early()  # while this process imports the rest
    from lora_autotune.evaluators.cuda import CudaMachine
    from lora_autotune.job import Job
    from lora_autotune.result import Progress
    from lora_autotune.space import named_space
    from lora_autotune.task import default_workload
    from lora_autotune.tuner import tune_all

    reached = {"imports": age_s()}

    def watch(progress: Progress) -> None:
        if progress.phase == "search":
            reached.setdefault("machine", age_s())
            if progress.best_cost is not None:
                reached.setdefault("first measured", age_s())
            reached["last trial"] = age_s()

    exhaustive = arguments.strategy == "grid"
    work = {task: default_workload(task.chunk_size) for task in arguments.tasks}
    with CudaMachine() as machine:
        jobs = (
            Job(
                evaluator=machine.evaluator(
                    task, workload, prune=not exhaustive, patient=exhaustive
                ),
                held_out=machine.held_out(task, workload),
                space=named_space(arguments.space, task.kernel),
            )
            for task, workload in work.items()
        )
        found = tune_all(jobs, strategy=arguments.strategy, on_progress=watch)
        results = {result.task: result for result in found}
        reached["finalists"] = age_s()
    reached["closed"] = age_s()
    stages = ", ".join(f"{stage} {second:.2f}" for stage, second in reached.items())
    print(f"seconds until: {stages}", file=sys.stderr)
    for task in arguments.tasks:
        result = results[task]
        config = result.selection.config
        print(
            json.dumps(
                {
                    "config": config and config.as_dict(),
                    "trials": result.trials,
                    "failures": sum(result.failures.values()),
                }
            )
        )


if __name__ == "__main__":
    main()
