"""What tuning a task says while it goes on, what comes of it, and where that is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_autotune.config_file import config_file_path, merge_config_file
from lora_autotune.evaluator import Platform
from lora_autotune.selection import Selection
from lora_autotune.space import Config
from lora_autotune.task import Task, Workload
from lora_autotune.trial import mean_time_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a task is: at the start, after each trial and when the finalists' turn comes.

    Attributes:
        done: configs evaluated, those known from the record included.
        budget: most that will be evaluated.
        best_cost: the lowest cost so far; None while there is none.
        best_config: the config with that cost.
    """

    task: Task
    phase: Literal["search", "finalists"]
    done: int
    budget: int
    failures: int
    pruned: int
    best_cost: float | None
    best_config: Config | None
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningResult:
    """What came of tuning one task.

    Attributes:
        selection: the winner, or the default, and why.
        trials: configs evaluated, those known from the record included.
        failures: candidates that failed, by kind.
        pruned: candidates dropped before they were timed in full.
        stopped: why the search ended.
        wall_s: seconds that it took.
    """

    task: Task
    workload: Workload
    platform: Platform
    replayed: bool
    selection: Selection
    trials: int
    failures: Mapping[str, int]
    pruned: int
    stopped: str
    wall_s: float

    @property
    def time_us(self) -> float | None:
        """The chosen config's weighted mean time over the instances."""
        return _weighted_us(self.selection.times_us, self.workload)

    @property
    def default_us(self) -> float | None:
        """The default's weighted mean time over the instances."""
        return _weighted_us(self.selection.default_times_us, self.workload)

    @property
    def speedup(self) -> float | None:
        """1 / cost: the mean over the instances of the speed relative to the default's."""
        return None if self.selection.cost is None else 1 / self.selection.cost


def _weighted_us(times_us: tuple[float, ...], workload: Workload) -> float | None:
    return mean_time_us(times_us, workload) if times_us else None


def write_result(result: TuningResult, root: Path | str) -> Path | None:
    """Merge what was chosen into its config file under a root; None when nothing runs.

    Where the default stands it is written too: a lookup that finds no entry for a chunk size takes
    the nearest one, which nobody measured there.

    Raises:
        ConfigFileError: the file cannot be written, or is not a config file.
    """
    task, config = result.task, result.selection.config
    if config is None:
        return None
    path = config_file_path(
        Path(root),
        task.kernel,
        task.K,
        task.R,
        task.S,
        device_name=result.platform.device,
        triton_version=result.platform.triton,
    )
    merge_config_file(path, {task.chunk_size: config.as_dict()})
    return path
