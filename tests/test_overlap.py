"""Launches that overlap give what launches one after the other give."""

import pytest
import torch
from triton.backends.compiler import GPUTarget

from lora_autotune.kernels.batch import make_batch
from lora_autotune.kernels.blank import NOWHERE
from lora_autotune.kernels.launch import Launch, expand_launch, shrink_launch
from lora_autotune.kernels.overlap import overlap_options
from lora_autotune.space import DEFAULT_CONFIGS
from tests.gpus import compile_for

LAYERS, ROWS, WIDTH, RANK = 40, 200, 2048, 16


@pytest.mark.parametrize(
    ("target", "overlaps"),
    [
        (GPUTarget("cuda", 80, 32), False),
        (GPUTarget("cuda", 89, 32), False),
        (GPUTarget("cuda", 90, 32), True),
        (GPUTarget("cuda", 120, 32), True),
        (GPUTarget("hip", "gfx942", 64), False),
    ],
)
def test_launches_overlap_from_hopper_on(monkeypatch, target, overlaps):
    compile_for(target, monkeypatch)
    options = overlap_options(NOWHERE, ahead=8)
    assert options["OVERLAP"] is overlaps
    assert options["AHEAD"] == (8 if overlaps else 0)
    assert ("launch_pdl" in options) is overlaps


def test_the_interpreter_does_not():
    options = overlap_options(torch.device("cpu"), ahead=8)
    assert options == {"AHEAD": 0, "OVERLAP": False}


def layers(batch) -> list[Launch]:
    """Shrink and expand in turns, each on what the one before wrote."""
    generator = torch.Generator("cuda").manual_seed(0)

    def fresh(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16)

    offsets = torch.tensor([0, WIDTH], device="cuda")
    found, x = [], fresh(ROWS, WIDTH)
    for _ in range(LAYERS):
        inner, output = torch.full_like(fresh(ROWS, RANK), torch.nan), fresh(ROWS, WIDTH)
        down, up = fresh(4, RANK, WIDTH) / 45, fresh(4, WIDTH, RANK) / 4
        found += [
            shrink_launch(x, down, inner, batch, 1, DEFAULT_CONFIGS["shrink"].as_dict()),
            expand_launch(inner, up, output, batch, offsets, DEFAULT_CONFIGS["expand"].as_dict()),
        ]
        x = output
    return found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("chunk_size", [16, 64])
@pytest.mark.parametrize("grid_segments", [None, 256])
def test_overlapping_launches_wait_for_each_other(grid_segments, chunk_size):
    batch = make_batch(
        torch.arange(ROWS) % 4,
        ranks=[RANK, 0, 8, RANK],
        scalings=[1.0] * 4,
        chunk_size=chunk_size,
        grid_segments=grid_segments,
        device="cuda",
    )
    one_by_one, captured = layers(batch), layers(batch)
    for launch in one_by_one:
        launch()
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in captured:
            launch()
    graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(one_by_one, captured, strict=True):
        assert torch.equal(one.args[2].nan_to_num(), other.args[2].nan_to_num())
