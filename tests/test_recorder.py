"""A whole space is measured, with as much in flight as keeps the evaluator busy."""

from __future__ import annotations

import pytest

from lora_autotune.errors import UsageError
from lora_autotune.evaluators.replay import ReplayEvaluator
from lora_autotune.landscape import landscape_file_name, read_landscape, write_landscape
from lora_autotune.recorder import record
from lora_autotune.space import DEFAULT_CONFIGS, SearchSpace
from lora_autotune.testing import SPACE, bowl_landscape
from lora_autotune.trial import Measurement, Pruned, Trial

LANDSCAPE = bowl_landscape()
DEFAULT = DEFAULT_CONFIGS["expand"]


class Watched(ReplayEvaluator):
    """Answers the last submitted first, and counts."""

    def __init__(self, landscape=LANDSCAPE, *, capacity=4):
        super().__init__(landscape, capacity=capacity)
        self.most_in_flight = 0
        self.order = []

    def submit(self, config, /):
        super().submit(config)
        self.order.append(config)
        self.most_in_flight = max(self.most_in_flight, len(self._submitted))

    def collect(self):
        self._submitted.rotate(1)
        return super().collect()


def test_a_recording_of_a_replay_is_the_landscape():
    assert record(ReplayEvaluator(LANDSCAPE), SPACE) == LANDSCAPE


@pytest.mark.parametrize("capacity", [1, 4, 1000])
def test_the_evaluator_is_kept_busy_and_no_more(capacity):
    evaluator = Watched(capacity=capacity)
    landscape = record(evaluator, SPACE)
    assert evaluator.most_in_flight == min(capacity, len(SPACE) + 1)
    assert evaluator.order == [DEFAULT, *SPACE]
    assert list(landscape.trials) == [DEFAULT, *SPACE]
    assert landscape == LANDSCAPE


def test_each_trial_is_reported_as_it_finishes():
    heard = []
    landscape = record(Watched(), SPACE, on_trial=heard.append)
    assert len(heard) == len(SPACE) + 1
    assert heard != list(landscape.trials.values())  # in the order of finishing
    assert {trial.config: trial for trial in heard} == landscape.trials


def test_a_default_inside_the_space_is_measured_once():
    bare = SearchSpace({"BLOCK_N": (32, 64), "BLOCK_K": (16, 32)})
    bowl = {
        config: Trial(config=config, outcome=LANDSCAPE.trials[DEFAULT].outcome) for config in bare
    }
    source = type(LANDSCAPE)(
        task=LANDSCAPE.task,
        workload=LANDSCAPE.workload,
        platform=LANDSCAPE.platform,
        space=bare,
        trials=bowl,
    )
    evaluator = Watched(source)
    assert record(evaluator, bare) == source
    assert sorted(map(str, evaluator.order)) == sorted(map(str, bare))


def test_what_was_recorded_can_be_shipped(tmp_path):
    landscape = record(ReplayEvaluator(LANDSCAPE), SPACE, note={"date": "2026-01-01"})
    write_landscape(tmp_path / "it.jsonl.gz", landscape)
    assert read_landscape(tmp_path / "it.jsonl.gz") == landscape
    assert landscape.note == {"date": "2026-01-01"}


class Machine:
    """A CudaMachine whose evaluators answer for every task and workload, and say what was asked."""

    def __init__(self):
        self.asked = []

    def evaluator(self, task, workload, *, prune, patient):
        self.asked.append((task, workload, prune, patient))
        return Made(task, workload)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


class Made:
    """Every config takes ten microseconds a batch."""

    capacity = 4
    platform = LANDSCAPE.platform

    def __init__(self, task, workload):
        self.task, self.workload = task, workload
        self._submitted = []

    def submit(self, config, /):
        self._submitted.append(config)

    def collect(self):
        times_us = (10.0,) * len(self.workload)
        return Trial(config=self._submitted.pop(0), outcome=Measurement(times_us=times_us))

    def close(self):
        pass


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {16: "32:8 128:8,zipf 512:1 8192:8,zipf"}),
        (
            ["--max-lora-chunk-size", "128"],
            {16: "32:8", 32: "128:8,zipf", 128: "512:1 8192:8,zipf"},
        ),
    ],
)
def test_a_preset_is_recorded_on_what_reaches_each_chunk_size(
    tmp_path, monkeypatch, words, expected
):
    pytest.importorskip("torch")
    from lora_autotune import cli
    from lora_autotune.cli import recording

    machine = Machine()
    monkeypatch.setattr(recording, "CudaMachine", lambda **_: machine)
    sizes = [str(size) for size in expected]
    command = ["record", "--kernel", "shrink", "-K", "1024", "-S", "3", "--rank", "64"]
    command += ["--workload", "chat", "--chunk-sizes", *sizes, "--out", str(tmp_path)]
    assert cli.main([*command, "--space", "reference", *words]) == 0

    batches = {task.chunk_size: " ".join(map(str, w)) for task, w, *_ in machine.asked}
    assert batches == expected
    assert {(prune, patient) for *_, prune, patient in machine.asked} == {(False, True)}
    files = {read_landscape(file).task: file for file in tmp_path.iterdir()}
    for task, workload, *_ in machine.asked:
        assert files[task].name == landscape_file_name(task, workload)
        assert read_landscape(files[task]).workload == workload
    assert len({file.name for file in files.values()}) == len(expected)


def test_a_pruned_config_ends_it_at_once():
    class Pruning(Watched):
        def collect(self):
            trial = super().collect()
            return Trial(config=trial.config, outcome=Pruned(rule="spills"))

    evaluator = Pruning()
    with pytest.raises(UsageError, match=r"pruned \(spills\)") as caught:
        record(evaluator, SPACE)
    assert caught.value.hint
    assert len(evaluator.order) < 8
