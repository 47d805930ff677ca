"""How long graphs are and when timing stops: on a made-up GPU, whose clock is exact."""

from __future__ import annotations

import pytest

from lora_autotune.evaluators import measuring, timing
from lora_autotune.evaluators.timing import BEHIND, GRAPH_US, REPLAYS, GraphTimer, median_time_us
from lora_autotune.space import Config

START_US = 5.0
"""What starting a graph takes."""

SLOW = Config(BLOCK_N=16, BLOCK_K=256)
FAST = Config(BLOCK_N=64, BLOCK_K=64)
TIMES_US = {SLOW: 240.0, FAST: 40.0}


class Bench:
    """One set of operands; a launch of a config is how long it takes."""

    def __init__(self, sets: int = 1) -> None:
        self.rotations = 0
        self.sets = sets

    def launches(self, config: Config) -> list:
        class Launch(float):
            def __call__(self) -> None:
                pass

        return [Launch(TIMES_US[config])] * self.sets


@pytest.fixture(autouse=True)
def made_up_gpu(monkeypatch):
    def capture(self, launches):
        self._count = len(launches)
        self.took_us = START_US + sum(launches)
        self.replays = 0

    def time_us(self):
        self.replays += 1
        return self.took_us / self._count

    monkeypatch.setattr(GraphTimer, "_capture", capture)
    monkeypatch.setattr(GraphTimer, "time_us", time_us)


def test_a_graph_of_the_first_candidate_is_as_long_as_wanted():
    bench = Bench()
    timer = GraphTimer(bench, SLOW)
    assert GRAPH_US <= timer.took_us < GRAPH_US + 2 * TIMES_US[SLOW]
    assert timer.rotations == bench.rotations == 3


def test_a_much_faster_candidate_makes_graphs_longer_for_all_that_follow():
    bench = Bench()
    GraphTimer(bench, SLOW)
    fast = GraphTimer(bench, FAST)
    assert fast.took_us >= GRAPH_US * 0.9
    assert fast.time_us() == pytest.approx(TIMES_US[FAST], rel=0.02)
    assert GraphTimer(bench, SLOW).rotations == fast.rotations == bench.rotations


def test_one_that_is_a_little_faster_does_not():
    bench = Bench()
    GraphTimer(bench, SLOW)
    before = bench.rotations
    half = Config(BLOCK_N=32, BLOCK_K=64)
    TIMES_US[half] = 130.0
    assert GraphTimer(bench, half).rotations == before


def test_many_sets_are_gone_through_whole():
    bench = Bench(sets=64)
    timer = GraphTimer(bench, FAST)
    assert (timer.rotations, timer._count) == (1, 64)


def test_side_by_side_all_graphs_are_of_one_length():
    bench = Bench()
    seen = {}
    real = measuring._in_turn

    def watch(graphs):
        seen[graphs[0].took_us] = graphs[0].rotations
        return real(graphs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_in_turn", watch)
        results = measuring._interleaved([bench], [SLOW, FAST, SLOW], 3)
    assert set(seen.values()) == {bench.rotations}
    assert [len(rounds) for rounds in results] == [3, 3, 3]
    assert results[0] == results[2]


@pytest.mark.parametrize("replays", BEHIND)
def test_what_is_over_a_limit_is_replayed_no_more(replays):
    timer = GraphTimer(Bench(), SLOW)
    timer.replays = 0
    time_us, stopped = median_time_us(timer, {replays: 239.0})
    assert (stopped, timer.replays) == (True, 1 + replays)
    assert time_us == pytest.approx(240.0, rel=0.02)


def test_what_is_within_its_limits_is_replayed_in_full():
    timer = GraphTimer(Bench(), SLOW)
    timer.replays = 0
    time_us, stopped = median_time_us(timer, dict.fromkeys(BEHIND, 260.0))
    assert (stopped, timer.replays) == (False, 1 + REPLAYS)
    assert time_us > 240.0


def test_behind_is_in_the_order_of_replays():
    assert list(timing.BEHIND) == sorted(timing.BEHIND)
    assert max(timing.BEHIND) < REPLAYS
