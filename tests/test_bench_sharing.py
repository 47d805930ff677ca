"""scripts/bench_sharing.py: which landscapes make a pair, on which batches, and what is printed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lora_autotune.budgets import FAR_SHARE, default_trials
from lora_autotune.landscape import Landscape, write_landscape
from lora_autotune.task import DECODE, PREFILL
from lora_autotune.testing import bowl_landscape
from lora_autotune.trial import Measurement

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
BOTH = bowl_landscape()
pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))  # until the end: its processes import it too
    try:
        import bench_sharing

        yield bench_sharing
    finally:
        sys.path.remove(str(SCRIPTS))


def of(**changes: object) -> Landscape:
    return replace(BOTH, task=replace(BOTH.task, slice_offsets=None, **changes))  # type: ignore[arg-type]


def test_a_landscape_is_cut_to_some_of_its_batches(script):
    cut = script.narrowed(BOTH, (PREFILL,))
    assert cut.workload == (PREFILL,)
    for config, trial in BOTH.trials.items():
        if isinstance(trial.outcome, Measurement):
            assert cut.trials[config].outcome.times_us == trial.outcome.times_us[1:]
        else:
            assert cut.trials[config] == trial


def test_pairs_share_a_kernel_and_batches_and_those_of_one_chunk_size_come_first(script):
    other_chunk = of(chunk_size=64)
    wide = script.narrowed(of(K=6144), (DECODE,))
    other_rank = of(R=16)
    found = list(script.pairs([other_chunk, BOTH, wide, other_rank]))
    assert [pair.same_chunk for pair in found] == [True, True, False, False, False, False]
    ends = [{pair.scout.task.K, pair.follower.task.K} for pair in found[:2]]
    assert ends == [{4096, 6144}] * 2
    assert all(pair.scout.workload == pair.follower.workload == (DECODE,) for pair in found[:2])
    assert [pair.near for pair in found] == [True, True, False, False, False, False]


def test_a_row_ends_with_the_share_and_the_whole_budget(script):
    (pair, _) = script.pairs([of(K=1024), BOTH])
    rows = script.run((pair, 0, "gp", (2,)))
    starts = {"starting points", "its best 2", "its best 2, then both"}
    assert set(rows) == {script.SCRATCH, *starts}
    share = round(default_trials(BOTH.space) * FAR_SHARE)
    regrets = rows["its best 2"]
    assert regrets[len(script.LENGTHS)] == regrets[script.LENGTHS.index(share)]
    assert regrets[:-2] == sorted(regrets[:-2], reverse=True)


def test_it_prints_the_pairs_of_a_folder_and_what_the_tuner_spends(script, tmp_path, capsys):
    for place, one in enumerate([BOTH, of(K=6144)]):
        write_landscape(tmp_path / f"{place}.jsonl.gz", one)
    words = ["--folder", str(tmp_path), "--seeds", "2", "--hints", "2", "--jobs", "1"]
    assert script.main(words) == 0
    printed = capsys.readouterr().out
    assert "expand (4096,1) chunk 16 -> (6144,1) chunk 16, 32:8+30720:1" in printed
    assert "mean over 2 pairs, close, 2 seeds" in printed
    assert "28 tasks, 584 trials of 992 (59%)" in printed
