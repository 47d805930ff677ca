"""What goes wrong with a candidate is its failure alone; nothing is left, the winner stays."""

from __future__ import annotations

import pytest

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators import candidate, pipeline
from lora_autotune.evaluators.cuda import CudaMachine
from lora_autotune.space import DEFAULT_CONFIGS
from lora_autotune.trial import Measurement
from lora_autotune.tuner import tune_all
from tests.fault_stage import (
    DECODE,
    EXPAND,
    LANDSCAPES,
    SHRINK,
    WINNERS,
    losers,
)


def assert_failed(stage, config, kind, words):
    failure = stage.failure(SHRINK.task, config)
    assert failure.kind == kind
    assert words in failure.message


def test_without_faults_everything_is_measured_and_the_winners_are_the_replays(stage):
    stage.tune(LANDSCAPES)
    assert all(result.failures == {} for result in stage.results.values())


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("sleeps", "timeout", "while measuring: over its limit of 1.5 s"),
        ("computes", "timeout", "while measuring: over its limit of 1.5 s"),
        ("spawns, then stops", "timeout", "while measuring: over its limit of 1.5 s"),
        ("is killed", "crash", "while measuring: the process died: killed by SIGKILL"),
        ("spawns, then is killed", "crash", "killed by SIGKILL"),
        ("segfaults", "crash", "while measuring: the process died: killed by SIGSEGV"),
        ("spawns, then segfaults", "crash", "killed by SIGSEGV"),
        ("chatters, then segfaults", "crash", "killed by SIGSEGV: \x1b[31mlast words"),
        ("chatters, then leaves", "crash", "exit code 3: \x1b[31mlast words"),
        ("answers half, then leaves", "crash", "exit code 3"),
        ("illegal address", "crash", "CUDA error: an illegal memory access was encountered"),
        ("out of memory", "memory", "CUDA out of memory. Tried to allocate 9 GiB."),
        ("out of memory to load", "memory", "Triton Error [CUDA]: out of memory"),
        ("out of registers", "resources", "out of resource: registers"),
        ("wrong result", "wrong", "relative error 0.02"),
        ("NaN in the last row", "wrong", "relative error nan"),
    ],
)
def test_a_fault_while_measuring_is_the_failure_of_its_candidate(
    stage, monkeypatch, capfd, fault, kind, words
):
    if kind == "timeout":
        monkeypatch.setattr(pipeline, "MEASURE_TIMEOUT_S", 1.5)
    config = losers(SHRINK)[0]
    stage.tune([SHRINK], workers=1, measuring={(SHRINK.task, config): fault})
    assert_failed(stage, config, kind, words)
    assert stage.results[SHRINK.task].failures == {kind: 1}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("is killed", "compile", "while compiling: the process died: killed by SIGKILL"),
        (
            "spawns, then segfaults",
            "compile",
            "while compiling: the process died: killed by SIGSEG",
        ),
        ("chatters, then leaves", "compile", "exit code 3: \x1b[31mlast words"),
        ("needs too much host memory", "compile", "MemoryError: no memory for this"),
        ("has a bug", "compile", "KeyError: 'of the compiler'"),
        ("computes", "timeout", "while compiling: over its limit of 1.2 s of computing"),
        ("sleeps", "timeout", "while compiling: over its limit of 1.5 s"),
        ("spawns, then stops", "timeout", "while compiling: over its limit of 1.5 s"),
    ],
)
def test_a_fault_while_compiling_is_the_failure_of_its_candidate(
    stage, monkeypatch, capfd, fault, kind, words
):
    if kind == "timeout":
        monkeypatch.setattr(candidate, "COMPILE_LIMIT_S", 0.4)
        monkeypatch.setattr(candidate, "PATIENT_COMPILE_LIMIT_S", 1.2)
        monkeypatch.setattr(pipeline, "COMPILE_TIMEOUT_S", 1.5 if fault != "computes" else 60.0)
    config = losers(SHRINK)[0]
    stage.tune([SHRINK], compiling={(SHRINK.task, config): fault})
    assert_failed(stage, config, kind, words)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("patient", [True, False])
def test_what_compiles_slowly_is_measured_last_by_a_grid_and_given_up_by_others(
    stage, monkeypatch, patient
):
    monkeypatch.setattr(candidate, "COMPILE_LIMIT_S", 0.4)
    config = losers(SHRINK)[0]
    stage.tune([SHRINK], patient=patient, compiling={(SHRINK.task, config): "computes a little"})
    trials = {trial.config: trial for trial in stage.records[SHRINK.task].trials}
    if patient:
        assert list(trials)[-1] == config
        assert isinstance(trials[config].outcome, Measurement)
    else:
        failure = stage.failure(SHRINK.task, config)
        assert failure.kind == "timeout"
        assert "0.4 s of computing" in failure.message
        assert trials[config].compile_s == 0.4


def test_chatter_and_children_of_a_good_candidate_are_neither_seen_nor_left(stage, capfd):
    config = losers(SHRINK)[0]
    fault = {(SHRINK.task, config): "chatters, then spawns"}
    stage.tune([SHRINK], compiling=fault, measuring=fault)
    assert len(list(stage.notes.glob("child-*"))) == 2
    assert stage.results[SHRINK.task].failures == {}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("is killed", "crash"),
        ("sleeps", "timeout"),
        ("illegal address", "crash"),
    ],
)
def test_where_finalists_cannot_be_measured_again_the_default_stands(
    stage, monkeypatch, fault, words
):
    monkeypatch.setattr(pipeline, "REMEASURE_TIMEOUT_S", 1.5)
    monkeypatch.setitem(WINNERS, SHRINK.task, DEFAULT_CONFIGS["shrink"])
    stage.tune([SHRINK, DECODE], again={SHRINK.task: fault})
    selection = stage.results[SHRINK.task].selection
    assert not selection.tuned
    assert selection.reason == (
        f"the default stands: the default failed when it was measured again ({words})"
    )


def test_one_that_loses_where_it_was_not_tuned_does_not_win(stage, monkeypatch):
    best = WINNERS[EXPAND.task]
    monkeypatch.setitem(WINNERS, EXPAND.task, DEFAULT_CONFIGS["expand"])  # all others lose anyway
    stage.tune(LANDSCAPES, losing={(EXPAND.task, best)})
    finalists = stage.results[EXPAND.task].selection.finalists
    (verdict,) = [finalist.verdict for finalist in finalists if finalist.config == best]
    assert "on the held-out batch of 512 tokens in 12 of 12 rounds (median +100.0%)" in verdict


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "too large",
            "the workload does not fit the GPU's memory: CUDA out of memory. Tried much.",
        ),
        ("has a bug on the device", "a worker's job failed unexpectedly"),
    ],
)
def test_where_nothing_can_be_measured_it_is_one_clear_error(stage, fault, words):
    stage.play(measuring={(SHRINK.task, DEFAULT_CONFIGS["shrink"]): fault})
    with (
        pytest.raises(EvaluatorError) as caught,
        CudaMachine(compile_workers=2) as machine,
    ):
        list(tune_all(stage.jobs(machine, LANDSCAPES), strategy="grid"))
    assert words in str(caught.value)
    if fault == "too large":
        (line,) = str(caught.value).splitlines()
        assert str(SHRINK.task) in line
        assert "--tokens" in line
    stage.check_traces()


def test_faults_of_three_tasks_at_once_stay_with_their_candidates(stage, monkeypatch):
    monkeypatch.setattr(candidate, "COMPILE_LIMIT_S", 0.5)
    monkeypatch.setattr(candidate, "PATIENT_COMPILE_LIMIT_S", 0.7)
    monkeypatch.setattr(pipeline, "MEASURE_TIMEOUT_S", 5.0)
    kinds = {}
    faults = {"compiling": {}, "measuring": {}}
    for landscape, first in zip(LANDSCAPES, [0, 1, 2], strict=True):
        measured = ["illegal address", "is killed", "NaN in the last row", "spawns, then segfaults"]
        compiled = ["spawns, then segfaults", "has a bug"]
        if first == 0:
            measured[0], compiled[1] = "sleeps", "computes"
        chosen = iter(losers(landscape)[first:])
        for where, names in (("measuring", measured), ("compiling", compiled)):
            for name, config in zip(names, chosen, strict=False):
                faults[where][landscape.task, config] = name
                kinds[landscape.task, config] = {
                    "sleeps": "timeout",
                    "computes": "timeout",
                    "NaN in the last row": "wrong",
                }.get(name, "crash" if where == "measuring" else "compile")
    stage.tune(LANDSCAPES, **faults)
    for (task, config), kind in kinds.items():
        assert stage.failure(task, config).kind == kind
    assert sum(sum(r.failures.values()) for r in stage.results.values()) == len(kinds) == 18
