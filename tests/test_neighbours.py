"""Warm starts: which finished task says something about another."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_autotune.neighbours import FARTHEST, distance, hints
from lora_autotune.space import Config
from lora_autotune.task import Task

TASK = Task(kernel="shrink", K=1024, R=64, S=1, chunk_size=32)
ONE, TWO, THREE = (Config(BLOCK_N=n, BLOCK_K=64) for n in (16, 32, 64))
TASKS = st.builds(
    Task,
    kernel=st.sampled_from(["shrink", "expand"]),
    K=st.integers(1, 10_000).map(lambda k: 6 * k),
    R=st.integers(1, 512),
    S=st.integers(1, 3),
    chunk_size=st.sampled_from([16, 32, 64, 128]),
    dtype=st.sampled_from(["float16", "bfloat16"]),
    slice_offsets=st.none(),
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0.0),
        ({"chunk_size": 64}, 1.0),
        ({"chunk_size": 16}, 1.0),
        ({"K": 4096}, 2.0),
        ({"K": 1536}, math.log2(1.5)),
        ({"R": 16}, 2.0),
        ({"S": 2}, 0.5),
        ({"S": 3}, 1.0),
        ({"K": 512, "R": 128, "chunk_size": 128, "S": 3}, 5.0),
        ({"dtype": "bfloat16"}, math.inf),
        ({"kernel": "expand"}, math.inf),
    ],
)
def test_a_distance_counts_doublings_and_half_of_each_slice(changes, expected):
    assert distance(TASK, replace(TASK, **changes)) == pytest.approx(expected)


@given(TASKS, TASKS, TASKS)
def test_it_is_a_distance(one, two, three):
    assert distance(one, one) == 0
    assert distance(one, two) == pytest.approx(distance(two, one))
    assert distance(one, two) >= 0
    assert distance(one, three) <= distance(one, two) + distance(two, three) + 1e-9


def test_the_nearest_finished_task_gives_its_best_in_their_order():
    finished = {
        replace(TASK, chunk_size=64): [ONE],
        replace(TASK, S=2): [TWO, THREE],
        replace(TASK, S=3): [ONE, TWO],
    }
    assert hints(TASK, finished) == (TWO, THREE)


def test_of_equally_near_tasks_the_one_that_finished_first_is_taken():
    finished = {replace(TASK, chunk_size=64): [ONE], replace(TASK, chunk_size=16): [TWO]}
    assert hints(TASK, finished) == (ONE,)


def test_nothing_is_taken_from_too_far_away():
    assert FARTHEST == 1.5
    assert hints(TASK, {replace(TASK, chunk_size=64, S=2): [ONE]}) == (ONE,)
    assert hints(TASK, {replace(TASK, chunk_size=64, S=3): [ONE]}) == ()
    assert hints(TASK, {replace(TASK, K=4096): [ONE]}) == ()


@pytest.mark.parametrize("changes", [{"kernel": "expand"}, {"dtype": "bfloat16"}])
def test_nothing_is_taken_from_another_kernel_or_dtype(changes):
    assert hints(TASK, {replace(TASK, **changes): [ONE]}) == ()


def test_without_finished_tasks_or_their_configs_there_is_nothing():
    assert hints(TASK, {}) == ()
    assert hints(TASK, {TASK: []}) == ()
