"""What is certain about a candidate before it is compiled."""

from __future__ import annotations

from lora_autotune.kernels.schedule import GROUPED_ROWS, MIDDLE_COLUMNS, widened
from lora_autotune.space import Config
from lora_autotune.task import Task
from lora_autotune.trial import Failure

ELEMENT_BYTES = 2


def served_smem_bytes(task: Task, config: Config) -> int:
    """Shared memory that some batch of a server needs, in bytes; 0 where nothing is known.

    A shrink kernel's pipeline keeps an x tile and a weights tile for every stage but the one that
    is being multiplied. A batch of few rows has the config's tile, one in between a tall tile of
    MIDDLE_COLUMNS; those of many rows need less. On the shipped landscapes it foretells 285 of the
    331 candidates that needed more than the device has, and 34 that needed less on the batches that
    were measured, none of them within 1% of the best.
    """
    if task.kernel != "shrink" or config.num_stages is None:
        return 0
    own = config.BLOCK_N, config.BLOCK_K
    columns = min(MIDDLE_COLUMNS, task.S * task.R)
    middle_n, middle_k = widened(own, columns)
    few = (task.chunk_size + own[0]) * own[1]
    middle = (max(task.chunk_size, GROUPED_ROWS) + min(middle_n, columns)) * middle_k
    return max(few, middle) * ELEMENT_BYTES * max(config.num_stages - 1, 1)


def foretold_failure(task: Task, config: Config, *, smem_bytes: int) -> Failure | None:
    """Why a candidate cannot serve where a program has so much shared memory, if that is sure."""
    needed = served_smem_bytes(task, config)
    if needed <= smem_bytes:
        return None
    message = f"needs at least {needed} bytes of shared memory, the device has {smem_bytes}"
    return Failure(kind="resources", message=message)
