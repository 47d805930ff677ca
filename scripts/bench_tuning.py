"""How long tuning takes, and whether its winners are worth it: ours against the published protocol.

    python scripts/bench_tuning.py [reference] [wide] [model] [--landscapes DIR] [--out FILE]

reference: the reference grid of two tasks, by `grid` and by the published protocol.
wide:      the same two tasks, by the default strategy on the wide space, and by the protocol on the
           reference grid; the best by brute force on the wide space is that of recorded
           landscapes, the shipped ones, which are an H100's, or those in DIR.
model:     all of Qwen3-0.6B at rank 64 by the default strategy on the wide space; for some of its
           tasks the reference grid as well.

Every side is a process of its own with a cold Triton cache; its wall-clock time includes starting
Python, torch and the compile pool (two seconds more where torch has no bytecode, which is said
first). Then each side's winner and the default are measured again, interleaved, by our timing.
Without a name all three are run: about five minutes on one GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table
from side_by_side import beside_default, medians
from task_words import to_word

from lora_autotune.cli.tuning import SHIPPED_LANDSCAPES
from lora_autotune.doctor.software import without_bytecode
from lora_autotune.evaluators.cuda import CudaMachine
from lora_autotune.landscape import read_landscape
from lora_autotune.model import load_model_shape, tasks_for
from lora_autotune.space import Config
from lora_autotune.task import Task, default_workload
from lora_autotune.trial import relative_cost

SCRIPTS = Path(__file__).resolve().parent
MODEL, RANK = "Qwen3-0.6B", 64
ROUNDS = 31
PAIR = (
    Task(kernel="shrink", K=1024, R=RANK, S=3, chunk_size=64),
    Task(kernel="expand", K=4096, R=RANK, S=3, chunk_size=64, slice_offsets=(0, 2048, 3072, 4096)),
)
Found = dict[Task, Config]
Winners = dict[str, Found]


class Bench:
    """Runs the sides and keeps what they took."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def side(self, name: str, *words: str) -> list[dict[str, Any]]:
        """Run a command on a cold cache; returns the JSON objects that it prints."""
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                **os.environ,
                "TRITON_CACHE_DIR": f"{folder}/cache",
                "PYTHONPATH": os.pathsep.join(
                    [str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")]
                ),
            }
            started_s = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *(word.replace("FOLDER", folder) for word in words)],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            wall_s = time.perf_counter() - started_s
        found = [json.loads(line) for line in done.stdout.splitlines()]
        self.rows.append(
            {
                "side": name,
                "wall_s": round(wall_s, 2),
                "tasks": len(found),
                "trials": sum(one["trials"] for one in found),
                "failures": sum(one["failures"] for one in found),
            }
        )
        print(f"{name}: {wall_s:.1f} s", file=sys.stderr, flush=True)
        return found

    def winners(self, name: str, tasks: Sequence[Task], script: str, *words: str) -> Found:
        """Each task's winner by a script that takes tasks, in one process."""
        described = [to_word(task) for task in tasks]
        found = self.side(name, str(SCRIPTS / script), *words, *described)
        pairs = zip(tasks, found, strict=True)
        return {task: Config.from_dict(one["config"]) for task, one in pairs}


def _of_model(name: str, bench: Bench) -> Found:
    tasks = tasks_for(load_model_shape(MODEL), rank=RANK)
    words = ["-m", "lora_autotune", "tune", "--model", MODEL, "--rank", str(RANK), "--json"]
    found = bench.side(name, *words, "--out", "FOLDER/out")
    entries = {(one["kernel"], one["K"], one["S"], one["chunk_size"]): one for one in found}
    return {
        task: Config.from_dict(entries[task.kernel, task.K, task.S, task.chunk_size]["config"])
        for task in tasks
    }


def _of_landscapes(tasks: Sequence[Task], folder: Path) -> Found:
    """The best config of each task's landscape in a folder, on the batches measured here."""
    wanted = {(task, default_workload(task.chunk_size)) for task in tasks}
    landscapes = map(read_landscape, sorted(folder.glob("*.jsonl*")))
    return {one.task: one.best()[0] for one in landscapes if (one.task, one.workload) in wanted}


def side_by_side(winners: Winners) -> list[dict[str, Any]]:
    """Every side's winner of a task and the default, interleaved: costs (1.0: the default's)."""
    tasks = dict.fromkeys(task for found in winners.values() for task in found)
    rows = []
    with CudaMachine() as machine:
        for task in tasks:
            sides = {name: found[task] for name, found in winners.items() if task in found}
            workload = default_workload(task.chunk_size)
            measured = beside_default(
                machine.evaluator(task, workload), list(sides.values()), ROUNDS
            )
            if measured is None:
                print(f"{task}: a side failed when it was measured again", file=sys.stderr)
                continue
            base, series, noise = measured
            row: dict[str, Any] = {"task": str(task), "noise": noise}
            for name, times in zip(sides, series, strict=True):
                costs = [relative_cost(t, b, workload) for t, b in zip(times, base, strict=True)]
                us = medians(times)
                row[name] = {"cost": median(costs), "us": us, "config": str(sides[name])}
            row["default_us"] = medians(base)
            rows.append(row)
    return rows


def show(bench: Bench, rows: Sequence[Mapping[str, Any]]) -> None:
    console = Console(width=150)
    table = Table("side", "wall s", "tasks", "trials", "failures")
    for row in bench.rows:
        table.add_row(*(str(row[key]) for key in ("side", "wall_s", "tasks", "trials", "failures")))
    console.print(table)
    table = Table("task", "side", "us", "cost against the default", "config", "noise")
    for row in rows:
        for name, found in row.items():
            if isinstance(found, dict):
                us = " ".join(f"{time:.1f}" for time in found["us"])
                table.add_row(
                    row["task"],
                    name,
                    us,
                    f"{found['cost']:.4f}",
                    found["config"],
                    f"{row['noise']:.4f}",
                )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("jobs", nargs="*", help="reference, wide, model; default: all")
    parser.add_argument("--landscapes", type=Path, default=SHIPPED_LANDSCAPES, metavar="DIR")
    parser.add_argument("--out", type=Path, help="everything as JSON")
    arguments = parser.parse_args()
    jobs = arguments.jobs or ["reference", "wide", "model"]
    if unknown := set(jobs) - {"reference", "wide", "model"}:
        parser.error(f"unknown job {unknown.pop()} (allowed: reference, wide, model)")
    brute_force = _of_landscapes(PAIR, arguments.landscapes) if "wide" in jobs else {}
    if "wide" in jobs and len(brute_force) < len(PAIR):
        parser.error(f"{arguments.landscapes} lacks landscapes of {' and '.join(map(str, PAIR))}")
    lacking = list(without_bytecode())
    if lacking:
        print(
            f"every start compiles {' and '.join(lacking)} from sources: see lora-autotune doctor"
        )
    bench = Bench()
    rows: list[dict[str, Any]] = []
    on_reference = ("--strategy", "grid", "--space", "reference")

    def contest(winners: Winners) -> None:
        """Measure winners side by side, and keep all so far: it took minutes."""
        try:
            rows.extend(side_by_side(winners))
        finally:
            if arguments.out is not None:
                found = {"sides": bench.rows, "winners": rows, "without_bytecode": lacking}
                arguments.out.write_text(json.dumps(found, indent=1))

    if {"reference", "wide"} & set(jobs):
        pair: Winners = {}
        protocol = "protocol, reference"
        pair[protocol] = bench.winners(protocol, PAIR, "published_protocol.py")
        if "reference" in jobs:
            grid = "grid, reference"
            pair[grid] = bench.winners(grid, PAIR, "tune_tasks.py", *on_reference)
        if "wide" in jobs:
            pair["auto, wide"] = bench.winners("auto, wide", PAIR, "tune_tasks.py")
            pair["brute force, wide"] = brute_force
        contest(pair)
    if "model" in jobs:
        model = _of_model("model", bench)
        some = list(model)[::4]
        of_grid = bench.winners("model, reference", some, "tune_tasks.py", *on_reference)
        contest({"model": {task: model[task] for task in some}, "model, reference": of_grid})
    show(bench, rows)


if __name__ == "__main__":
    main()
