"""scripts/bench_workloads.py: its pure parts, and its whole way on a made-up machine."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest

from lora_autotune.config_tree import check_tree
from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluator import Platform
from lora_autotune.provenance import provenance_path, read_provenance_file
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import DECODE, PREFILL, Instance, Task
from lora_autotune.trial import Failure, Measurement, Trial
from lora_autotune.workload import workload_lines

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
BATCHES = (DECODE, PREFILL)
ROUNDS = 3
TASK = Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=16)
BROKEN = Task(kernel="shrink", K=2048, R=64, S=1, chunk_size=16)


def load(name: str) -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))


bench = load("bench_workloads")
rows_of = load("side_by_side")
reports = load("workload_report")
Clock = load("clock").Clock
TunedTree = load("tuned_tree").TunedTree


class Bench:
    """Small tiles are good at decode and large ones at prefill; one task fails the second time."""

    replayed = False
    capacity = 4
    platform = Platform(device="made up", triton="3.6.0", kernels_version="0123456789ab")
    tuned: ClassVar[list[tuple[Task, object]]] = []

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
        if config == DEFAULT_CONFIGS[self.task.kernel]:
            self.tuned.append((self.task, self.workload))
        self._submitted.append(config)

    def poll(self, wait_s, /):
        if not self._submitted:
            return None
        config = self._submitted.pop(0)
        return Trial(config=config, outcome=Measurement(times_us=self.times_us(config)))

    def remeasure(self, configs, /, *, rounds):
        if self.task == BROKEN and rounds == ROUNDS:  # of the script, not of the tuner
            return [[Failure(kind="crash", message="made up")] * rounds for _ in configs]
        return [[self.times_us(config)] * rounds for config in configs]

    def close(self):
        self._submitted.clear()


MACHINE = SimpleNamespace(evaluator=Bench, platform=Bench.platform)


@pytest.fixture(autouse=True)
def _nothing_tuned_yet() -> None:
    Bench.tuned.clear()


def options(*words: str):
    return bench.parse(["--rounds", str(ROUNDS), *words])


def compare(*words: str, tasks=(TASK,), presets=("decode", "prefill")) -> int:
    named = {"decode": (DECODE,), "prefill": (PREFILL,)}
    wanted = {name: named[name] for name in presets}
    return bench.compare(MACHINE, {"a model": tasks}, wanted, options(*words), "a command")


def row(default_us, published_us, workload_us):
    def side(us):
        ratios = tuple(own / other for own, other in zip(us, default_us, strict=True))
        return rows_of.Side(config="made up", us=us, ratios=ratios)

    return rows_of.Row(
        task="a task",
        default_us=default_us,
        published=side(published_us),
        workload=side(workload_us),
        noise=0.0,
    )


def test_both_winners_are_measured_beside_the_default_and_what_fails_is_left_out(tmp_path, capsys):
    out = tmp_path / "it.json"
    assert compare("--out", str(out), tasks=[TASK, BROKEN], presets=["decode"]) == 1
    shown, err = capsys.readouterr()
    assert "a model, decode" in shown
    assert f"{BROKEN}: something is missing or failed, left out" in err
    content = json.loads(out.read_text())
    assert content["platform"]["device"] == "made up"
    (result,) = content["results"]
    (found,) = result["tasks"]
    assert found["task"] == str(TASK)
    assert found["default_us"] == [200.0]
    assert found["workload"]["us"][0] < 1.2 * 100 < found["published"]["us"][0]
    assert found["workload"]["ratios"] == [found["workload"]["us"][0] / 200]
    assert found["noise"] == 0.0


def test_a_config_is_measured_once_whoever_has_it():
    measured = []

    class Once(Bench):
        def remeasure(self, configs, /, *, rounds):
            measured.append(list(configs))
            return super().remeasure(configs, rounds=rounds)

    default, other = DEFAULT_CONFIGS["shrink"], Config(BLOCK_N=32, BLOCK_K=64)
    evaluator = Once(TASK, BATCHES)
    row = rows_of.side_by_side(evaluator, [default, other], ROUNDS)
    assert row.published.us == row.default_us
    assert row.published.ratios == (1.0, 1.0)
    assert rows_of.side_by_side(evaluator, [other, other], ROUNDS).workload == row.workload
    assert measured == [[default, other, default]] * 2


def test_the_winners_are_config_trees_with_provenance_and_are_not_tuned_again(tmp_path):
    words = ["--configs", str(tmp_path)]
    assert compare(*words, presets=["decode"]) == 0
    assert Bench.tuned == [(TASK, (PREFILL,)), (TASK, (DECODE,))]
    assert compare(*words, tasks=[TASK, BROKEN]) == 2  # BROKEN cannot be measured again
    assert Bench.tuned[2:] == [(BROKEN, (PREFILL,)), (BROKEN, (DECODE,))] + [
        (task, (PREFILL,)) for task in (TASK, BROKEN)
    ]
    for name, batches in (("published", PREFILL), ("decode", DECODE), ("prefill", PREFILL)):
        checked = dict(check_tree(tmp_path / name))
        assert len(checked) == 2
        assert set(checked.values()) == {None}
        for file in checked:
            (entry,) = read_provenance_file(provenance_path(file)).values()
            assert entry.workload == workload_lines((batches,))
            assert entry.command == "a command"


def test_what_other_kernels_or_batches_were_tuned_to_is_tuned_again(tmp_path):
    assert compare("--configs", str(tmp_path), presets=["decode"]) == 0
    platform = Bench.platform
    newer = Platform(device="made up", triton="3.6.0", kernels_version="ba9876543210")
    assert TunedTree(tmp_path / "decode", (DECODE,), platform, "").find(TASK) is not None
    assert TunedTree(tmp_path / "decode", (PREFILL,), platform, "").find(TASK) is None
    assert TunedTree(tmp_path / "decode", (DECODE,), newer, "").find(TASK) is None
    assert TunedTree(tmp_path / "decode", (DECODE,), platform, "", "grid").find(TASK) is None
    assert TunedTree(tmp_path / "elsewhere", (DECODE,), platform, "").find(TASK) is None
    assert TunedTree(None, (DECODE,), platform, "").find(TASK) is None


def test_once_the_time_is_up_nothing_is_begun(tmp_path, capsys):
    words = ["--configs", str(tmp_path / "configs"), "--out", str(tmp_path / "it.json")]
    assert compare(*words, "--limit", "0") == 2
    assert Bench.tuned == []
    assert not list(tmp_path.iterdir())
    assert "0 of 1 tasks tuned on decode" in capsys.readouterr().err


def test_a_machine_that_gives_up_on_a_task_loses_no_other_preset(tmp_path, monkeypatch, capsys):
    def poll(self, wait_s, /):
        if self.workload == (DECODE,):
            raise EvaluatorError("does not fit the GPU")
        return working(self, wait_s)

    working = Bench.poll
    monkeypatch.setattr(Bench, "poll", poll)
    assert compare("--out", str(tmp_path / "it.json")) == 1
    (result,) = json.loads((tmp_path / "it.json").read_text())["results"]
    assert result["preset"] == "prefill"
    assert "not all was tuned: does not fit the GPU" in capsys.readouterr().err


def test_the_file_is_whole_after_each_task(tmp_path):
    clock = Clock()
    report = reports.Report(tmp_path / "it.json", {"command": "it"}, clock)
    rows = []
    for count in (1, 2):
        rows.append(row((10.0, 100.0), (12.0, 80.0), (7.0, 70.0)))
        report.put("a model", "decode", BATCHES, rows)
        content = json.loads((tmp_path / "it.json").read_text())
        assert [len(result["tasks"]) for result in content["results"]] == [count]
    report.put("a model", "chat", BATCHES, rows)
    content = json.loads((tmp_path / "it.json").read_text())
    assert [result["preset"] for result in content["results"]] == ["decode", "chat"]
    reports.Report(None, {}, clock).put("a model", "chat", BATCHES, rows)


def test_tasks_are_summed_batch_by_batch_before_batches_are_weighed():
    rows = [
        row((10.0, 100.0), (20.0, 50.0), (5.0, 100.0)),
        row((30.0, 300.0), (20.0, 350.0), (15.0, 100.0)),
    ]
    assert reports.totals(rows) == ((40.0, 400.0), (40.0, 400.0), (20.0, 200.0))
    assert reports.costs(rows, BATCHES) == (1.0, 0.5)


def test_how_far_apart_the_default_is_on_a_batch_that_was_measured_twice():
    one = [row((10.0, 100.0), (10.0, 100.0), (10.0, 100.0))]
    other = [row((10.5, 7.0), (10.5, 7.0), (10.5, 7.0))]
    elsewhere = (BATCHES[0], Instance(tokens=7))
    assert reports.repeatability([(BATCHES, one)]) == []
    (apart,) = reports.repeatability([(BATCHES, one), (elsewhere, other)])
    assert apart == pytest.approx(0.05)


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
    assert [holds for _, holds in reports.promises(preset, rows, BATCHES).values()] == kept


def test_a_table_and_the_promises_are_shown(capsys):
    rows = [row((10.0, 100.0), (12.34, 80.0), (7.0, 70.0))]
    reports.show("a model", "decode", BATCHES, rows)
    shown = capsys.readouterr().out
    for words in ("a model, decode", "a task", "32:8", "12.34", "1.234", "MISSED", "0.700"):
        assert (words in shown) == (words != "MISSED")
    kept = reports.as_json("a model", "decode", BATCHES, rows)
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
