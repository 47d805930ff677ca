"""What is certain about a candidate before it is compiled."""

from __future__ import annotations

from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.plan import planned_batch, schedule_of
from lora_autotune.kernels.batch import TALL_ROWS
from lora_autotune.kernels.shrink_schedule import (
    MIDDLE_COLUMNS,
    TALL_COLUMNS,
    narrowed,
    tiles_together,
    widened,
)
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import Task, Workload
from lora_autotune.trial import Failure

ELEMENT_BYTES = 2
WARP, MAX_REGISTERS = 32, 255
DEFAULT_WARPS, DEFAULT_STAGES = 4, 3
"""Triton's."""


def pipeline_bytes(rows: int, tile: tuple[int, int], config: Config, gpu: Gpu) -> int:
    """Shared memory of shrink's pipeline over tiles of some rows, BLOCK_N and BLOCK_K, in bytes.

    It keeps an x tile and a weights tile for every stage but the one that is being multiplied, and
    for that too where warp groups multiply (wgmma: compute capability 9, 64 rows and 4 warps).
    """
    block_n, block_k = tile
    warps, stages = config.num_warps or DEFAULT_WARPS, config.num_stages or DEFAULT_STAGES
    warp_groups = gpu.capability == 90 and rows >= 64 and warps >= 4
    buffers = stages if warp_groups else max(stages - 1, 1)
    return (rows + block_n) * block_k * ELEMENT_BYTES * buffers


def served_smem_bytes(task: Task, config: Config, gpu: Gpu) -> int:
    """Shared memory that some batch of a server needs, in bytes; 0 where nothing is known.

    The tiles are those that :mod:`lora_autotune.kernels.shrink_schedule` makes of a config's own.
    Where segments are many, one program has all of the columns' tiles, if they are few enough.
    """
    if task.kernel != "shrink":
        return 0
    own, columns = (config.BLOCK_N, config.BLOCK_K), task.S * task.R
    wide = widened(own, columns)
    together = tiles_together(TALL_ROWS, wide, columns)
    tiles = [narrowed(own, columns, most) for most in (MIDDLE_COLUMNS, TALL_COLUMNS)]
    tiles.append((wide[0] * together, wide[1]))
    return max(pipeline_bytes(TALL_ROWS, tile, config, gpu) for tile in tiles)


def sums_per_thread(task: Task, workload: Workload, config: Config, gpu: Gpu) -> int:
    """float32 sums that a thread holds at once, on the batch where those are most.

    None are counted where what is launched is not from the config.
    """
    sums = [0]
    for instance in workload:
        batch = planned_batch(task, instance)
        schedule = schedule_of(task, batch, config.as_dict(), gpu.target)
        if schedule.config is not None:
            continue
        launched = schedule.applied_to(config.as_dict())
        threads = WARP * launched.get("num_warps", DEFAULT_WARPS)
        rows = schedule.group * batch.sizes.piece_rows
        sums.append(rows * launched["BLOCK_N"] * schedule.together // threads)
    return max(sums)


def smem_failure(needed: int, gpu: Gpu) -> Failure | None:
    """The failure of a program that needs so much shared memory, in bytes; None where it fits."""
    if needed <= gpu.smem_bytes:
        return None
    message = f"needs {needed} bytes of shared memory, the device has {gpu.smem_bytes}"
    return Failure(kind="resources", message=message)


def foretold_failure(task: Task, config: Config, gpu: Gpu) -> Failure | None:
    """Why a candidate cannot serve on a GPU for want of shared memory, if that is sure.

    On the shipped landscapes nothing else failed for it. The default is never refused: it is what a
    server runs that has no config.
    """
    if config == DEFAULT_CONFIGS[task.kernel]:
        return None
    return smem_failure(served_smem_bytes(task, config, gpu), gpu)


def foretold_defeat(task: Task, workload: Workload, config: Config, gpu: Gpu) -> Failure | None:
    """Why a candidate cannot win, if that is sure: its sums alone fill a thread's registers.

    A thread has at most 255 (CUDA C++ Programming Guide, "Technical Specifications per Compute
    Capability"). On the shipped landscapes the best of these takes 5 times the best's time, and
    they compile four times as long as others.
    """
    sums = sums_per_thread(task, workload, config, gpu)
    if sums < MAX_REGISTERS:
        return None
    message = f"needs {sums} registers a thread for its sums alone, there are {MAX_REGISTERS}"
    return Failure(kind="resources", message=message)
