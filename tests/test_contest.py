"""Where finalists are measured again: on several sets of operands, as far as memory goes."""

from __future__ import annotations

import gc
from dataclasses import replace
from weakref import WeakSet

import pytest
import torch
from triton.runtime.errors import OutOfResources

from lora_autotune.evaluators import measuring
from lora_autotune.evaluators.subject import Subject
from lora_autotune.evaluators.timing import GraphTimer
from lora_autotune.kernels.schedule import Schedule
from lora_autotune.task import PREFILL, Task
from lora_autotune.trial import Failure
from tests.gpus import H200
from tests.timing_doubles import FAST, SLOW, TIMES_US, Bench

SUBJECT = Subject(
    task=Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=64),
    workload=(PREFILL,),
    seed=0,
    prune=True,
)


class Memory:
    """Has room for so many sets of operands; remembers how many there were whenever one came."""

    def __init__(self) -> None:
        self.room = 100
        self.seeds: list[int] = []
        self.held: list[int] = []
        self._benches: WeakSet[Bench] = WeakSet()

    def make_bench(self, _task, _instance, *, seed, **_words) -> Bench:
        if self.count() == self.room:
            raise torch.OutOfMemoryError("made up")
        bench = Bench()
        self._benches.add(bench)
        self.seeds.append(seed)
        self.held.append(self.count())
        return bench

    def count(self) -> int:
        gc.collect()
        return len(self._benches)


@pytest.fixture
def memory(monkeypatch, made_up_gpu) -> Memory:
    memory = Memory()
    monkeypatch.setattr(measuring, "make_bench", memory.make_bench)
    monkeypatch.setattr(measuring, "_gpu", H200, raising=False)
    monkeypatch.setattr(measuring, "_operands", {})
    monkeypatch.setattr(measuring, "_right", set())
    monkeypatch.setattr(measuring, "difference_from_reference", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch, "Generator", lambda _device: torch.default_generator)
    return memory


@pytest.fixture
def shares(monkeypatch) -> list[int]:
    """The rounds in each place."""
    found: list[int] = []
    real = measuring._interleaved

    def watch(benches, configs, rounds):
        found.append(rounds)
        return real(benches, configs, rounds)

    monkeypatch.setattr(measuring, "_interleaved", watch)
    return found


@pytest.mark.parametrize(
    ("rounds", "expected"), [(12, [3, 3, 3, 3]), (7, [2, 2, 2, 1]), (2, [1, 1])]
)
def test_rounds_are_shared_out_among_places_that_are_all_there_at_a_time(
    memory, shares, rounds, expected
):
    results = measuring.remeasure(SUBJECT, [SLOW, FAST, SLOW], rounds)
    assert [len(times) for times in results] == [rounds] * 3
    assert [times[-1] for times in results] == [
        (pytest.approx(TIMES_US[config], rel=0.02),) for config in (SLOW, FAST, SLOW)
    ]
    assert shares == expected
    assert memory.held == [place + 1 for place in range(len(expected))]
    assert len(set(memory.seeds)) == len(memory.seeds)
    assert memory.count() == 1  # the one that candidates are measured on


def test_graphs_in_the_other_places_are_as_long_as_in_the_first(memory, monkeypatch):
    captured: list[int] = []
    real = GraphTimer._capture

    def capture(timer, launches):
        captured.append(len(launches))
        real(timer, launches)

    monkeypatch.setattr(GraphTimer, "_capture", capture)
    measuring.remeasure(SUBJECT, [SLOW, FAST], 12)
    longest = max(captured)
    assert captured[-6:] == [longest] * 6  # three places, each config once


def test_where_several_do_not_fit_one_must_do(memory, shares, monkeypatch):
    memory.room = 2
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(memory.count()))
    assert [len(times) for times in measuring.remeasure(SUBJECT, [SLOW, FAST], 12)] == [12, 12]
    assert shares == [3, 3, 12]
    assert emptied == [1]  # the others are gone by then


@pytest.mark.parametrize(
    "words", ["CUDA error: out of memory", "Triton Error [CUDA]: out of memory"]
)
def test_a_graph_that_does_not_fit_is_as_good_a_reason(memory, shares, monkeypatch, words):
    real = measuring._interleaved

    def interleaved(benches, configs, rounds):
        if rounds < 12:
            raise RuntimeError(words)
        return real(benches, configs, rounds)

    monkeypatch.setattr(measuring, "_interleaved", interleaved)
    assert len(measuring.remeasure(SUBJECT, [SLOW, FAST], 12)[0]) == 12


def test_another_error_is_no_reason(memory, monkeypatch):
    def interleaved(*_words):
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(measuring, "_interleaved", interleaved)
    with pytest.raises(SystemExit, match="illegal"):
        measuring.remeasure(SUBJECT, [SLOW, FAST], 12)
    assert memory.held == [1]


def test_other_tasks_make_room_first(memory, shares):
    measuring._prepare(replace(SUBJECT, seed=100))
    memory.room = 4
    assert len(measuring.remeasure(SUBJECT, [SLOW, FAST], 12)[0]) == 12
    assert list(measuring._operands) == [SUBJECT]
    assert shares == [3, 3, 3, *[3, 3, 3, 3]]


def test_what_does_not_fit_even_once_is_said(memory):
    memory.room = 0
    answer = measuring.remeasure(SUBJECT, [SLOW, FAST], 12)
    assert answer == "the workload does not fit the GPU's memory: made up"


def test_graphs_that_never_fit_end_the_process(memory, monkeypatch):
    def out_of_memory(*_words):
        raise torch.OutOfMemoryError("made up")

    monkeypatch.setattr(measuring, "_interleaved", out_of_memory)
    with pytest.raises(SystemExit, match="made up"):
        measuring.remeasure(SUBJECT, [SLOW, FAST], 12)


def test_what_computes_the_wrong_thing_is_not_timed_and_the_others_are(memory, monkeypatch):
    def difference(_task, config, _schedule, _generator, **_words):
        return "off by one" if config == FAST else None

    monkeypatch.setattr(measuring, "difference_from_reference", difference)
    first, wrong, last = measuring.remeasure(SUBJECT, [SLOW, FAST, SLOW], 12)
    assert wrong == [Failure(kind="wrong", message="off by one")] * 12
    assert len(first) == len(last) == 12
    assert not any(isinstance(times, Failure) for times in (*first, *last))


def test_each_way_of_launching_is_checked_once(memory, monkeypatch):
    checked: list[object] = []

    def difference(_task, config, schedule, _generator, **_words):
        checked.append((config, schedule))

    monkeypatch.setattr(measuring, "difference_from_reference", difference)
    ways = Schedule(), Schedule(group=2)
    for schedule in (*ways, ways[0]):
        monkeypatch.setattr(Bench, "schedule", lambda _bench, _config, way=schedule: way)
        measuring.remeasure(SUBJECT, [SLOW, FAST, SLOW], 12)
    assert checked == [(config, way) for way in ways for config in (SLOW, FAST)]
    few_rows = Schedule(config=(("BLOCK_N", 8), ("BLOCK_K", 512)), spread=True)
    monkeypatch.setattr(Bench, "schedule", lambda _bench, _config: few_rows)
    measuring.remeasure(SUBJECT, [SLOW, FAST, SLOW], 12)
    assert checked[4:] == [(SLOW, few_rows)]


def test_what_the_gpu_has_no_room_for_fails_and_the_others_are_timed(memory, monkeypatch):
    def difference(_task, config, *_given, **_words):
        if config == FAST:
            raise OutOfResources(300_000, 232_448, "shared memory")

    monkeypatch.setattr(measuring, "difference_from_reference", difference)
    timed, failed = measuring.remeasure(SUBJECT, [SLOW, FAST], 12)
    assert {failure.kind for failure in failed} == {"resources"}
    assert len(timed) == 12
