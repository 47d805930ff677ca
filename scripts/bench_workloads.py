"""What tuning on a server's own batches is worth, against tuning on 30,720 tokens as published.

    python scripts/bench_workloads.py [--tasks N|all] [--presets NAME..]
        [--models NAME:RANK..] [--chunk-size N] [--kernels builtin|sglang]
        [--strategy NAME] [--rounds N] [--limit SECONDS] [--configs DIR] [--out FILE]

Some tasks of each model are tuned on 30,720 tokens alone and on each preset, in one process and on
the wide space. Then both winners and the default are measured again on the preset's batches,
interleaved, and what is promised of them is checked. It needs a GPU: a few minutes on one H200, all
tasks of both models about twice as long as the usual 4. With --kernels sglang it is about the
kernels of the SGLang that is installed, with --strategy grid about the best of the whole space but
for what is clearly behind on the heaviest batches.

With --configs, DIR/PRESET and DIR/published are config trees with the winners, as `tune --out`
writes them; what is in one, tuned on the same batches with the same kernels by the same strategy,
is not tuned again. FILE has everything measured so far after each task that is measured.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clock import Clock
from side_by_side import Row, side_by_side
from tuned_tree import TunedTree
from workload_report import Report, repeatability, show

from lora_autotune.cli.command import public_command
from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators.head_start import start_early
from lora_autotune.job import Job
from lora_autotune.kernel_set import BUILTIN, KERNEL_SETS
from lora_autotune.model import load_model_shape, tasks_for
from lora_autotune.space import Config
from lora_autotune.task import CHUNK_SIZES, PREFILL, Task, Workload
from lora_autotune.tuner import tune_all
from lora_autotune.workload import PRESETS, reaching

if TYPE_CHECKING:
    from lora_autotune.evaluators.cuda import CudaMachine

MODELS = ("Qwen3-0.6B:64", "Llama-3.1-8B:16")
PUBLISHED: Workload = (PREFILL,)
ROUNDS = 21


def some(tasks: Sequence[Task], count: int | None) -> list[Task]:
    """So many tasks, the first, the last and evenly between; None: all."""
    if count is None or count >= len(tasks):
        return list(tasks)
    if count == 1:
        return [tasks[0]]
    return [tasks[round(i * (len(tasks) - 1) / (count - 1))] for i in range(count)]


def tuned(
    machine: CudaMachine,
    tasks: Sequence[Task],
    batches: Workload,
    tree: TunedTree,
    clock: Clock,
) -> dict[Task, Config]:
    """Each task's winner on some batches, from the tree or else into it.

    A call knows nothing of what one on other batches found. Nothing is begun once the time is up.
    """
    found = {task: config for task in tasks if (config := tree.find(task)) is not None}
    missing = [] if clock.is_up else [task for task in tasks if task not in found]
    evaluators = [machine.evaluator(task, batches) for task in missing]
    try:
        jobs = [Job(evaluator=evaluator) for evaluator in evaluators]
        for result in tune_all(jobs, strategy=tree.strategy):
            tree.keep(result)
            if result.selection.config is not None:
                found[result.task] = result.selection.config
            print(f"  {result.task}: {result.selection.reason}", file=sys.stderr, flush=True)
    except EvaluatorError as error:
        print(f"not all was tuned: {error}", file=sys.stderr, flush=True)
    finally:
        for evaluator in evaluators:
            evaluator.close()
    return found


def measured(
    machine: CudaMachine,
    batches: Workload,
    pairs: Mapping[Task, tuple[Config | None, Config | None]],
    rounds: int,
) -> Iterator[Row]:
    """Each task's two winners, published and on the workload, side by side with the default."""
    for task, (published, winner) in pairs.items():
        row = None
        if published is not None and winner is not None:
            evaluator = machine.evaluator(task, batches)
            try:
                row = side_by_side(evaluator, [published, winner], rounds)
            except EvaluatorError as error:
                print(f"{task}: {error}", file=sys.stderr)
            finally:
                evaluator.close()
        if row is None:
            print(f"{task}: something is missing or failed, left out", file=sys.stderr, flush=True)
        else:
            yield row


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME:RANK")
    presets = ("decode", "chat", "prefill")
    parser.add_argument("--presets", nargs="+", default=presets, choices=PRESETS)
    parser.add_argument(
        "--tasks",
        type=lambda text: None if text == "all" else int(text),
        default=4,
        metavar="N|all",
        help="of each model; default: 4",
    )
    parser.add_argument(
        "--chunk-size", type=int, default=16, choices=CHUNK_SIZES, help="the server's largest"
    )
    parser.add_argument("--kernels", default=BUILTIN, choices=KERNEL_SETS)
    parser.add_argument("--strategy", default="auto", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument(
        "--limit",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="tune nothing more after so many; what is under way then takes up to a minute",
    )
    parser.add_argument("--configs", type=Path, metavar="DIR", help="the winners, as config trees")
    parser.add_argument("--out", type=Path, metavar="FILE", help="everything as JSON")
    return parser.parse_args(arguments)


def compare(
    machine: CudaMachine,
    models: Mapping[str, Sequence[Task]],
    presets: Mapping[str, Workload],
    options: argparse.Namespace,
    command: str,
) -> int:
    """The whole comparison, model by model; the number of model and preset pairs that it lacks."""
    clock, lacking = Clock(options.limit), 0
    platform = machine.platform
    report = Report(options.out, {"command": command, "platform": asdict(platform)}, clock)

    def tree(name: str, batches: Workload) -> TunedTree:
        root = None if options.configs is None else options.configs / name
        return TunedTree(root, batches, platform, command, options.strategy)

    trees = {name: tree(name, batches) for name, batches in presets.items()}
    published_tree = tree("published", PUBLISHED)
    everything: list[tuple[Workload, list[Row]]] = []
    for model, tasks in models.items():
        published = tuned(machine, tasks, PUBLISHED, published_tree, clock)
        clock(f"{model}: {len(published)} of {len(tasks)} tasks tuned on {PREFILL}")
        for preset, batches in presets.items():
            winners = tuned(machine, tasks, batches, trees[preset], clock)
            clock(f"{model}: {len(winners)} of {len(tasks)} tasks tuned on {preset}")
            pairs = {task: (published.get(task), winners.get(task)) for task in tasks}
            rows: list[Row] = []
            everything.append((batches, rows))
            for row in measured(machine, batches, pairs, options.rounds):
                rows.append(row)
                report.put(model, preset, batches, rows)
            clock(f"{model}: {len(rows)} of {len(tasks)} tasks measured side by side on {preset}")
            lacking += len(rows) < len(tasks)
            if rows:
                show(model, preset, batches, rows)
    if apart := repeatability(everything):
        print(
            f"the default, measured twice on the same batch: {mean(apart):.1%} apart in the mean, "
            f"{max(apart):.1%} at most"
        )
    print(f"{clock.took_s:.0f} s on {platform.device} (Triton {platform.triton})")
    return lacking


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where something is lacking."""
    options = parse(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    command = public_command(words, "python scripts/bench_workloads.py")
    models: dict[str, list[Task]] = {}
    for name, _, rank in (model.partition(":") for model in options.models):
        tasks = tasks_for(load_model_shape(name), rank=int(rank), chunk_sizes=[options.chunk_size])
        models[f"{name}, rank {rank}, chunk size {options.chunk_size}"] = some(tasks, options.tasks)
    named = {name: reaching(PRESETS[name], options.chunk_size) for name in options.presets}
    presets = {name: batches for name, batches in named.items() if batches}
    start_early()  # while this process imports the rest
    from lora_autotune.evaluators.cuda import CudaMachine

    with CudaMachine(kernels=options.kernels) as machine:
        lacking = compare(machine, models, presets, options, command)
    if lacking:
        print(f"incomplete: {lacking} of {len(models) * len(presets)} tables", file=sys.stderr)
    return int(bool(lacking))


if __name__ == "__main__":
    sys.exit(main())
