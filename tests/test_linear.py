"""When a layer's product and its LoRA are made in one: what is covered, and what pays."""

import pytest
import torch

from lora_autotune.kernels import linear_forward
from lora_autotune.kernels.batch import make_batch
from lora_autotune.kernels.linear_forward import linear_gap
from lora_autotune.kernels.schedule import Target

ROWS, K, N, R = 8192, 1024, 4096, 64
BOUNDARIES = (0, 2048, 3072, 4096)
BATCH = make_batch([1] * ROWS, ranks=[R] * 8, scalings=[1.0] * 8, chunk_size=128)


def matrices(rows=ROWS, depth=K, width=N, rank=R, slices=3, slots=8, dtype=torch.bfloat16):
    shapes = (rows, depth), (width, depth), (slots, slices * rank, depth), (slots, width, rank)
    return [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]


@pytest.fixture(autouse=True)
def _on_hopper(monkeypatch):
    monkeypatch.setattr(linear_forward, "target", lambda _: Target(132, 90))
    linear_forward._gap.cache_clear()
    yield
    linear_forward._gap.cache_clear()


def test_a_prefill_on_hopper_is_covered():
    assert linear_gap(*matrices(), BATCH, BOUNDARIES) is None


@pytest.mark.parametrize(
    ("changes", "boundaries", "why"),
    [
        ({"rows": 2047}, BOUNDARIES, "2047 rows"),
        ({"dtype": torch.float32}, BOUNDARIES, "dtype torch.float32"),
        ({"dtype": torch.float16}, BOUNDARIES, "dtype torch.float16"),
        ({"slots": 64}, BOUNDARIES, "64 adapters of 3 x 64 columns want too much memory"),
        ({}, (0, 3072, 2048, 4096), "4096 columns, of which slices are (0, 3072, 2048, 4096)"),
        ({"rows": 9000}, BOUNDARIES, "differ"),
        ({"slices": 2}, BOUNDARIES, "differ"),
        ({"width": 4104}, BOUNDARIES, "4104 columns, of which slices are (0, 2048, 3072, 4096)"),
        ({"rank": 20}, BOUNDARIES, "K=1024, N=4096 or R=20 is no multiple of 8"),
        ({"depth": 1020}, BOUNDARIES, "K=1020, N=4096 or R=64 is no multiple of 8"),
        ({}, (0, 2048, 3200, 4096), "do not begin at multiples of 256"),
        ({"width": 1280, "slices": 1}, (0, 1280), "2.4 tiles a multiprocessor"),
    ],
)
def test_what_is_left_to_the_layer_says_why(changes, boundaries, why):
    assert why in linear_gap(*matrices(**changes), BATCH, boundaries)


def test_matrices_that_are_not_copied_in_tiles_are_left_to_the_layer():
    x, weight, lora_a, lora_b = matrices()
    wider = torch.empty((ROWS, K + 8), dtype=x.dtype, device="meta")[:, :K]
    assert linear_gap(wider, weight, lora_a, lora_b, BATCH, BOUNDARIES) == (
        "a matrix is not contiguous"
    )
    weight = weight.half()
    assert linear_gap(x, weight, lora_a, lora_b, BATCH, BOUNDARIES) == (
        "torch.float16 on meta beside torch.bfloat16 on meta"
    )
    one_off = torch.empty(ROWS * K + 1, dtype=torch.bfloat16)[1:].view(ROWS, K)
    on_cpu = [torch.empty(m.shape, dtype=m.dtype) for m in matrices()[1:]]
    assert linear_gap(one_off, *on_cpu, BATCH, BOUNDARIES) == "a matrix is not aligned"


def test_other_gpus_are_left_to_the_layer(monkeypatch):
    monkeypatch.setattr(linear_forward, "target", lambda _: Target(148, 100))
    gap = linear_gap(*matrices(), BATCH, BOUNDARIES)
    assert gap == "compute capability 10.0, not 9.0"


def test_a_few_tiles_for_each_multiprocessor_do_not_pay_nor_a_few_more_than_fill_them():
    pays = [
        linear_gap(*matrices(rows=rows, width=1024, slices=1), batch, (0, 1024)) is None
        for rows, batch in (
            (rows, make_batch([1] * rows, ranks=[R] * 8, scalings=[1.0] * 8, chunk_size=128))
            for rows in (8192, 9216, 12_288, 16_384)
        )
    ]
    assert pays == [False, False, True, True]
