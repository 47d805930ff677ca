"""From a task to a launch, for each set of kernels: ours, and those of an installed SGLang.

A set is passed on between processes by its name.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from lora_autotune.errors import UsageError
from lora_autotune.kernel_set import BUILTIN, KERNEL_SETS, set_of
from lora_autotune.kernels.batch import Batch
from lora_autotune.kernels.expand_schedule import expand_schedule
from lora_autotune.kernels.launch import Launch, expand_launch, shrink_launch
from lora_autotune.kernels.schedule import Schedule, Target
from lora_autotune.kernels.sglang import installed_kernels
from lora_autotune.kernels.shrink_schedule import shrink_schedule
from lora_autotune.kernels_version import builtin_kernels_version
from lora_autotune.task import Task

if TYPE_CHECKING:
    from torch import Tensor


class Launcher(Protocol):
    """A shrink and an expand kernel that compute what the reference does.

    Attributes:
        name: what is measured on them is labelled with it ("builtin", "sglang-0.5.23").
        version: what tells their source from another, where the name does not.
    """

    @property
    def name(self) -> str:
        """See the class."""

    @property
    def version(self) -> str:
        """See the class."""

    def schedule(
        self, task: Task, batch: Batch, config: Mapping[str, int], target: Target
    ) -> Schedule:
        """How a launch of a task on a batch maps to programs."""

    def launch(
        self,
        task: Task,
        matrices: tuple[Tensor, Tensor, Tensor],
        batch: Batch,
        offsets: Tensor,
        config: Mapping[str, int],
        schedule: Schedule,
    ) -> Launch:
        """The launch of a task's kernel.

        Args:
            task: what is launched.
            matrices: x, weights and output.
            batch: the rows' segments.
            offsets: int64 (S + 1,), the slices' boundaries on the device; not read by shrink.
            config: BLOCK_N, BLOCK_K and the options to pass on.
            schedule: one of this launcher's.
        """


@functools.cache
def launcher(kernels: str) -> Launcher:
    """That of a set; "sglang", with any version, is what is installed.

    Raises:
        EvaluatorError: no SGLang is installed, or its kernels are not like those that we know.
        UsageError: no such set.
    """
    if kernels == BUILTIN:
        return _Builtin()
    if set_of(kernels) == "sglang":
        return installed_kernels()
    raise UsageError(f"no kernels {kernels!r} here", hint=f"allowed: {', '.join(KERNEL_SETS)}")


class _Builtin:
    name = BUILTIN

    @property
    def version(self) -> str:
        return builtin_kernels_version()

    def schedule(
        self, task: Task, batch: Batch, config: Mapping[str, int], target: Target
    ) -> Schedule:
        if task.kernel == "shrink":
            return shrink_schedule(batch.sizes, task.S * task.R, task.K, config, target)
        return expand_schedule(batch.sizes, task.K, task.R, config, target)

    def launch(
        self,
        task: Task,
        matrices: tuple[Tensor, Tensor, Tensor],
        batch: Batch,
        offsets: Tensor,
        config: Mapping[str, int],
        schedule: Schedule,
    ) -> Launch:
        if task.kernel == "shrink":
            return shrink_launch(*matrices, batch, task.S, config, schedule=schedule)
        return expand_launch(*matrices, batch, offsets, config, schedule=schedule)
