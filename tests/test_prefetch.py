"""Tiles and weights are fetched ahead where that pays, and where there is a GPU to do it."""

import pytest
import torch
from triton.backends.compiler import GPUTarget

from lora_autotune.evaluators.plan import empty_operands, schedule_of, task_launch, task_offsets
from lora_autotune.kernels.batch import served_batch
from lora_autotune.kernels.blank import NOWHERE
from lora_autotune.kernels.prefetch import prefetches
from lora_autotune.space import DEFAULT_CONFIGS
from lora_autotune.task import DECODE, PREFILL, Instance, Task
from tests.gpus import H200, compile_for


@pytest.mark.parametrize(
    ("target", "rows", "expected"),
    [
        (GPUTarget("cuda", 80, 32), 64, True),
        (GPUTarget("cuda", 90, 32), 64, True),
        (GPUTarget("cuda", 90, 32), 16, False),
        (GPUTarget("cuda", 90, 32), 32, False),
        (GPUTarget("hip", "gfx942", 64), 64, False),
    ],
)
def test_tiles_of_64_rows_are_fetched_ahead(monkeypatch, target, rows, expected):
    compile_for(target, monkeypatch)
    assert prefetches(NOWHERE, rows) is expected
    assert not prefetches(torch.device("cpu"), rows)


def fetches(task: Task, instance: Instance) -> list[bool]:
    """Whether there are any before the launch in front has ended, and later; the default config."""
    batch = served_batch(instance, rank=task.R, chunk_size=task.chunk_size, device=NOWHERE)
    config = DEFAULT_CONFIGS[task.kernel].as_dict()
    schedule = schedule_of(task, batch, config, H200.target)
    operands = empty_operands(task, batch, device=NOWHERE)
    offsets = task_offsets(task, device=NOWHERE)
    binary = task_launch(task, operands, batch, offsets, config, schedule).compile()
    # The first wait is that of programs with nothing to do.
    parts = binary.asm["ptx"].rsplit("griddepcontrol.wait", 1)
    return ["prefetch.global.L2" in part for part in parts]


@pytest.mark.parametrize("width", [1024, 1000])
@pytest.mark.parametrize(
    ("kernel", "instance", "fetched"),
    [
        ("expand", PREFILL, [True, True]),
        ("expand", DECODE, [True, False]),
        ("shrink", PREFILL, [False, False]),
        ("shrink", DECODE, [True, False]),
    ],
)
def test_output_tiles_are_fetched_at_prefill_and_weights_at_decode(
    compiler, width, kernel, instance, fetched
):
    task = Task(kernel=kernel, K=width, R=16, S=1, chunk_size=16)
    assert compiler.call(fetches, task, instance, timeout_s=120) == fetched
