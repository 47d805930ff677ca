"""The batches of work that bench_kernels.py measures: those of baseline.md, and around them."""

from __future__ import annotations

from dataclasses import dataclass

from cublas import adapter_ranks

from lora_autotune.kernels.batch import rows_per_adapter
from lora_autotune.model import load_model_shape, tasks_for
from lora_autotune.task import DECODE, PREFILL, Instance, Task

BANDWIDTH_TB_S = 4.8
"""Of an H200's memory, by its data sheet."""

MODEL, LARGER_MODEL = "Qwen3-0.6B", "Qwen3-8B"
MIXED = (64, 8, 16, 32, 64, 20, 16, 48)
MIDDLE = (
    Instance(tokens=2048, adapters=1),
    Instance(tokens=4096, adapters=8),
    Instance(tokens=8192, adapters=8, spread="zipf"),
)
"""Prefills as a server makes them: fewer tokens, and rows that fill no whole group of segments."""

BYTES = 2


@dataclass(frozen=True, kw_only=True)
class Row:
    """One batch of work for one kernel; its name begins with the group."""

    group: str
    task: Task
    instance: Instance

    def __str__(self) -> str:
        task, dtype = self.task, {"float16": "fp16", "bfloat16": "bf16"}[self.task.dtype]
        shape = f"{task.kernel} K={task.K} S={task.S} R={task.R} chunk {task.chunk_size}"
        return f"{self.group}: {shape}, {self.instance}, {dtype}"


def all_rows(*, every_chunk: bool = False) -> list[Row]:
    """Every row; ``every_chunk``: the two narrower expand shapes not at 64 alone."""
    rows = [
        Row(group="prefill", task=task, instance=PREFILL)
        for task in tasks_for(load_model_shape(MODEL), rank=64)
        if task.kernel == "shrink" or task.S == 3 or task.chunk_size == 64 or every_chunk
    ]
    for model in (MODEL, LARGER_MODEL):
        for rank in (16, 64):
            shape = load_model_shape(model)
            tasks = tasks_for(shape, rank=rank, dtype="bfloat16", chunk_sizes=(16,))
            rows += [Row(group=f"decode {model}", task=task, instance=DECODE) for task in tasks]
    task = Task(kernel="shrink", K=4096, R=32, S=1, chunk_size=128, dtype="bfloat16")
    rows.append(Row(group="small prefill", task=task, instance=Instance(tokens=512, adapters=4)))
    for task in tasks_for(load_model_shape(MODEL), rank=64, chunk_sizes=(16,)):
        if (task.kernel, task.S) in (("shrink", 1), ("shrink", 3), ("expand", 3)):
            rows += [Row(group="middle prefill", task=task, instance=each) for each in MIDDLE]
    for tokens, chunk_size in ((PREFILL.tokens, 64), (DECODE.tokens, 16)):
        for task in tasks_for(load_model_shape(MODEL), rank=64, chunk_sizes=(chunk_size,)):
            for ranks in (None, MIXED, (60,)) if task.S == 3 else ():
                instance = Instance(tokens=tokens, adapters=8, ranks=ranks)
                rows.append(Row(group="ranks", task=task, instance=instance))
    return rows


def floor_us(task: Task, instance: Instance) -> float:
    """Microseconds to read and write once all that must be: x, weights, and the output."""
    elements = 0
    ranks = adapter_ranks(task, instance)
    for rows, rank in zip(rows_per_adapter(instance), ranks, strict=True):
        columns = task.S * rank
        if rank == 0:
            continue
        if task.kernel == "shrink":
            elements += rows * task.K + columns * task.K + rows * columns
        else:
            elements += rows * columns + task.K * rank + 2 * rows * task.K
    return elements * BYTES / BANDWIDTH_TB_S / 1e6
