"""What tuning a task says while it goes on, what comes of it, and where that is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from lora_autotune import __version__
from lora_autotune.config_file import config_file_path
from lora_autotune.evaluator import Platform
from lora_autotune.provenance import Provenance, write_with_provenance
from lora_autotune.selection import Selection
from lora_autotune.space import Config, SearchSpace, space_name
from lora_autotune.task import Task, Workload
from lora_autotune.trial import mean_time_us
from lora_autotune.workload import workload_lines


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
        strategy: the name of the one that searched.
        space: where it did.
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
    strategy: str
    space: SearchSpace
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


def task_config_path(task: Task, platform: Platform, root: Path) -> Path:
    """Where under a root a task's config belongs."""
    return config_file_path(
        root,
        task.kernel,
        task.K,
        task.R,
        task.S,
        device_name=platform.device,
        triton_version=platform.triton,
    )


def write_result(
    result: TuningResult, root: Path | str, *, command: str | None = None
) -> Path | None:
    """Merge what was chosen into its config file under a root; None when nothing runs.

    Where the default stands it is written too: a lookup that finds no entry for a chunk size takes
    the nearest one, which nobody measured there. Where it is from is written beside it, see
    :class:`lora_autotune.provenance.Provenance`.

    Args:
        result: what came of the tuning.
        root: the folder that holds ``csgmv_configs``.
        command: the command line that did it; None: Python.

    Raises:
        ConfigFileError: a file cannot be written, is not what its name says, or holds configs for
            other kernels.
    """
    task, config = result.task, result.selection.config
    if config is None:
        return None
    path = task_config_path(task, result.platform, Path(root))
    write_with_provenance(path, task.chunk_size, _provenance(result, config, command))
    return path


def _provenance(result: TuningResult, config: Config, command: str | None) -> Provenance:
    task, platform, selection = result.task, result.platform, result.selection
    return Provenance(
        config=config.as_dict(),
        command=command,
        workload=workload_lines(result.workload),
        dtype=task.dtype,
        slices=task.slice_widths,
        gpu=platform.device,
        driver=platform.driver,
        triton=platform.triton,
        torch=platform.torch,
        kernels=platform.kernels,
        kernels_version=platform.kernels_version,
        package=__version__,
        date=datetime.now(tz=timezone.utc).date().isoformat(),
        replayed=result.replayed,
        strategy=result.strategy,
        space=space_name(result.space, task.kernel),
        trials=result.trials,
        times_us=tuple(round(time_us, 3) for time_us in selection.times_us),
        default_times_us=tuple(round(time_us, 3) for time_us in selection.default_times_us),
        held_out=tuple(map(str, selection.held_out)),
    )
