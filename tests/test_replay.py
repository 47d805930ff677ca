"""The evaluator without a GPU answers what was recorded, and nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators.replay import ReplayEvaluator
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.testing import SPACE, bowl, bowl_landscape, check_evaluator
from lora_autotune.trial import Failure

LANDSCAPE = bowl_landscape()
CONFIGS = list(SPACE)
FAILING = next(config for config in SPACE if isinstance(bowl(config).outcome, Failure))


def test_it_keeps_the_contract():
    check_evaluator(lambda: ReplayEvaluator(LANDSCAPE), [*CONFIGS[:4], FAILING])


def test_it_answers_what_was_recorded_in_the_order_of_submission():
    evaluator = ReplayEvaluator(LANDSCAPE)
    submitted = [*reversed(LANDSCAPE.trials), CONFIGS[0]]
    for config in submitted:
        evaluator.submit(config)
    answers = [evaluator.collect() for _ in submitted]
    assert answers == [LANDSCAPE.trials[config] for config in submitted]
    assert sum(isinstance(trial.outcome, Failure) for trial in answers) == 9


def test_it_says_that_it_is_a_replay_and_of_what():
    evaluator = ReplayEvaluator(LANDSCAPE, capacity=3)
    assert evaluator.replayed is True
    assert evaluator.capacity == 3
    assert (evaluator.task, evaluator.workload) == (LANDSCAPE.task, LANDSCAPE.workload)
    assert evaluator.platform == LANDSCAPE.platform


def test_a_config_that_was_never_recorded_is_refused_with_a_hint():
    evaluator = ReplayEvaluator(LANDSCAPE)
    stranger = Config(BLOCK_N=512, BLOCK_K=16)
    with pytest.raises(EvaluatorError, match="BLOCK_N=512 BLOCK_K=16 was not recorded") as caught:
        evaluator.submit(stranger)
    assert caught.value.hint
    with pytest.raises(EvaluatorError, match="not recorded"):
        evaluator.remeasure([stranger], rounds=1)
    with pytest.raises(EvaluatorError, match="nothing was submitted"):
        evaluator.collect()


def test_measuring_again_gives_the_same_each_round():
    evaluator = ReplayEvaluator(LANDSCAPE)
    default = DEFAULT_CONFIGS["expand"]
    times_us = LANDSCAPE.trials[default].outcome.times_us
    failure = LANDSCAPE.trials[FAILING].outcome
    assert evaluator.remeasure([default, FAILING], rounds=2) == [[times_us] * 2, [failure] * 2]
    assert evaluator.remeasure([], rounds=2) == []


def test_what_was_submitted_is_forgotten_when_it_is_closed():
    evaluator = ReplayEvaluator(LANDSCAPE)
    evaluator.submit(CONFIGS[0])
    evaluator.close()
    with pytest.raises(EvaluatorError, match="nothing was submitted"):
        evaluator.collect()


def test_it_needs_neither_torch_nor_triton_nor_optuna():
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'triton', 'optuna', 'rich', 'numpy']))\n"
        "from lora_autotune.testing import bowl_landscape, check_evaluator\n"
        "from lora_autotune.evaluators.replay import ReplayEvaluator\n"
        "landscape = bowl_landscape()\n"
        "check_evaluator(lambda: ReplayEvaluator(landscape), list(landscape.space)[:3])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def broken(**changes):
    """A replay evaluator with some of its methods or attributes replaced."""
    return lambda: type("Broken", (ReplayEvaluator,), changes)(LANDSCAPE)


def late(self, config):
    del self, config  # never answers


def priced(self):
    return bowl(self._submitted.popleft().config) if self._submitted else collect(self)


def collect(self):
    return ReplayEvaluator.collect(self)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"replayed": None}, "replayed"),
        ({"submit": late}, None),
        ({"collect": priced}, "knows no cost"),
        ({"collect": lambda self: LANDSCAPE.trials[CONFIGS[0]]}, "nothing was submitted"),
        ({"remeasure": lambda self, configs, rounds: []}, "config and round"),
        (
            {"remeasure": lambda self, configs, rounds: [[(1.0,)] * rounds for _ in configs]},
            "one time for an instance",
        ),
        (
            {"remeasure": lambda self, configs, rounds: [[(1.0, 0.0)] * rounds for _ in configs]},
            "times of",
        ),
    ],
)
def test_the_contract_catches_an_evaluator_that_breaks_it(changes, rule):
    with pytest.raises(AssertionError if rule else EvaluatorError, match=rule):
        check_evaluator(broken(**changes), CONFIGS[:3])
