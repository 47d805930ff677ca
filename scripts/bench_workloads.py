"""What tuning on a server's own batches is worth, against tuning on 30,720 tokens as published.

    python scripts/bench_workloads.py [--tasks N|all] [--presets NAME..]
        [--models NAME:RANK..] [--chunk-size N] [--rounds N] [--out FILE]

Some tasks of each model are tuned on 30,720 tokens alone and on each preset, in one process and on
the wide space. Then both winners and the default are measured again on the preset's batches,
interleaved, and what is promised of them is checked. It needs a GPU: about two minutes on one H200.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from lora_autotune.evaluator import Evaluator
from lora_autotune.evaluators.worker import start_fork_server
from lora_autotune.model import load_model_shape, tasks_for
from lora_autotune.selection import paired_default
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import CHUNK_SIZES, PREFILL, Task, Workload
from lora_autotune.trial import Failure, relative_cost
from lora_autotune.tuner import Job, tune_all
from lora_autotune.workload import PRESETS, reaching

if TYPE_CHECKING:
    from lora_autotune.evaluators.cuda import CudaMachine

MODELS = ("Qwen3-0.6B:64", "Llama-3.1-8B:16")
PUBLISHED: Workload = (PREFILL,)
ROUNDS = 21

MOST_LOST, LEAST_DECODE_SPEEDUP, MOST_BEHIND_AT_PREFILL = 0.02, 1.3, 0.03
"""Tuned on a workload: what it may lose on the default on any batch, how much faster it is over all
batches of "decode", and what it may lose on the published way over those of "prefill"."""

Times = tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A config of one task, measured beside the default.

    Attributes:
        us: median over the rounds, for each batch.
        ratios: the same of its time over the default's in the same round.
    """

    config: str
    us: Times
    ratios: Times


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One task on the batches of one preset; ``noise`` as in :func:`paired_default`."""

    task: str
    default_us: Times
    published: Side
    workload: Side
    noise: float


def side_by_side(evaluator: Evaluator, configs: Sequence[Config], rounds: int) -> Row | None:
    """Two configs and the default, interleaved; None where one of them fails."""
    default = DEFAULT_CONFIGS[evaluator.task.kernel]
    results = evaluator.remeasure([default, *configs, default], rounds=rounds)
    if any(isinstance(one, Failure) for times in results for one in times):
        return None
    first, *series, last = results
    base, noise = paired_default(first, last, evaluator.workload)
    published, workload = (
        Side(config=str(config), us=medians(times), ratios=medians(relative(times, base)))
        for config, times in zip(configs, series, strict=True)
    )
    return Row(
        task=str(evaluator.task),
        default_us=medians(base),
        published=published,
        workload=workload,
        noise=noise,
    )


def relative(times: Sequence[Times], base: Sequence[Times]) -> list[Times]:
    """The times of each round over the default's of that round."""
    pairs = zip(times, base, strict=True)
    return [tuple(own / other for own, other in zip(*pair, strict=True)) for pair in pairs]


def medians(rounds: Sequence[Times]) -> Times:
    """Of each batch, over the rounds."""
    return tuple(median(column) for column in zip(*rounds, strict=True))


def totals(rows: Sequence[Row]) -> tuple[Times, Times, Times]:
    """Microseconds of all tasks on each batch: by default, published, and on the workload."""

    def total(series: Sequence[Times]) -> Times:
        return tuple(map(sum, zip(*series, strict=True)))

    return (
        total([row.default_us for row in rows]),
        total([row.published.us for row in rows]),
        total([row.workload.us for row in rows]),
    )


def costs(rows: Sequence[Row], batches: Workload) -> tuple[float, float]:
    """What all tasks cost over all batches (1.0: by default): published, and on the workload."""
    default, published, workload = totals(rows)
    return relative_cost(published, default, batches), relative_cost(workload, default, batches)


def promises(preset: str, rows: Sequence[Row], batches: Workload) -> dict[str, tuple[float, bool]]:
    """What is promised of a preset -> what was measured, and whether that keeps it."""
    worst = max(ratio for row in rows for ratio in row.workload.ratios)
    kept = {f"worst batch, over the default's <= {1 + MOST_LOST}": (worst, worst <= 1 + MOST_LOST)}
    published, workload = costs(rows, batches)
    if preset == "decode":
        speedup = 1 / workload
        text = f"speed over all batches, over the default's >= {LEAST_DECODE_SPEEDUP}"
        kept[text] = speedup, speedup >= LEAST_DECODE_SPEEDUP
    if preset == "prefill":
        behind = workload / published
        text = f"time over all batches, over the published way's <= {1 + MOST_BEHIND_AT_PREFILL}"
        kept[text] = behind, behind <= 1 + MOST_BEHIND_AT_PREFILL
    return kept


def some(tasks: Sequence[Task], count: int | None) -> list[Task]:
    """So many tasks, the first, the last and evenly between; None: all."""
    if count is None or count >= len(tasks):
        return list(tasks)
    if count == 1:
        return [tasks[0]]
    return [tasks[round(i * (len(tasks) - 1) / (count - 1))] for i in range(count)]


def tuned(machine: CudaMachine, tasks: Sequence[Task], batches: Workload) -> dict[Task, Config]:
    """Each task's winner on some batches. A call knows nothing of what another found."""
    jobs = (Job(evaluator=machine.evaluator(task, batches)) for task in tasks)
    found = {result.task: result.selection.config for result in tune_all(jobs)}
    return {task: config for task, config in found.items() if config is not None}


def measure(
    machine: CudaMachine, tasks: Sequence[Task], presets: Mapping[str, Workload], rounds: int
) -> dict[str, dict[Task, Row]]:
    """Preset -> task -> what was measured side by side."""
    say = Clock()
    published = tuned(machine, tasks, PUBLISHED)
    say(f"tuned {len(published)} tasks on {PREFILL}")
    measured: dict[str, dict[Task, Row]] = {}
    for preset, batches in presets.items():
        winners = tuned(machine, tasks, batches)
        say(f"tuned {len(winners)} tasks on {preset}")
        measured[preset] = {}
        for task in tasks:
            if task in published and task in winners:
                evaluator = machine.evaluator(task, batches)
                row = side_by_side(evaluator, [published[task], winners[task]], rounds)
                if row is not None:
                    measured[preset][task] = row
                    continue
            print(f"{task}, {preset}: something failed, left out", file=sys.stderr)
        say(f"measured {len(measured[preset])} tasks side by side on {preset}")
    return measured


class Clock:
    """Says on stderr what is done, and how long that took."""

    def __init__(self) -> None:
        self._since_s = time.perf_counter()

    def __call__(self, text: str) -> None:
        now_s = time.perf_counter()
        print(f"{text}: {now_s - self._since_s:.1f} s", file=sys.stderr, flush=True)
        self._since_s = now_s


def table(title: str, rows: Sequence[Row], batches: Workload) -> Table:
    """Every task and all together, batch by batch."""
    heads = ("task", "batch", "default us", "30,720 only us", "ratio", "workload us", "ratio")
    shown = Table(title=title, title_justify="left")
    for i, head in enumerate(heads):
        shown.add_column(head, justify="left" if i < 2 else "right")

    def add(name: str, batch: str, default: float, *sides: tuple[float, float]) -> None:
        cells = [cell for us, ratio in sides for cell in (f"{us:.2f}", f"{ratio:.3f}")]
        shown.add_row(name, batch, f"{default:.2f}", *cells)

    for row in rows:
        for i, batch in enumerate(batches):
            sides = [(side.us[i], side.ratios[i]) for side in (row.published, row.workload)]
            add("" if i else row.task, str(batch), row.default_us[i], *sides)
        shown.add_section()
    default, *others = totals(rows)
    for i, batch in enumerate(batches):
        sums = [(us[i], us[i] / default[i]) for us in others]
        add("" if i else "all tasks", str(batch), default[i], *sums)
    published, workload = costs(rows, batches)
    shown.add_row("", "all, weighted", "", "", f"{published:.3f}", "", f"{workload:.3f}")
    return shown


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
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    parser.add_argument("--out", type=Path, help="everything as JSON")
    return parser.parse_args(arguments)


def report(model: str, preset: str, batches: Workload, rows: Sequence[Row]) -> dict[str, Any]:
    """Print the table of one model and preset and what became of the promises; all for JSON."""
    console = Console(width=140)
    console.print(table(f"{model}, {preset}", rows, batches))
    kept = promises(preset, rows, batches)
    for text, (value, holds) in kept.items():
        console.print(f"{'kept' if holds else 'MISSED'}: {text}: {value:.3f}")
    published, workload = costs(rows, batches)
    return {
        "model": model,
        "preset": preset,
        "batches": [batch.as_dict() for batch in batches],
        "tasks": [asdict(row) for row in rows],
        "costs": {"published": published, "workload": workload},
        "promises": {
            text: {"value": value, "kept": holds} for text, (value, holds) in kept.items()
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The whole comparison."""
    options = parse(arguments)
    started_s = time.perf_counter()
    models: dict[str, list[Task]] = {}
    for name, _, rank in (model.partition(":") for model in options.models):
        tasks = tasks_for(load_model_shape(name), rank=int(rank), chunk_sizes=[options.chunk_size])
        models[f"{name}, rank {rank}, chunk size {options.chunk_size}"] = some(tasks, options.tasks)
    named = {name: reaching(PRESETS[name], options.chunk_size) for name in options.presets}
    presets = {name: batches for name, batches in named.items() if batches}
    start_fork_server()  # it imports torch while this process does
    from lora_autotune.evaluators.cuda import CudaMachine

    with CudaMachine() as machine:
        platform = asdict(machine.platform)
        every = list(dict.fromkeys(task for tasks in models.values() for task in tasks))
        measured = measure(machine, every, presets, options.rounds)
    wall_s = time.perf_counter() - started_s
    results = []
    for model, tasks in models.items():
        for preset, batches in presets.items():
            found = measured[preset]
            if rows := [found[task] for task in tasks if task in found]:
                results.append(report(model, preset, batches, rows))
    print(f"{wall_s:.0f} s on {platform['device']} (Triton {platform['triton']})")
    if options.out is not None:
        content = {"platform": platform, "wall_s": round(wall_s, 1), "results": results}
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
