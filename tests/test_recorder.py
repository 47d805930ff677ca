"""A whole space is measured, with as much in flight as keeps the evaluator busy."""

from __future__ import annotations

import pytest

from lora_autotune.errors import UsageError
from lora_autotune.evaluators.replay import ReplayEvaluator
from lora_autotune.landscape import read_landscape, write_landscape
from lora_autotune.recorder import record
from lora_autotune.space import DEFAULT_CONFIGS, SearchSpace
from lora_autotune.testing import SPACE, bowl_landscape
from lora_autotune.trial import Pruned, Trial

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
