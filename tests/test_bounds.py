"""What is foretold of shared memory holds for every schedule that a batch can have."""

from __future__ import annotations

import random

import pytest

from lora_autotune.evaluators.bounds import pipeline_bytes, served_smem_bytes
from lora_autotune.kernels.batch import BatchSizes
from lora_autotune.kernels.shrink_schedule import shrink_schedule
from lora_autotune.space import Config
from lora_autotune.task import CHUNK_SIZES, Task
from tests.gpus import H200

ROWS = (1, 8, 32, 200, 500, 1000, 2000, 5000, 9000, 20_000, 30_720, 100_000)


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_no_batch_needs_more_than_is_foretold(chunk_size):
    draw = random.Random(chunk_size).choice
    reached = set()
    for _ in range(2000):
        task = Task(
            kernel="shrink",
            K=draw((1024, 2048, 3072, 4096)),
            R=draw((8, 16, 20, 32, 64, 128, 256)),
            S=draw((1, 2, 3)),
            chunk_size=chunk_size,
        )
        config = Config(
            BLOCK_N=draw((16, 32, 64, 128)),
            BLOCK_K=draw((32, 64, 128, 256, 512)),
            num_warps=draw((1, 2, 4, 8)),
            num_stages=draw((1, 2, 3, 4, 5)),
        )
        rows, slots = draw(ROWS), draw((1, 2, 8, 16, 128))
        full = -(-rows // chunk_size)
        sizes = BatchSizes(
            rows=rows,
            adapters=slots,
            segments=draw((full, full + slots - 1)),
            grid_segments=max(full + slots, 16),
            chunk_size=chunk_size,
        )
        columns = task.S * task.R
        schedule = shrink_schedule(sizes, columns, task.K, config.as_dict(), H200.target)
        if schedule.config is not None:
            continue  # has nothing of the config
        launched = schedule.applied_to(config.as_dict())
        tile = launched["BLOCK_N"] * schedule.together, launched["BLOCK_K"]
        needed = pipeline_bytes(schedule.group * sizes.piece_rows, tile, config, H200)
        foretold = served_smem_bytes(task, config, H200)
        assert needed <= foretold, (task, config, sizes, schedule)
        reached.add((needed == foretold, schedule.together > 1, schedule.tile is None))
    assert {(True, True, True), (True, True, False), (True, False, False)} <= reached
    assert chunk_size < 64 or (True, False, True) in reached
