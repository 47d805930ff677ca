"""Tune any tasks in one process, by the same loop as the command line.

    tune_tasks.py [--strategy NAME] [--space NAME] TASK ...

Prints a JSON object for each task, in their order: config, trials, failures. It needs a GPU.
"""

from __future__ import annotations

import argparse
import json

from task_words import from_word

from lora_autotune.evaluators.worker import start_fork_server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--space", default="wide")
    parser.add_argument("tasks", nargs="+", type=from_word, metavar="TASK", help="as task_words")
    arguments = parser.parse_args()
    start_fork_server()  # it imports torch while this process does
    from lora_autotune.evaluators.cuda import CudaMachine
    from lora_autotune.space import named_space
    from lora_autotune.task import default_workload
    from lora_autotune.tuner import Job, tune_all

    with CudaMachine() as machine:
        jobs = (
            Job(
                evaluator=machine.evaluator(
                    task, default_workload(task.chunk_size), patient=arguments.strategy == "grid"
                ),
                space=named_space(arguments.space, task.kernel),
            )
            for task in arguments.tasks
        )
        found = tune_all(jobs, strategy=arguments.strategy)
        results = {result.task: result for result in found}
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
