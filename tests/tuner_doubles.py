"""Evaluators of made-up kernels, whose times a formula gives."""

from __future__ import annotations

from dataclasses import replace

from lora_autotune.evaluator import Platform
from lora_autotune.job import Job
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace
from lora_autotune.task import PREFILL, Task
from lora_autotune.trial import Failure, Measurement, Trial

TASK = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=64)
PLATFORM = Platform(device="NVIDIA H200", triton="3.6.0")
DEFAULT = DEFAULT_CONFIGS["shrink"]
CRASH = Failure(kind="crash", message="illegal address")
BUILT_IN = ("grid", "random", "tpe")
"""Strategies that the loop is tested with."""

SPACE = SearchSpace(
    {"BLOCK_N": (16, 32, 64), "BLOCK_K": (64, 128), "num_warps": (4, 8), "num_stages": (2, 3)}
)


class Bench:
    """An evaluator of a made-up kernel: outcomes by config, finished in an order of choice."""

    def __init__(self, outcomes=None, *, capacity=4, order="first", fail_after=None) -> None:
        self.task = TASK
        self.workload = (PREFILL,)
        self.platform = PLATFORM
        self.replayed = False
        self.capacity = capacity
        self.evaluated: list[Config] = []
        self.most_in_flight = 0
        self._outcomes = outcomes or {}
        self._order = order
        self._fail_after = fail_after
        self._in_flight: list[Config] = []

    def outcome(self, config: Config):
        if config in self._outcomes:
            return self._outcomes[config]
        return Measurement(times_us=(time_us(config),))

    def submit(self, config, /):
        assert config not in self.evaluated, "evaluated twice"
        assert config not in self._in_flight, "submitted twice"
        self._in_flight.append(config)
        self.most_in_flight = max(self.most_in_flight, len(self._in_flight))

    def collect(self):
        if self._fail_after is not None and len(self.evaluated) >= self._fail_after:
            raise KeyboardInterrupt
        config = self._in_flight.pop({"first": 0, "last": -1}[self._order])
        self.evaluated.append(config)
        return Trial(config=config, outcome=self.outcome(config), compile_s=0.5)

    def poll(self, wait_s, /):
        return self.collect() if self._in_flight else None

    def remeasure(self, configs, /, *, rounds):
        outcomes = [self.outcome(config) for config in configs]
        return [[o if isinstance(o, Failure) else o.times_us] * rounds for o in outcomes]

    def close(self):
        pass


def time_us(config: Config) -> float:
    if config == DEFAULT:
        return 100.0
    stages = config.num_stages or 1
    return (
        50.0 + abs(config.BLOCK_N - 32) + config.BLOCK_K / 16 + stages + (config.num_warps or 4) / 4
    )


GRID = list(SPACE)
BEST = min(GRID, key=time_us)


class Hall:
    """Evaluators of several tasks that are alike, and when each was asked and measured again.

    The last is the scout of those strategies that have one.
    """

    def __init__(self, count: int, **options) -> None:
        self.benches: list[Bench] = []
        self.begun: set[Task] = set()
        self.most_busy = 0
        self.busy_at_finals: list[int] = []
        self.first_in_flight: list[int] = []
        self._count = count
        self._options = options

    def jobs(self, records=None, fail_after=None):
        for number in range(self._count):
            options = self._options | ({} if number else {"fail_after": fail_after})
            bench = HallBench(self, replace(TASK, K=1024 + 16 * number), **options)
            self.benches.append(bench)
            yield Job(evaluator=bench, space=SPACE, record=records[number] if records else None)

    def busy(self) -> int:
        return sum(bool(bench._in_flight) for bench in self.benches)

    def progress(self, progress):
        self.begun.add(progress.task)


class HallBench(Bench):
    def __init__(self, hall: Hall, task: Task, **options) -> None:
        super().__init__(**options)
        self.task = task
        self._hall = hall

    def submit(self, config, /):
        super().submit(config)
        self._hall.most_busy = max(self._hall.most_busy, self._hall.busy())

    def poll(self, wait_s, /):
        if not self._hall.first_in_flight:
            self._hall.first_in_flight = [len(bench._in_flight) for bench in self._hall.benches]
        return super().poll(wait_s)

    def remeasure(self, configs, /, *, rounds):
        assert not self._in_flight
        self._hall.busy_at_finals.append(self._hall.busy())
        return super().remeasure(configs, rounds=rounds)
