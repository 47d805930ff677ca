"""What is certain about a candidate before it is compiled."""

from __future__ import annotations

from lora_autotune.kernels.schedule import TALL_COLUMNS, widening
from lora_autotune.space import Config
from lora_autotune.task import Task
from lora_autotune.trial import Failure

ELEMENT_BYTES = 2


def least_smem_bytes(task: Task, config: Config) -> int:
    """Shared memory that a program is sure to need, in bytes; 0 where nothing is known.

    A shrink kernel's pipeline keeps an x tile and a weights tile for every stage but the one that
    is being multiplied; the tile is the widest that a schedule may take for the config's. On the
    shipped landscapes it foretells 200 of the 320 candidates that need more than the device has,
    16 that were given up while they compiled, and none that was measured.
    """
    if task.kernel != "shrink" or config.num_stages is None:
        return 0
    widened = widening(config.BLOCK_N, config.BLOCK_K, TALL_COLUMNS)
    rows_and_columns = task.chunk_size + config.BLOCK_N * widened
    tiles = rows_and_columns * (config.BLOCK_K // widened) * ELEMENT_BYTES
    return tiles * max(config.num_stages - 1, 1)


def foretold_failure(task: Task, config: Config, *, smem_bytes: int) -> Failure | None:
    """Why a candidate cannot run where a program has so much shared memory, if that is sure."""
    needed = least_smem_bytes(task, config)
    if needed <= smem_bytes:
        return None
    message = f"needs at least {needed} bytes of shared memory, the device has {smem_bytes}"
    return Failure(kind="resources", message=message)
