"""Does a candidate compute the right thing? Checked on a batch made to trip it up."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_autotune.evaluators.plan import Operands, shapes, task_launch, task_offsets
from lora_autotune.kernel_set import BUILTIN
from lora_autotune.kernels.batch import Batch, make_batch
from lora_autotune.kernels.reference import expand_reference, shrink_reference
from lora_autotune.kernels.schedule import Schedule
from lora_autotune.space import Config
from lora_autotune.task import Task

TOLERANCES = {"float16": 2e-3, "bfloat16": 1.2e-2}
"""Largest ||out - ref|| / ||ref|| that rounding explains; a single element may be off 8 times that
relative to the reference's root mean square."""


def difference_from_reference(
    task: Task,
    config: Config,
    schedule: Schedule,
    generator: torch.Generator,
    *,
    kernels: str = BUILTIN,
) -> str | None:
    """What a candidate got wrong on fresh random inputs, in words; None when it is right.

    The batch has ragged and empty segments, mixed ranks (one no multiple of 16), an adapter of rank
    0, permuted rows, a padded segment buffer and, for expand, an output wider than the layer. The
    output is poisoned first.
    """
    device = generator.device
    batch = ragged_batch(task, schedule.group, generator)
    dtype = getattr(torch, task.dtype)
    rows = batch.permutation.shape[0]

    def fresh(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    x_shape, weight_shape, output_shape = shapes(task, rows, batch.lora_ranks.shape[0])
    x, weights = fresh(x_shape), fresh(weight_shape)
    offsets = task_offsets(task, device=device)
    if task.kernel == "shrink":
        output = torch.full(output_shape, torch.nan, dtype=dtype, device=device)
        reference = shrink_reference(x, weights, batch, task.S)
    else:
        output = fresh((rows, task.K + 64))
        reference = expand_reference(x, weights, batch, offsets, output)
    owed = ~reference.isnan()
    idle = ~owed.any(dim=1)
    operands = Operands(x=x, weights=weights, output=output)
    task_launch(task, operands, batch, offsets, config.as_dict(), schedule, kernels=kernels)()

    if not output[idle].isnan().all():
        return "writes rows that have no adapter"
    error = torch.where(owed, output.double() - reference, 0.0)
    expected = torch.where(owed, reference, 0.0)
    relative = (error.norm() / expected.norm()).item()
    scale = expected.square().mean().sqrt()
    worst = (error.abs() / (expected.abs() + scale)).max().item()
    tolerance = TOLERANCES[task.dtype]
    if not relative <= tolerance or not worst <= 8 * tolerance:
        return f"relative error {relative:.2g}, at one element {worst:.2g}; allowed {tolerance:.2g}"
    return None


def ragged_batch(task: Task, group: int, generator: torch.Generator) -> Batch:
    """About five chunks of rows over five adapters of different ranks, one of them absent.

    Where a program takes a group of segments, two groups more of the first adapter's.
    """
    device = generator.device
    ranks = [task.R, max(1, task.R // 2), 0, max(1, task.R - 3), task.R]
    rows, alike = 5 * task.chunk_size + 3, 2 * group * task.chunk_size if group > 1 else 0
    owners = torch.randint(0, 4, (rows + alike,), generator=generator, device=device)
    owners[torch.randperm(rows + alike, generator=generator, device=device)[:alike]] = 0
    scalings = (torch.rand(5, generator=generator, device=device) + 0.5).tolist()
    return make_batch(
        owners,
        ranks=ranks,
        scalings=scalings,
        chunk_size=task.chunk_size,
        grid_segments=16 + 2 * group,
        device=device,
    )
