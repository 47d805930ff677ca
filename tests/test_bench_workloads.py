"""The pure parts of scripts/bench_workloads.py, and its whole way on a made-up machine."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lora_autotune.evaluator import Platform
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import DECODE, PREFILL, Task
from lora_autotune.trial import Failure, Measurement, Trial

ROOT = Path(__file__).resolve().parent.parent
BATCHES = (DECODE, PREFILL)
TASK = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=16)
BROKEN = Task(kernel="shrink", K=2048, R=64, S=1, chunk_size=16)


def load() -> ModuleType:
    path = ROOT / "scripts/bench_workloads.py"
    spec = importlib.util.spec_from_file_location("bench_workloads", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_workloads"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


bench = load()


class Bench:
    """Small tiles are good at decode and large ones at prefill; one task fails the second time."""

    replayed = False
    capacity = 4
    platform = Platform(device="made up", triton="3.6.0")

    def __init__(self, task: Task, workload) -> None:
        self.task = task
        self.workload = workload
        self._submitted: list[Config] = []

    def times_us(self, config: Config) -> tuple[float, ...]:
        if config == DEFAULT_CONFIGS[self.task.kernel]:
            return tuple(200.0 for _ in self.workload)
        return tuple(
            100.0 + (config.BLOCK_N if batch.phase == "decode" else 128 - config.BLOCK_N)
            for batch in self.workload
        )

    def submit(self, config, /):
        self._submitted.append(config)

    def poll(self, wait_s, /):
        if not self._submitted:
            return None
        config = self._submitted.pop(0)
        return Trial(config=config, outcome=Measurement(times_us=self.times_us(config)))

    def remeasure(self, configs, /, *, rounds):
        if self.task == BROKEN and len(configs) == 4:  # two sides between two defaults
            return [[Failure(kind="crash", message="made up")] * rounds for _ in configs]
        return [[self.times_us(config)] * rounds for config in configs]


def row(default_us, published_us, workload_us):
    def side(us):
        ratios = tuple(own / other for own, other in zip(us, default_us, strict=True))
        return bench.Side(config="made up", us=us, ratios=ratios)

    return bench.Row(
        task="a task",
        default_us=default_us,
        published=side(published_us),
        workload=side(workload_us),
        noise=0.0,
    )


def test_both_winners_are_measured_beside_the_default_and_what_fails_is_left_out(capsys):
    machine = SimpleNamespace(evaluator=Bench)
    measured = bench.measure(machine, [TASK, BROKEN], {"decode": (DECODE,)}, 3)
    (found,) = measured["decode"].values()
    assert list(measured["decode"]) == [TASK]
    assert found.default_us == (200.0,)
    assert found.workload.us[0] < 1.2 * 100 < found.published.us[0]
    assert found.workload.ratios == (found.workload.us[0] / 200,)
    assert found.noise == 0.0
    assert f"{BROKEN}, decode: something failed, left out" in capsys.readouterr().err


def test_tasks_are_summed_batch_by_batch_before_batches_are_weighed():
    rows = [
        row((10.0, 100.0), (20.0, 50.0), (5.0, 100.0)),
        row((30.0, 300.0), (20.0, 350.0), (15.0, 100.0)),
    ]
    assert bench.totals(rows) == ((40.0, 400.0), (40.0, 400.0), (20.0, 200.0))
    assert bench.costs(rows, BATCHES) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("preset", "workload_us", "kept"),
    [
        ("chat", (10.2, 50.0), [True]),
        ("chat", (10.3, 50.0), [False]),
        ("decode", (7.0, 80.0), [True, True]),
        ("decode", (8.0, 80.0), [True, False]),
        ("prefill", (10.0, 82.0), [True, True]),
        ("prefill", (10.0, 90.0), [True, False]),
    ],
)
def test_what_is_promised_is_checked(preset, workload_us, kept):
    rows = [row((10.0, 100.0), (10.0, 80.0), workload_us)]
    assert [holds for _, holds in bench.promises(preset, rows, BATCHES).values()] == kept


def test_a_report_prints_and_keeps_what_was_measured(capsys):
    rows = [row((10.0, 100.0), (12.34, 80.0), (7.0, 70.0))]
    kept = bench.report("a model", "decode", BATCHES, rows)
    shown = capsys.readouterr().out
    for words in ("a model, decode", "a task", "32:8", "12.34", "1.234", "MISSED", "0.700"):
        assert (words in shown) == (words != "MISSED")
    assert json.loads(json.dumps(kept))["costs"] == {"published": 1.017, "workload": 0.7}


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (2, [0, 6]), (4, [0, 2, 4, 6]), (9, [*range(7)]), (None, [*range(7)])],
)
def test_some_tasks_are_spread_over_all(count, expected):
    assert bench.some(list(range(7)), count) == expected


def test_what_it_takes_by_default():
    options = bench.parse([])
    assert (options.tasks, options.chunk_size) == (4, 16)
    assert bench.parse(["--tasks", "all"]).tasks is None
