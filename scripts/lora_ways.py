"""Ways to add LoRA to a projection: beside its own product, and as one with it."""

from __future__ import annotations

from collections.abc import Mapping

from decoder import Projection
from torch import Tensor

from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.plan import Operands, schedule_of, task_launch
from lora_autotune.kernels.batch import Batch
from lora_autotune.kernels.linear_forward import linear_forward, linear_gap
from lora_autotune.space import Config
from lora_autotune.task import Task

Configs = Mapping[Task, Config]


class Kernels:
    """Both kernels of a set with their configs, as a Decoder calls them on one batch.

    A task and its schedule are looked up once, so that what is left is the launch.
    """

    def __init__(self, kernels: str, configs: Configs, batch: Batch, gpu: Gpu) -> None:
        self._kernels = kernels
        self._batch = batch
        self._plans = {
            (task.kernel, task.K, task.S): (
                task,
                config.as_dict(),
                schedule_of(task, batch, config.as_dict(), gpu.target, kernels=kernels),
            )
            for task, config in configs.items()
        }

    def __call__(self, x: Tensor, projection: Projection) -> Tensor:
        output = x @ projection.weight.T
        middle = self.shrink(x, projection)
        self._launch("expand", middle, projection.b, output, projection)
        return output

    def shrink(self, x: Tensor, projection: Projection) -> Tensor:
        """LoRA A into a new tensor."""
        middle = x.new_empty((x.shape[0], projection.a.shape[1]))
        self._launch("shrink", x, projection.a, middle, projection)
        return middle

    def config(self, kernel: str, width: int, slices: int) -> dict[str, int]:
        """That of a kernel for a projection: K and S."""
        return self._plans[kernel, width, slices][1]

    def _launch(
        self, kernel: str, x: Tensor, weights: Tensor, output: Tensor, projection: Projection
    ) -> None:
        assert x.is_contiguous()
        width = weights.shape[2 if kernel == "shrink" else 1]
        task, config, schedule = self._plans[kernel, width, projection.slices]
        task_launch(
            task,
            Operands(x=x, weights=weights, output=output),
            self._batch,
            projection.offsets_on_device,
            config,
            schedule,
            kernels=self._kernels,
        )()


class OneProduct:
    """The layer's own product and its LoRA in one, where a server would do so; else apart.

    Attributes:
        always: also where that does not pay.
    """

    def __init__(self, apart: Kernels, batch: Batch, *, always: bool = False) -> None:
        self.always = always
        self._apart = apart
        self._batch = batch

    def __call__(self, x: Tensor, projection: Projection) -> Tensor:
        operands = x, projection.weight, projection.a, projection.b
        if not self.always and linear_gap(*operands, self._batch, projection.offsets) is not None:
            return self._apart(x, projection)
        config = self._apart.config("shrink", x.shape[1], projection.slices)
        offsets = projection.offsets_on_device
        return linear_forward(*operands, self._batch, offsets, shrink_config=config)
