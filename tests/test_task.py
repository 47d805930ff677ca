"""Tasks, the batches they are timed on, and what makes no sense."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_autotune.errors import UsageError
from lora_autotune.task import (
    BETWEEN,
    CHUNK_SIZES,
    DECODE,
    MAX_RANK,
    PREFILL,
    SMALL_BATCH,
    Instance,
    Task,
    default_workload,
    held_out_workload,
    offsets_from_widths,
)

SHRINK = {"kernel": "shrink", "K": 1024, "R": 64, "S": 3, "chunk_size": 64}
EXPAND = {"kernel": "expand", "K": 4096, "R": 64, "S": 3, "chunk_size": 64}


def shrink(**changes):
    return Task(**{**SHRINK, **changes})


def expand(**changes):
    return Task(**{**EXPAND, "slice_offsets": (0, 2048, 3072, 4096), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": "stretch"}, "unknown kernel 'stretch'.*shrink, expand"),
        ({"dtype": "float32"}, "unknown dtype 'float32'.*float16, bfloat16"),
        ({"K": 0}, "K must be a positive integer, not 0"),
        ({"K": 1024.0}, "K must be a positive integer"),
        ({"K": "1024"}, "K must be a positive integer"),
        ({"R": True}, "R must be a positive integer, not True"),
        ({"R": MAX_RANK + 1}, "rank 513 is over the largest supported, 512"),
        ({"S": -1}, "S must be a positive integer"),
        ({"chunk_size": 8}, "chunk size 8.*16, 32, 64, 128"),
        ({"chunk_size": 48}, "chunk size 48"),
        ({"slice_offsets": (0, 1024)}, "slice offsets belong to expand"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        shrink(**changes)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ((0, 2048, 4096), "do not cut 4096 columns into 3"),
        ((1, 2048, 3072, 4096), "do not cut"),
        ((0, 2048, 3072, 4000), "do not cut"),
        ((0, 3072, 2048, 4096), "do not increase"),
        ((0, 2048, 2048, 4096), "do not increase"),
    ],
)
def test_slices_that_do_not_cut_the_output_are_refused(offsets, message):
    with pytest.raises(UsageError, match=message):
        expand(slice_offsets=offsets)


def test_without_offsets_the_slices_are_equal():
    task = expand(K=4098, slice_offsets=None)
    assert task.slice_offsets == (0, 1366, 2732, 4098)
    assert task == expand(K=4098, slice_offsets=(0, 1366, 2732, 4098))
    assert shrink().slice_offsets is None
    with pytest.raises(UsageError, match=r"4096 columns is not 3 equal slices.*--slices"):
        expand(slice_offsets=None)


def test_the_edges_are_allowed():
    assert shrink(K=1, R=1, S=1, chunk_size=16).K == 1
    assert shrink(R=MAX_RANK).R == MAX_RANK
    assert shrink(chunk_size=256).chunk_size == 256


def test_a_task_is_a_value():
    task = expand()
    assert pickle.loads(pickle.dumps(task)) == task
    assert hash(task) == hash(expand())
    with pytest.raises(FrozenInstanceError):
        task.K = 1  # type: ignore[misc]


def test_every_field_is_in_the_key():
    tasks = [
        shrink(),
        shrink(K=2048),
        shrink(R=32),
        shrink(S=1),
        shrink(chunk_size=16),
        shrink(dtype="bfloat16"),
        expand(),
        expand(slice_offsets=(0, 1024, 3072, 4096)),
    ]
    assert len({task.key for task in tasks}) == len(tasks)
    assert expand().key == "expand,K=4096,R=64,S=3,chunk=64,float16,slices=2048+1024+1024"
    assert str(shrink()) == "shrink K=1024 R=64 S=3 chunk 64"


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=8))
def test_offsets_and_widths_are_inverse(widths):
    offsets = offsets_from_widths(widths)
    assert [b - a for a, b in itertools.pairwise(offsets)] == widths
    task = expand(K=sum(widths), S=len(widths), slice_offsets=offsets)
    assert task.slice_offsets == offsets


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": 0}, "at least one token"),
        ({"tokens": 8, "adapters": 0}, "one adapter"),
        ({"tokens": 8, "adapters": 9}, "8 tokens cannot be spread over 9 adapters"),
        ({"tokens": 8, "weight": 0.0}, "positive and finite"),
        ({"tokens": 8, "weight": -1.0}, "positive and finite"),
        ({"tokens": 8, "weight": float("inf")}, "positive and finite"),
        ({"tokens": 8, "weight": float("nan")}, "positive and finite"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Instance(**values)


def test_a_batch_prints_as_it_is_typed():
    assert str(DECODE) == "32:8"


def test_each_chunk_size_is_timed_on_the_batches_that_reach_it():
    workloads = {size: default_workload(size) for size in CHUNK_SIZES}
    assert workloads == {
        16: (DECODE, PREFILL),
        32: (SMALL_BATCH, PREFILL),
        64: (PREFILL,),
        128: (PREFILL,),
    }


@pytest.mark.parametrize("size", CHUNK_SIZES)
def test_batches_between_share_the_weight_of_the_large_one(size):
    usual, more = default_workload(size), default_workload(size, between=True)
    assert set(more) - set(usual) == {replace(one, weight=0.25) for one in (*BETWEEN, PREFILL)}
    assert sum(one.weight for one in more) == sum(one.weight for one in usual)
    assert held_out_workload(more, size) == ()


@pytest.mark.parametrize(
    ("values", "printed"),
    [
        ({"tokens": 32, "adapters": 8, "phase": "decode"}, "32:8"),
        ({"tokens": 30_720, "phase": "prefill", "weight": 3.0}, "30720:1"),
        ({"tokens": 32, "adapters": 8, "phase": "prefill"}, "32:8,prefill"),
        ({"tokens": 300, "phase": "decode", "graph_batch": 512}, "300:1,decode,graph=512"),
        (
            {"tokens": 64, "adapters": 8, "spread": "zipf", "ranks": (8, 64)},
            "64:8,zipf,ranks=8+64",
        ),
    ],
)
def test_a_batch_prints_only_what_is_not_as_usual(values, printed):
    instance = Instance(**values)
    assert str(instance) == printed
    unusual = set(instance.as_dict()) - {"tokens", "adapters", "weight"}
    assert len(unusual) == printed.count(",")


def test_the_usual_phase_follows_from_the_tokens():
    assert [Instance(tokens=n).phase for n in (1, 256, 257)] == ["decode", "decode", "prefill"]
    assert Instance(tokens=256) == Instance(tokens=256, phase="decode")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spread": "uneven"}, "unknown spread 'uneven' .*even, zipf"),
        ({"phase": "idle"}, "unknown phase 'idle' .*decode, prefill"),
        ({"graph_batch": 0}, "a CUDA graph of 0 requests"),
        ({"phase": "prefill", "graph_batch": 64}, "only a decode batch"),
        ({"ranks": ()}, "make no sense"),
        ({"ranks": (0, 8)}, "ranks .0, 8. of 1 adapters make no sense"),
        ({"ranks": (MAX_RANK + 1,)}, "to 512"),
        ({"ranks": (-8,)}, "0 .no adapter."),
    ],
)
def test_details_that_make_no_sense_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Instance(tokens=8, **values)
