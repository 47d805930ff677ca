"""What is claimed of the landscapes that ship, and of those of earlier kernels."""

import json
from pathlib import Path

import pytest

import lora_autotune.landscape
from lora_autotune import cli
from lora_autotune.evaluators.bounds import foretold_defeat, foretold_failure
from lora_autotune.evaluators.candidate import COMPILE_LIMIT_S, COMPILE_LIMIT_TO_DEFAULT
from lora_autotune.evaluators.measuring import MAX_SPILL_WORDS
from lora_autotune.evaluators.replay import ReplayEvaluator
from lora_autotune.landscape import landscape_file_name, read_landscape, write_landscape
from lora_autotune.space import DEFAULT_CONFIGS, Config, named_space
from lora_autotune.trial import MAX_REGRESSION, Failure, Measurement
from lora_autotune.tuner import tune
from tests.gpus import H200

EARLIER = Path(__file__).parent / "landscapes"
"""Of earlier kernels, whose default left much to find: for searching, not to ship."""

SHIPPED = sorted((Path(lora_autotune.landscape.__file__).parent / "configs/landscapes").iterdir())
FILES = [*SHIPPED, *sorted(EARLIER.iterdir())]
SEVERAL = [file for file in FILES if len(read_landscape(file).workload) > 1]

each = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
each_shipped = pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
each_of_several_batches = pytest.mark.parametrize("file", SEVERAL, ids=lambda file: file.name)


def test_there_are_some_of_several_batches_and_none_twice():
    assert set(SEVERAL) & set(SHIPPED)
    found = [read_landscape(file) for file in FILES]
    assert len({(one.task, one.workload, one.platform) for one in found}) == len(found)


@each
def test_its_name_tells_the_task_and_the_batches(file):
    landscape = read_landscape(file)
    assert file.name == landscape_file_name(landscape.task, landscape.workload)


@each_of_several_batches
@pytest.mark.parametrize("seed", [0, 1])
def test_a_replay_with_pruning_chooses_what_loses_on_no_batch(file, seed, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["tune", "--replay", str(file), "--json", "--seed", str(seed), "--out", str(out)]
    assert cli.main(words) == 0
    (result,) = map(json.loads, capsys.readouterr().out.splitlines())
    landscape = read_landscape(file)
    assert len(result["instances"]) == len(landscape.workload)
    times_us = landscape.trials[Config.from_dict(result["config"])].outcome.times_us
    default_us = landscape.trials[DEFAULT_CONFIGS[landscape.task.kernel]].outcome.times_us
    pairs = zip(times_us, default_us, strict=True)
    assert all(time <= (1 + MAX_REGRESSION) * default for time, default in pairs)
    assert [one["time_us"] for one in result["instances"]] == list(times_us)
    if file.parent == EARLIER:  # today all configs launch the same on few rows
        assert "clearly behind after" in (out / "tune.journal").read_text()


@each
def test_it_holds_the_whole_wide_space_and_the_default(file):
    landscape = read_landscape(file)
    space = named_space("wide", landscape.task.kernel)
    assert landscape.space == space
    assert set(landscape.trials) == {*space, DEFAULT_CONFIGS[landscape.task.kernel]}


@each
def test_it_survives_being_written_again(file, tmp_path):
    landscape = read_landscape(file)
    write_landscape(tmp_path / "again.jsonl.gz", landscape)
    assert read_landscape(tmp_path / "again.jsonl.gz") == landscape


@each
def test_no_pruning_rule_drops_a_config_within_five_percent_of_the_best(file):
    landscape = read_landscape(file)
    default = DEFAULT_CONFIGS[landscape.task.kernel]
    _, best = landscape.best()
    near = [
        trial
        for config, trial in landscape.trials.items()
        if (cost := landscape.cost(config)) is not None and cost <= 1.05 * best
    ]
    assert near
    for trial in near:
        assert trial.resources is not None
        assert trial.resources.spill_words <= MAX_SPILL_WORDS
        # Recorded are seconds of wall time on busy cores, no less than those of computing; the
        # default's with the module that launches it. Where there are several batches, several
        # kernels were compiled, which have a limit each.
        assert trial.compile_s < max(
            min(3, len(landscape.workload)) * COMPILE_LIMIT_S,
            COMPILE_LIMIT_TO_DEFAULT * landscape.trials[default].compile_s,
        )


@each_shipped
def test_they_are_of_one_gpu_and_its_kernels(file):
    assert read_landscape(file).platform == read_landscape(SHIPPED[0]).platform


@each_shipped
def test_what_fails_for_shared_memory_is_foretold_and_nothing_else(file):
    landscape = read_landscape(file)
    for config, trial in landscape.trials.items():
        failed = isinstance(trial.outcome, Failure) and trial.outcome.kind == "resources"
        assert failed == (foretold_failure(landscape.task, config, H200) is not None)


@each
def test_what_is_foretold_to_lose_loses_by_far(file):
    landscape = read_landscape(file)
    _, best = landscape.best()
    told = [
        config
        for config in landscape.trials
        if foretold_defeat(landscape.task, landscape.workload, config, H200)
    ]
    costs = [cost for config in told if (cost := landscape.cost(config)) is not None]
    assert all(cost > 5 * best for cost in costs)
    # A decode step's tiles have few rows, whatever the config.
    small = landscape.task.chunk_size == 16 and all(i.tokens < 1024 for i in landscape.workload)
    assert bool(told) != small


@each
def test_replay_answers_what_was_recorded(file):
    landscape = read_landscape(file)
    evaluator = ReplayEvaluator(landscape)
    configs = list(landscape.trials)[::40]
    for config in configs:
        evaluator.submit(config)
    assert [evaluator.collect() for _ in configs] == [landscape.trials[c] for c in configs]
    assert evaluator.replayed


@each
def test_tpe_comes_within_four_percent_of_the_best(file):
    landscape = read_landscape(file)
    result = tune(landscape.task, evaluator=ReplayEvaluator(landscape), strategy="tpe", trials=100)
    _, best = landscape.best()
    assert result.trials == 100
    assert isinstance(landscape.trials[result.selection.config].outcome, Measurement)
    # A config that loses on one batch does not win, however good its mean.
    assert landscape.cost(result.selection.config) <= 1.04 * best or len(result.workload) > 1
