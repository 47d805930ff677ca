"""What a run of ``tune`` shows: live progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from lora_autotune.result import Progress as TuningProgress
from lora_autotune.result import TuningResult
from lora_autotune.task import Task


class Screen:
    """A context manager; everything goes to stdout, or to stderr when stdout is for JSON."""

    def __init__(self, count: int, *, json: bool) -> None:
        self._console = Console(file=sys.stderr if json else sys.stdout, highlight=False)
        if not self._console.is_terminal:
            self._console = Console(file=self._console.file, highlight=False, width=160)
        bar = [BarColumn(bar_width=20)] if self._console.width >= 110 else []
        self._live = Progress(
            TextColumn("{task.description}", markup=False),
            *bar,
            TextColumn("{task.fields[state]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._count = count
        self._finished = 0
        self._started_s = time.monotonic()
        self._all = self._live.add_task("starting", total=count, state="")
        self._rows: dict[Task, TaskID] = {}

    def __enter__(self) -> Screen:  # noqa: PYI034 - Self needs Python 3.11
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def progress(self, progress: TuningProgress) -> None:
        """Where a task is; a row for each that is under way."""
        task = progress.task
        if task not in self._rows:
            title = f"{task.kernel} K={task.K} S={task.S} chunk {task.chunk_size}"
            self._rows[task] = self._live.add_task(title, state="")
        state = f"{progress.done}/{progress.budget}"
        if progress.phase == "finalists":
            state += ", measuring the finalists again"
        else:
            state += f", {progress.failures} failed"
            if progress.best_cost is not None:
                state += f", best {1 / progress.best_cost:.2f}x"
        row = self._rows[task]
        self._live.update(row, completed=progress.done, total=progress.budget, state=state)
        self._overall()

    def finish(self, result: TuningResult) -> None:
        """A task is done: one line, where there is no live display."""
        self._finished += 1
        if result.task in self._rows:
            self._live.remove_task(self._rows.pop(result.task))
        self._overall()
        if self._console.is_terminal:
            return
        failed = sum(result.failures.values())
        self.say(
            f"[{self._finished}/{self._count}] {result.task}: {_speedup(result)}"
            f" ({result.trials} trials, {failed} failed, {result.pruned} pruned,"
            f" {result.wall_s:.1f} s) {result.selection.config or 'nothing runs'}"
        )

    def _overall(self) -> None:
        spent_s = time.monotonic() - self._started_s
        state = f"{spent_s:.0f} s"
        if self._finished:
            left_s = spent_s / self._finished * (self._count - self._finished)
            state += f", about {left_s:.0f} s left"
        title = f"{self._finished} of {self._count} tasks done"
        self._live.update(self._all, description=title, completed=self._finished, state=state)

    def table(self, results: Sequence[TuningResult], files: Sequence[Path], out: Path) -> None:
        """Everything at a glance, at the end."""
        table = Table("task", "chunk", "tokens", "default us", "tuned us", "speed-up")
        table.add_column("config", min_width=len("num_stages=3"))
        for result in results:
            task, selection = result.task, result.selection
            stands = selection.config is not None and not selection.tuned
            table.add_row(
                f"{task.kernel} K={task.K} R={task.R} S={task.S}",
                str(task.chunk_size),
                "\n".join(str(instance) for instance in result.workload),
                _column(selection.default_times_us),
                _column(selection.times_us),
                _speedup(result),
                selection.reason if stands else str(selection.config),
            )
        self._console.print(table)
        for file in files:
            self.say(f"wrote {file}")
        if files:
            root = shlex.quote(str(out.resolve()))
            self.say(f"to serve with them: export SGLANG_LORA_CONFIG_DIR={root}")


def _column(times_us: Sequence[float]) -> str:
    return "\n".join(f"{time:.1f}" for time in times_us) or "-"


def _speedup(result: TuningResult) -> str:
    return "-" if result.speedup is None else f"{result.speedup:.2f}x"
