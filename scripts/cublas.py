"""The same product by cuBLAS, as a dense layer would do it: no permutation, no segments.

shrink: one torch.bmm into the output. expand: for each slice one baddbmm_, so that scaling and
accumulating into the output are part of it, as they are of the kernel. All adapters go into one
call where they have equal ranks and equally many rows; else each has its own. (A bmm of one matrix
is cuBLAS's gemm.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lora_autotune.evaluators.plan import Operands
from lora_autotune.kernels.batch import rows_per_adapter
from lora_autotune.task import Instance, Task

Product = tuple[Tensor, Tensor, Tensor]
"""x (adapters, rows, k), weights (adapters, k, n), output (adapters, rows, n): views."""


def adapter_ranks(task: Task, instance: Instance) -> list[int]:
    """Each adapter's own rank."""
    own = instance.ranks or (task.R,)
    return [own[i % len(own)] for i in range(instance.adapters)]


def products(task: Task, instance: Instance, operands: Operands) -> Iterator[Product]:
    """The dense products that an instance is made of; its rows lie adapter by adapter."""
    alike = list(zip(rows_per_adapter(instance), adapter_ranks(task, instance), strict=True))
    many = len(alike) if len(set(alike)) == 1 else 1
    first_row = 0
    for first in range(0, len(alike), many):
        rows, rank = alike[first]
        here = slice(first_row, first_row + many * rows)
        first_row = here.stop
        if rank == 0:
            continue
        x = operands.x[here].view(many, rows, -1)
        weights = operands.weights[first : first + many]
        output = operands.output[here].view(many, rows, -1)
        if task.kernel == "shrink":
            columns = task.S * rank
            yield x, weights[:, :columns].mT, output[:, :, :columns]
            continue
        for i, (start, end) in enumerate(itertools.pairwise(task.slice_offsets)):
            part = x[:, :, i * rank : (i + 1) * rank]
            yield part, weights[:, start:end, :rank].mT, output[:, :, start:end]


def cublas_call(
    task: Task, instance: Instance, operands: Operands, scaling: float
) -> Callable[[], Tensor]:
    """What fills (shrink) or adds to (expand) the operands' output, and returns it."""
    parts = list(products(task, instance, operands))

    def call() -> Tensor:
        for x, weights, output in parts:
            if task.kernel == "shrink":
                torch.bmm(x, weights, out=output)
            else:
                output.baddbmm_(x, weights, alpha=scaling)
        return operands.output

    return call
