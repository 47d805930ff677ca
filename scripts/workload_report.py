"""What bench_workloads found: sums over tasks, what is promised of them, a table, and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clock import Clock
from rich.console import Console
from rich.table import Table
from side_by_side import Row, Times

from lora_autotune.task import Workload
from lora_autotune.trial import relative_cost

MOST_LOST, LEAST_DECODE_SPEEDUP, MOST_BEHIND_AT_PREFILL = 0.02, 1.3, 0.03
"""Tuned on a workload: what it may lose on the default on any batch, how much faster it is over all
batches of "decode", and what it may lose on the published way over those of "prefill"."""


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


def repeatability(measured: Iterable[tuple[Workload, Sequence[Row]]]) -> list[float]:
    """How far apart the default's times on a batch of a task are, measured for several presets.

    The largest over the smallest, less 1, of every batch that more than one preset has: what a
    promise about one batch can be told from.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for batches, rows in measured:
        for row in rows:
            for batch, us in zip(batches, row.default_us, strict=True):
                found.setdefault((row.task, str(batch)), []).append(us)
    return [max(times) / min(times) - 1 for times in found.values() if len(times) > 1]


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


def show(model: str, preset: str, batches: Workload, rows: Sequence[Row]) -> None:
    """Print the table of one model and preset, and what became of the promises."""
    console = Console(width=140)
    console.print(table(f"{model}, {preset}", rows, batches))
    for text, (value, holds) in promises(preset, rows, batches).items():
        console.print(f"{'kept' if holds else 'MISSED'}: {text}: {value:.3f}")
    sys.stdout.flush()


def as_json(model: str, preset: str, batches: Workload, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything about one model and preset."""
    published, workload = costs(rows, batches)
    return {
        "model": model,
        "preset": preset,
        "batches": [batch.as_dict() for batch in batches],
        "tasks": [asdict(row) for row in rows],
        "costs": {"published": published, "workload": workload},
        "promises": {
            text: {"value": value, "kept": holds}
            for text, (value, holds) in promises(preset, rows, batches).items()
        },
    }


class Report:
    """The JSON file, which is whole at any time; None: there is none."""

    def __init__(self, path: Path | None, header: Mapping[str, Any], clock: Clock) -> None:
        self._path = path
        self._header = header
        self._clock = clock
        self._results: dict[tuple[str, str], dict[str, Any]] = {}

    def put(self, model: str, preset: str, batches: Workload, rows: Sequence[Row]) -> None:
        """Write it with what one model and preset came to so far."""
        if self._path is None:
            return
        self._results[model, preset] = as_json(model, preset, batches, rows)
        wall_s = round(self._clock.took_s, 1)
        content = {**self._header, "wall_s": wall_s, "results": list(self._results.values())}
        half = self._path.with_name(self._path.name + "~")
        half.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        half.replace(self._path)
