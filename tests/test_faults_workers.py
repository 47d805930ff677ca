"""A worker that somebody kills costs nobody anything: all is measured, the winner is the same."""

from __future__ import annotations

import os
import random
import signal
import threading

import pytest

from lora_autotune.evaluators.cuda import CudaMachine
from lora_autotune.space import DEFAULT_CONFIGS
from tests.fault_stage import (
    LANDSCAPES,
    SHRINK,
    WINNERS,
)


@pytest.mark.parametrize("where", ["compiling", "measuring", "again"])
def test_a_worker_that_somebody_kills_costs_nobody_anything(stage, where):
    winner = WINNERS[SHRINK.task]
    for victim in [winner, DEFAULT_CONFIGS["shrink"]]:
        key = SHRINK.task if where == "again" else (SHRINK.task, victim)
        stage.tune([SHRINK], workers=1, **{where: {key: "once, then is killed"}})
        assert (stage.notes / "once").exists()
        (stage.notes / "once").unlink()
        assert stage.results[SHRINK.task].failures == {}
        stage.check_books([SHRINK], {})


class Killer:
    """Kills workers at random moments, but none before the last death was noticed and made good:
    a candidate that is hit twice is out, and so is a machine whose start is."""

    def __init__(self, seed: int) -> None:
        self.killed: list[int] = []
        self._random = random.Random(seed)
        self._due = self._random.randrange(4)
        self._threads: list[threading.Timer] = []

    def watch(self, machine: CudaMachine, progress) -> None:
        self._due -= 1
        way, workers = machine._pipeline, [machine.bench, *machine.compilers]
        jobs = [*way._waiting, *way._compiling.values(), *way._compiled, way._on_bench]
        hit = any(job is not None and job.killed for job in jobs)
        unnoticed = {worker._process.pid for worker in workers} & set(self.killed)
        busy = any(thread.is_alive() for thread in self._threads)
        if self._due < 0 and not (hit or unnoticed or busy or way._failed_starts):
            self._due = self._random.randrange(4)
            worker = self._random.choice([machine.bench, *workers])
            delay_s = self._random.uniform(0, 0.01)
            self._threads.append(threading.Timer(delay_s, self._kill, [worker._process.pid]))
            self._threads[-1].start()

    def _kill(self, pid: int) -> None:
        self.killed.append(pid)
        os.kill(pid, signal.SIGKILL)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("seed", range(3))
def test_workers_killed_from_outside_at_random_moments_cost_nobody_anything(stage, seed):
    killer = Killer(seed)
    stage.tune(LANDSCAPES, watch=killer.watch, before_closing=killer.join)
    assert len(killer.killed) >= 2
    assert all(result.failures == {} for result in stage.results.values())
