"""What came of a config, and the one number that strategies minimise."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_autotune.space import Config
from lora_autotune.task import Instance
from lora_autotune.trial import (
    FAILURE_KINDS,
    MAX_REGRESSION,
    Failure,
    Measurement,
    Pruned,
    Resources,
    Trial,
    mean_time_us,
    relative_cost,
    tuning_cost,
)

TIME_US = st.floats(0.1, 1e6)
BATCHES = st.lists(st.tuples(TIME_US, TIME_US, st.floats(0.01, 100.0)), min_size=1, max_size=4)


def unzip(batches):
    times_us, baseline_us, weights = zip(*batches, strict=True)
    return times_us, baseline_us, tuple(Instance(tokens=16, weight=weight) for weight in weights)


def test_the_cost_is_the_weighted_mean_of_ratios_not_of_microseconds():
    workload = (Instance(tokens=32, weight=3.0), Instance(tokens=30720, weight=1.0))
    # Decode twice as fast, prefill 10% slower: three parts of one half and one of 1.1.
    assert relative_cost((5.0, 220.0), (10.0, 200.0), workload) == pytest.approx(2.6 / 4)
    assert mean_time_us((5.0, 220.0), workload) == pytest.approx(235.0 / 4)


@given(BATCHES)
def test_the_default_costs_one(batches):
    _, baseline_us, workload = unzip(batches)
    assert relative_cost(baseline_us, baseline_us, workload) == pytest.approx(1.0)


@given(BATCHES, st.floats(0.1, 10.0))
def test_only_the_ratio_of_weights_counts(batches, scale):
    times_us, baseline_us, workload = unzip(batches)
    scaled = tuple(Instance(tokens=16, weight=scale * one.weight) for one in workload)
    cost = relative_cost(times_us, baseline_us, workload)
    assert relative_cost(times_us, baseline_us, scaled) == pytest.approx(cost)
    assert mean_time_us(times_us, scaled) == pytest.approx(mean_time_us(times_us, workload))


@given(BATCHES)
def test_a_mean_lies_between_its_extremes(batches):
    times_us, baseline_us, workload = unzip(batches)
    ratios = [a / b for a, b in zip(times_us, baseline_us, strict=True)]
    slack = 1 + 1e-9
    cost = relative_cost(times_us, baseline_us, workload)
    assert min(ratios) / slack <= cost <= max(ratios) * slack
    assert min(times_us) / slack <= mean_time_us(times_us, workload) <= max(times_us) * slack


@given(BATCHES)
def test_what_loses_nowhere_costs_its_mean_and_what_loses_more_than_that(batches):
    times_us, default_us, workload = unzip(batches)
    worst = max(a / b for a, b in zip(times_us, default_us, strict=True))
    price = tuning_cost(times_us, default_us, workload)
    mean = relative_cost(times_us, default_us, workload)
    assert price == pytest.approx(mean + 2.0 * max(0.0, worst - 1 - MAX_REGRESSION))


@given(BATCHES)
def test_losing_more_on_an_instance_never_pays(batches):
    times_us, default_us, workload = unzip(batches)
    slower_us = (times_us[0] * 1.1, *times_us[1:])
    before, after = (tuning_cost(t, default_us, workload) for t in (times_us, slower_us))
    assert after >= before  # equal where the first time is lost in rounding


@pytest.mark.parametrize("times_us", [(), (1.0,), (1.0, 2.0, 3.0)])
def test_times_of_another_workload_are_a_bug(times_us):
    workload = (Instance(tokens=32), Instance(tokens=64))
    with pytest.raises(ValueError, match="zip"):
        relative_cost(times_us, (1.0, 1.0), workload)
    with pytest.raises(ValueError, match="zip"):
        mean_time_us(times_us, workload)


@pytest.mark.parametrize(
    "outcome",
    [
        Measurement(times_us=(1.0, 2.0)),
        Measurement(times_us=(1.0,), coarse=True),
        Failure(kind="crash", message="illegal address"),
        Pruned(rule="spills", times_us=(1.0,)),
    ],
)
def test_a_trial_crosses_processes(outcome):
    trial = Trial(
        config=Config(BLOCK_N=16, BLOCK_K=64),
        outcome=outcome,
        compile_s=0.5,
        resources=Resources(registers=64, spill_words=0, smem_bytes=1024),
    )
    again = pickle.loads(pickle.dumps(trial))
    assert again == trial
    assert {trial: "known"}[again] == "known"


def test_the_kinds_of_failure_are_what_the_record_knows():
    assert FAILURE_KINDS == ("compile", "timeout", "resources", "crash", "wrong", "memory")
