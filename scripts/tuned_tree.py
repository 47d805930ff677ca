"""What was tuned on one workload, kept as ``tune --out`` does, so that no task is tuned twice."""

from __future__ import annotations

from pathlib import Path

from lora_autotune.config_file import read_config_file
from lora_autotune.evaluator import Platform
from lora_autotune.provenance import Provenance, find_provenance
from lora_autotune.result import TuningResult, task_config_path, write_result
from lora_autotune.space import Config
from lora_autotune.task import Task, Workload
from lora_autotune.workload import workload_lines


class TunedTree:
    """The winners of some tasks on one workload.

    Args:
        root: the folder of the config tree, which a server may have as SGLANG_LORA_CONFIG_DIR;
            None: they are kept in memory only.
        workload: what they are tuned on at one chunk size.
        platform: what they are tuned with.
        command: for their provenance.
        strategy: what they are found by.
    """

    def __init__(
        self,
        root: Path | None,
        workload: Workload,
        platform: Platform,
        command: str,
        strategy: str = "auto",
    ) -> None:
        self._root = root
        self._workload = workload
        self._platform = platform
        self._command = command
        self.strategy = strategy
        self._kept: dict[Task, Config] = {}

    def find(self, task: Task) -> Config | None:
        """What a task was tuned to by this strategy on these very batches, GPU, Triton and kernels.

        None: nothing yet.

        Raises:
            ConfigFileError: the task's file is no config file.
        """
        if task in self._kept or self._root is None:
            return self._kept.get(task)
        file = task_config_path(task, self._platform, self._root)
        config = read_config_file(file).get(task.chunk_size) if file.exists() else None
        if config is None or not self._is_ours(
            find_provenance(file, task.chunk_size, config), task
        ):
            return None
        return Config.from_dict(config)

    def keep(self, result: TuningResult) -> None:
        """Remember a winner; nothing where no config runs.

        Raises:
            ConfigFileError: it cannot be written.
        """
        if result.selection.config is None:
            return
        self._kept[result.task] = result.selection.config
        if self._root is not None:
            write_result(result, self._root, command=self._command)

    def _is_ours(self, origin: Provenance | str, task: Task) -> bool:
        return (
            isinstance(origin, Provenance)
            and origin.workload == workload_lines(self._workload)
            and origin.dtype == task.dtype
            and origin.slices == task.slice_widths
            and origin.kernels == self._platform.kernels
            and origin.kernels_version == self._platform.kernels_version
            and origin.strategy == self.strategy
            and not origin.replayed
        )
