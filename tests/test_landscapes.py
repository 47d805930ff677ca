"""What is claimed of the landscapes that ship."""

from pathlib import Path

import pytest

import lora_autotune.landscape
from lora_autotune.evaluators.cuda import COMPILE_TIMEOUT_S
from lora_autotune.evaluators.measuring import MAX_SPILL_BYTES
from lora_autotune.evaluators.replay import ReplayEvaluator
from lora_autotune.landscape import read_landscape, write_landscape
from lora_autotune.space import DEFAULT_CONFIGS, named_space
from lora_autotune.trial import Measurement
from lora_autotune.tuner import tune

FILES = sorted((Path(lora_autotune.landscape.__file__).parent / "configs/landscapes").iterdir())


pytestmark = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def test_it_holds_the_whole_wide_space_and_the_default(file):
    landscape = read_landscape(file)
    space = named_space("wide", landscape.task.kernel)
    assert landscape.space == space
    assert set(landscape.trials) == {*space, DEFAULT_CONFIGS[landscape.task.kernel]}


def test_it_survives_being_written_again(file, tmp_path):
    landscape = read_landscape(file)
    write_landscape(tmp_path / "again.jsonl.gz", landscape)
    assert read_landscape(tmp_path / "again.jsonl.gz") == landscape


def test_no_pruning_rule_drops_a_config_within_five_percent_of_the_best(file):
    landscape = read_landscape(file)
    _, best = landscape.best()
    near = [
        trial
        for config, trial in landscape.trials.items()
        if (cost := landscape.cost(config)) is not None and cost <= 1.05 * best
    ]
    assert near
    for trial in near:
        assert trial.resources is not None
        assert trial.resources.spill_bytes <= MAX_SPILL_BYTES
        assert trial.compile_s < COMPILE_TIMEOUT_S


def test_replay_answers_what_was_recorded(file):
    landscape = read_landscape(file)
    evaluator = ReplayEvaluator(landscape)
    configs = list(landscape.trials)[::40]
    for config in configs:
        evaluator.submit(config)
    assert [evaluator.collect() for _ in configs] == [landscape.trials[c] for c in configs]
    assert evaluator.replayed


def test_tpe_comes_within_three_percent_of_the_best(file):
    landscape = read_landscape(file)
    result = tune(landscape.task, evaluator=ReplayEvaluator(landscape), strategy="tpe")
    _, best = landscape.best()
    assert result.trials == 100
    assert isinstance(landscape.trials[result.selection.config].outcome, Measurement)
    # A config that loses on one batch does not win, however good its mean.
    assert landscape.cost(result.selection.config) <= 1.03 * best or len(result.workload) > 1
