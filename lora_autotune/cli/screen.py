"""What a run of ``tune`` shows: live progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lora_autotune.task import Task
from lora_autotune.tuner import Progress as TuningProgress
from lora_autotune.tuner import TuningResult


class Screen:
    """A context manager; everything goes to stdout, or to stderr when stdout is for JSON."""

    def __init__(self, count: int, *, json: bool) -> None:
        self._console = Console(file=sys.stderr if json else sys.stdout, highlight=False)
        if not self._console.is_terminal:
            self._console = Console(file=self._console.file, highlight=False, width=160)
        self._live = Progress(
            TextColumn("[{task.fields[place]}/{task.fields[count]}]"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._count = count
        self._place = 0
        self._started_s = time.monotonic()
        self._bar = self._live.add_task(
            "starting", total=None, place=0, count=count, state="", left=""
        )

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

    def begin(self, task: Task) -> None:
        """The next task is under way."""
        self._place += 1
        left = ""
        if self._place > 1:
            spent_s = time.monotonic() - self._started_s
            left_s = spent_s / (self._place - 1) * (self._count - self._place + 1)
            left = f"about {left_s:.0f} s left"
        self._live.update(
            self._bar, description=str(task), place=self._place, completed=0, state="", left=left
        )

    def progress(self, progress: TuningProgress) -> None:
        """Where the task is."""
        state = f"{progress.failures} failed, {progress.pruned} pruned"
        if progress.best_cost is not None:
            state += f", best {1 / progress.best_cost:.2f}x the default"
        if progress.phase == "finalists":
            state = "measuring the finalists again"
        self._live.update(self._bar, completed=progress.done, total=progress.budget, state=state)

    def finish(self, result: TuningResult) -> None:
        """A task is done: one line, where there is no live display."""
        if self._console.is_terminal:
            return
        failed = sum(result.failures.values())
        self.say(
            f"[{self._place}/{self._count}] {result.task}: {_speedup(result)}"
            f" ({result.trials} trials, {failed} failed, {result.pruned} pruned,"
            f" {result.wall_s:.1f} s) {result.selection.config or 'nothing runs'}"
        )

    def table(self, results: Sequence[TuningResult], files: Sequence[Path], out: Path) -> None:
        """Everything at a glance, at the end."""
        table = Table("task", "chunk", "tokens", "default us", "tuned us", "speed-up", "config")
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
            self.say(f"to serve with them: export SGLANG_LORA_CONFIG_DIR={out.resolve()}")


def _column(times_us: Sequence[float]) -> str:
    return "\n".join(f"{time:.1f}" for time in times_us) or "-"


def _speedup(result: TuningResult) -> str:
    return "-" if result.speedup is None else f"{result.speedup:.2f}x"
