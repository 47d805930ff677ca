"""What is certain about a candidate before it is compiled."""

from __future__ import annotations

from lora_autotune.kernels.schedule import GROUPED_ROWS, TALL_COLUMNS, widening
from lora_autotune.space import Config
from lora_autotune.task import Task
from lora_autotune.trial import Failure

ELEMENT_BYTES = 2


def least_smem_bytes(task: Task, config: Config) -> int:
    """Shared memory that every batch is sure to need, in bytes; 0 where nothing is known.

    A shrink kernel's pipeline keeps an x tile and a weights tile for every stage but the one that
    is being multiplied; the tile is the widest that a schedule may take for the config's. On the
    shipped landscapes it foretells 200 of the 320 candidates that need more than the device has,
    16 that were given up while they compiled, and none that was measured.
    """
    widened = widening(config.BLOCK_N, config.BLOCK_K, TALL_COLUMNS)
    return _pipeline_bytes(task, config, task.chunk_size, widened)


def served_smem_bytes(task: Task, config: Config) -> int:
    """Shared memory that some batch of a server needs, in bytes; 0 where nothing is known.

    In between few rows and many a schedule takes tall tiles as narrow and deep as the config says,
    though neither the smallest nor the largest batch does.
    """
    return _pipeline_bytes(task, config, max(task.chunk_size, GROUPED_ROWS), 1)


def foretold_failure(task: Task, config: Config, *, smem_bytes: int) -> Failure | None:
    """Why a candidate cannot serve where a program has so much shared memory, if that is sure."""
    needed = max(least_smem_bytes(task, config), served_smem_bytes(task, config))
    if needed <= smem_bytes:
        return None
    message = f"needs at least {needed} bytes of shared memory, the device has {smem_bytes}"
    return Failure(kind="resources", message=message)


def _pipeline_bytes(task: Task, config: Config, rows: int, widened: int) -> int:
    if task.kernel != "shrink" or config.num_stages is None:
        return 0
    tiles = (rows + config.BLOCK_N * widened) * (config.BLOCK_K // widened)
    return tiles * ELEMENT_BYTES * max(config.num_stages - 1, 1)
