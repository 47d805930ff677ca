"""Which tasks are alike, which of them goes first, and what it passes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_autotune.evaluator import Platform
from lora_autotune.model import load_model_shape, tasks_for
from lora_autotune.neighbours import Problem, best_configs, close, scouts
from lora_autotune.space import DEFAULT_CONFIGS, Config, named_space
from lora_autotune.task import DECODE, PREFILL, Task, default_workload
from lora_autotune.trial import Failure, Measurement, Pruned, Trial

PLATFORM = Platform(device="NVIDIA H200", triton="3.6.0")
TASK = Task(kernel="shrink", K=2048, R=64, S=1, chunk_size=32)
PROBLEM = Problem(
    task=TASK, workload=(PREFILL,), platform=PLATFORM, space=named_space("wide", "shrink")
)
EXPAND = Task(kernel="expand", K=4096, R=64, S=1, chunk_size=32)
TASKS = st.builds(
    Task,
    kernel=st.sampled_from(["shrink", "expand"]),
    K=st.integers(1, 10_000).map(lambda k: 6 * k),
    R=st.sampled_from([16, 64]),
    S=st.integers(1, 3),
    chunk_size=st.sampled_from([16, 128]),
    slice_offsets=st.none(),
)


def of(task: Task) -> Problem:
    return replace(
        PROBLEM,
        task=task,
        workload=default_workload(task.chunk_size),
        space=named_space("wide", task.kernel),
    )


@pytest.mark.parametrize(
    "other",
    [
        replace(PROBLEM, task=replace(TASK, chunk_size=64)),
        replace(PROBLEM, task=replace(TASK, R=16)),
        replace(PROBLEM, task=replace(TASK, dtype="bfloat16")),
        replace(PROBLEM, task=EXPAND),
        replace(PROBLEM, workload=(DECODE,)),
        replace(PROBLEM, workload=(replace(PREFILL, tokens=8192),)),
        replace(PROBLEM, platform=replace(PLATFORM, triton="3.7.0")),
        replace(PROBLEM, platform=replace(PLATFORM, kernels="sglang 0.5")),
        replace(PROBLEM, space=named_space("reference", "shrink")),
    ],
)
def test_what_differs_in_more_than_its_widths_has_a_scout_of_its_own(other: Problem) -> None:
    assert scouts([PROBLEM, other]) == [0, 1]


def test_widths_alone_make_no_other_kind() -> None:
    tasks = [replace(TASK, K=1024, S=3), TASK, replace(TASK, K=100_000)]
    assert len(set(scouts([of(task) for task in tasks]))) == 1


@pytest.mark.parametrize(
    ("one", "changes", "expected"),
    [
        (TASK, {}, True),
        (TASK, {"K": 3072}, True),
        (TASK, {"K": 4096}, True),
        (TASK, {"K": 4097}, False),
        (TASK, {"K": 1024}, True),
        (TASK, {"S": 2}, False),
        (EXPAND, {"K": 6144, "S": 2, "slice_offsets": (0, 3072, 6144)}, True),
        (EXPAND, {"K": 1024, "slice_offsets": (0, 1024)}, False),
    ],
)
def test_close_is_within_a_doubling_and_for_shrink_of_as_many_slices(
    one: Task, changes: dict[str, object], expected: bool
) -> None:
    other = replace(one, **changes)  # type: ignore[arg-type]
    assert close(one, other) == close(other, one) == expected


def test_the_scout_is_the_one_that_most_are_close_to() -> None:
    widths = [65_536, 3000, 2000, 1000]
    assert scouts([of(replace(TASK, K=width)) for width in widths]) == [2, 2, 2, 2]


def test_of_equals_it_is_the_one_with_the_most_work_and_then_the_first() -> None:
    assert scouts([of(TASK), of(replace(TASK, K=3072))]) == [1, 1]
    far = [replace(TASK, K=1024), replace(TASK, K=1024, S=3), replace(TASK, K=1024, S=2)]
    assert scouts([of(task) for task in far]) == [1, 1, 1]
    slices = [replace(EXPAND, K=6144, slice_offsets=None), replace(EXPAND, S=2, slice_offsets=None)]
    assert scouts([of(task) for task in slices]) == [0, 0]
    assert scouts([of(replace(TASK, K=1024, S=3)), of(replace(TASK, K=3072))]) == [0, 0]


@pytest.mark.parametrize("chunk_size", [16, 32, 64, 128])
def test_the_scouts_of_a_model(chunk_size: int) -> None:
    tasks = tasks_for(load_model_shape("Qwen3-0.6B"), rank=64, chunk_sizes=[chunk_size])
    places = scouts([of(task) for task in tasks])
    assert {(tasks[p].kernel, tasks[p].K, tasks[p].S) for p in places} == {
        ("shrink", 3072, 1),
        ("expand", 6144, 2),
    }


@given(st.lists(TASKS, max_size=12))
def test_everybody_has_one_scout_of_its_kind_who_has_none_but_itself(tasks: list[Task]) -> None:
    problems = [of(task) for task in tasks]
    places = scouts(problems)
    assert [places[place] for place in places] == places
    assert all(
        problems[place].kind == problem.kind
        for place, problem in zip(places, problems, strict=True)
    )
    assert len(set(places)) == len({problem.kind for problem in problems})


def test_without_problems_there_are_no_scouts() -> None:
    assert scouts([]) == []


def test_the_best_are_what_was_measured_without_the_default_the_best_first() -> None:
    def trial(width: int, cost: float | None, *, coarse: bool = False) -> Trial:
        outcome = Measurement(times_us=(1.0,), coarse=coarse)
        return Trial(config=Config(BLOCK_N=width, BLOCK_K=64), outcome=outcome, cost=cost)

    trials = [
        trial(128, 1.3, coarse=True),
        replace(trial(16, 0.5), config=DEFAULT_CONFIGS["shrink"]),
        replace(trial(1, 0.1), outcome=Pruned(rule="behind", times_us=(1.0,))),
        replace(trial(2, None), outcome=Failure(kind="crash", message="made up")),
        trial(4, None),
        trial(64, 0.9),
        trial(32, 0.8),
    ]
    found = best_configs(trials, 8)
    assert [config.BLOCK_N for config in found] == [32, 64, 128]
    assert best_configs(iter(trials), 2) == found[:2]
    assert best_configs([], 3) == ()
