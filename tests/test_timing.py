"""How long graphs are and when timing stops: on a made-up GPU, whose clock is exact."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from dataclasses import replace
from weakref import WeakSet

import pytest
import torch

from lora_autotune.evaluators import measuring, timing
from lora_autotune.evaluators.timing import GRAPH_US, GraphTimer, median_time_us
from lora_autotune.kernels.schedule import Schedule
from lora_autotune.pruning import GIVE_UP, REPLAYS, Standings
from lora_autotune.space import Config
from lora_autotune.task import DECODE, PREFILL, Task
from lora_autotune.trial import Measurement, Pruned
from tests.timing_doubles import FAST, SLOW, TIMES_US, Bench

CAPTURE = GraphTimer._capture


pytestmark = pytest.mark.usefixtures("made_up_gpu")


def test_what_launches_hold_lives_as_long_as_their_graph(monkeypatch):
    monkeypatch.setattr(GraphTimer, "_capture", CAPTURE)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda _graph, stream: nullcontext())
    monkeypatch.setattr(torch, "empty", lambda *_size, device: device)
    monkeypatch.setattr(timing, "_capture_stream", lambda: None)
    monkeypatch.setattr(GraphTimer, "time_us", lambda _self: 10.0)
    bench = Bench()
    held = WeakSet()

    class Launch:
        def __init__(self) -> None:
            held.add(self)

        def __call__(self) -> None:
            pass

    monkeypatch.setattr(bench, "launches", lambda _config: [Launch(), Launch()])
    timer = GraphTimer(bench, SLOW)
    gc.collect()
    assert len(held) == 2
    del timer
    gc.collect()
    assert not held


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
    assert (timer.rotations, len(timer._launches)) == (1, 64)


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


@pytest.mark.parametrize("replays", GIVE_UP)
def test_what_is_over_a_limit_is_replayed_no_more(replays):
    timer = GraphTimer(Bench(), SLOW)
    timer.replays = 0
    time_us, stopped = median_time_us(timer, {replays: 239.0})
    assert (stopped, timer.replays) == (True, 1 + replays)
    assert time_us == pytest.approx(240.0, rel=0.02)


def test_what_is_within_its_limits_is_replayed_in_full():
    timer = GraphTimer(Bench(), SLOW)
    timer.replays = 0
    time_us, stopped = median_time_us(timer, dict.fromkeys(GIVE_UP, 260.0))
    assert (stopped, timer.replays) == (False, 1 + REPLAYS)
    assert time_us > 240.0


def test_behind_is_in_the_order_of_replays():
    assert list(GIVE_UP) == sorted(GIVE_UP)
    assert max(GIVE_UP) < REPLAYS


def test_a_candidate_is_timed_on_the_heaviest_batch_first_and_no_further_once_it_is_behind():
    workload = (replace(DECODE, weight=0.5), PREFILL)
    task = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=16)
    subject = measuring.Subject(task=task, workload=workload, seed=0, prune=True)
    benches = [Bench(), Bench()]
    first = measuring._timed(subject, FAST, benches, Standings())
    assert first == Measurement(times_us=pytest.approx((40.0, 40.0), rel=0.02))
    standings = Standings().after(first, workload, is_default=True)
    behind = measuring._timed(subject, SLOW, benches, standings)
    assert isinstance(behind, Pruned)
    assert behind.times_us == (None, pytest.approx(240.0, rel=0.02))
    assert measuring._timed(subject, FAST, benches, standings) == first


def test_what_is_launched_alike_is_timed_once(monkeypatch):
    workload = (replace(DECODE, weight=0.5), PREFILL)
    task = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=16)
    subject = measuring.Subject(task=task, workload=workload, seed=0, prune=True)

    synchronized: list[None] = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda: synchronized.append(None))

    class FewRows(Bench):
        def schedule(self, _config):
            return Schedule(config=(("BLOCK_N", 8), ("BLOCK_K", 512)), spread=True)

    benches = [FewRows(), Bench()]
    first = measuring._timed(subject, FAST, benches, Standings())
    assert not synchronized
    other = measuring._timed(subject, SLOW, benches, Standings())
    assert other.times_us == (first.times_us[0], pytest.approx(240.0, rel=0.02))
    assert synchronized
    # What is measured again, or in full, is.
    monkeypatch.setitem(TIMES_US, FAST, 80.0)
    twice = (pytest.approx(80.0, rel=0.02),) * 2
    assert measuring._timed(subject, FAST, benches, Standings()).times_us == twice
    full = replace(subject, prune=False)
    assert measuring._timed(full, SLOW, benches, Standings()).times_us[0] > 200.0


def test_a_time_that_was_cut_short_is_nobody_elses():
    workload = (PREFILL,)
    task = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=16)
    subject = measuring.Subject(task=task, workload=workload, seed=0, prune=True)
    bench = Bench()
    first = measuring._timed(subject, FAST, [bench], Standings())
    standings = Standings().after(first, workload, is_default=True)
    assert measuring._timed(subject, SLOW, [bench], standings).coarse
    assert [config for config, _ in bench.known_us.values()] == [FAST]


def test_unset_warps_and_stages_are_tritons():
    spelled = replace(SLOW, num_warps=4, num_stages=3)
    assert measuring._launch_of(SLOW, Schedule()) == measuring._launch_of(spelled, Schedule())
    tiled = Schedule(tile=(SLOW.BLOCK_N, SLOW.BLOCK_K))
    assert measuring._launch_of(FAST, tiled) == measuring._launch_of(SLOW, Schedule())
    chosen = Schedule(config=tuple(SLOW.as_dict().items()))
    assert measuring._launch_of(FAST, chosen) == measuring._launch_of(SLOW, Schedule())
    spread = replace(chosen, spread=True)
    assert measuring._launch_of(FAST, spread) != measuring._launch_of(SLOW, Schedule())
