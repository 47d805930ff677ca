"""One configuration of one kernel, evaluated on this machine's GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from lora_autotune.evaluators.cuda import CudaMachine
from lora_autotune.space import Config
from lora_autotune.task import DTypeName, Task, Workload, default_workload
from lora_autotune.trial import Trial


def benchmark_shrink_config(
    config: Mapping[str, int],
    *,
    K: int,
    R: int,
    num_slices: int,
    chunk_size: int,
    dtype: DTypeName = "float16",
    workload: Workload | None = None,
    machine: CudaMachine | None = None,
) -> Trial:
    """Compile, check and time one config of the shrink kernel: (s, K) -> (s, num_slices * R).

    Args:
        config: BLOCK_N, BLOCK_K and, where wanted, num_warps and num_stages.
        K: the layer's input width.
        R: the largest rank.
        num_slices: fused slices.
        chunk_size: most tokens in a segment.
        dtype: of the operands.
        workload: the batches it is timed on; None: those that reach the chunk size.
        machine: runs it, and stays open; None: one for this call, which takes seconds to start.

    Returns:
        The trial, without a cost: its Measurement has the median microseconds of a launch for each
        batch, its Failure why there is none.

    Raises:
        EvaluatorError: this machine cannot evaluate anything.
        UsageError: a config, a shape or a batch that makes no sense.
    """
    task = Task(kernel="shrink", K=K, R=R, S=num_slices, chunk_size=chunk_size, dtype=dtype)
    return _benchmark(task, config, workload, machine)


def benchmark_expand_config(
    config: Mapping[str, int],
    *,
    K: int,
    R: int,
    num_slices: int,
    chunk_size: int,
    slice_offsets: Sequence[int] | None = None,
    dtype: DTypeName = "float16",
    workload: Workload | None = None,
    machine: CudaMachine | None = None,
) -> Trial:
    """Compile, check and time one config of the expand kernel: (s, num_slices * R) -> (s, K).

    Args:
        config: BLOCK_N, BLOCK_K and, where wanted, num_warps, num_stages and maxnreg.
        K: the layer's output width.
        R: the largest rank.
        num_slices: fused slices.
        chunk_size: most tokens in a segment.
        slice_offsets: their num_slices + 1 boundaries in the output; None: equal slices.
        dtype: of the operands.
        workload: see :func:`benchmark_shrink_config`, as for the rest.
        machine: runs it.
    """
    task = Task(
        kernel="expand",
        K=K,
        R=R,
        S=num_slices,
        chunk_size=chunk_size,
        dtype=dtype,
        slice_offsets=None if slice_offsets is None else tuple(slice_offsets),
    )
    return _benchmark(task, config, workload, machine)


def _benchmark(
    task: Task,
    config: Mapping[str, int],
    workload: Workload | None,
    machine: CudaMachine | None,
) -> Trial:
    parsed = Config.from_dict(config)
    with contextlib.ExitStack() as stack:
        if machine is None:
            machine = stack.enter_context(CudaMachine(compile_workers=1))
        evaluator = machine.evaluator(
            task, workload or default_workload(task.chunk_size), prune=False, patient=True
        )
        stack.callback(evaluator.close)
        evaluator.submit(parsed)
        return evaluator.collect()
