"""The record: what was acknowledged is there again, and nothing else is touched."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from lora_autotune.errors import JournalError
from lora_autotune.evaluator import Platform
from lora_autotune.space import SearchSpace, named_space
from lora_autotune.task import PREFILL, Instance
from lora_autotune.trial import Measurement, Trial

optuna = pytest.importorskip("optuna")
from lora_autotune.journal import Journal  # noqa: E402
from tests.journal_cases import (  # noqa: E402
    DEFAULT,
    PLATFORM,
    SPACE,
    TASK,
    TRIALS,
    WORKLOAD,
    filled,
    names,
    open_record,
    study_of,
)


def test_every_trial_comes_back_exactly_and_in_order(tmp_path):
    path = filled(tmp_path / "deep" / "run.journal")
    assert open_record(path, resume=True).trials == TRIALS


def test_a_cost_is_not_kept(tmp_path):
    record = open_record(tmp_path / "a.journal")
    record.append(replace(TRIALS[0], cost=0.5))
    assert open_record(tmp_path / "a.journal", resume=True).trials == [TRIALS[0]]


def test_a_record_knows_what_was_appended_to_it(tmp_path):
    record = open_record(tmp_path / "a.journal")
    record.append(TRIALS[0])
    assert record.trials == [TRIALS[0]]


def test_optuna_reads_states_values_and_equal_axes(tmp_path):
    trials = study_of(filled(tmp_path / "a.journal")).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED"]
    assert trials[0].value == pytest.approx((3 * 5.1 + 200.7) / 4)
    assert trials[0].params["num_warps"] is None
    assert trials[1].params["maxnreg"] == 96
    assert trials[0].distributions == trials[1].distributions == trials[2].distributions
    assert study_of(tmp_path / "a.journal").best_trial.number == 1


def test_optuna_is_quiet_and_its_verbosity_is_left_alone(tmp_path, capfd):
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.DEBUG)
    try:
        filled(tmp_path / "a.journal")
        assert optuna.logging.get_verbosity() == logging.DEBUG
    finally:
        optuna.logging.set_verbosity(level)
    assert capfd.readouterr() == ("", "")


def test_tasks_share_a_file(tmp_path):
    path = filled(tmp_path / "a.journal")
    other = replace(TASK, chunk_size=32)
    open_record(path, task=other).append(TRIALS[0])
    assert open_record(path, resume=True).trials == TRIALS
    assert open_record(path, task=other, resume=True).trials == TRIALS[:1]


def test_without_resume_a_record_with_trials_is_refused(tmp_path):
    path = filled(tmp_path / "a.journal")
    with pytest.raises(JournalError, match=r"4 trials.*--resume"):
        open_record(path)


def test_without_trials_there_is_nothing_to_refuse(tmp_path):
    open_record(tmp_path / "a.journal")
    other = Platform(device="B200", triton="3.7.0")
    open_record(tmp_path / "a.journal", platform=other).append(TRIALS[0])
    assert open_record(tmp_path / "a.journal", platform=other, resume=True).trials == TRIALS[:1]


def test_a_new_driver_goes_on_with_a_record(tmp_path):
    path = filled(tmp_path / "a.journal")
    newer = replace(PLATFORM, driver="580.159.04", torch="2.11.0", kernels_version="0123")
    assert open_record(path, platform=newer, resume=True).trials == TRIALS


def test_a_record_of_another_version_of_the_kernels_is_refused(tmp_path):
    record = open_record(tmp_path / "a.journal", platform=replace(PLATFORM, kernels_version="0123"))
    record.append(TRIALS[0])
    with pytest.raises(JournalError, match="on kernels_version '0123', not '4567'"):
        open_record(
            tmp_path / "a.journal", platform=replace(PLATFORM, kernels_version="4567"), resume=True
        )
    assert open_record(tmp_path / "a.journal", resume=True).trials == TRIALS[:1]  # not known


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"platform": replace(PLATFORM, device="NVIDIA B200")}, ["device", "H200", "B200"]),
        ({"platform": replace(PLATFORM, triton="3.7.1")}, ["triton", "3.6.0", "3.7.1"]),
        ({"platform": replace(PLATFORM, kernels="other")}, ["kernels", "builtin", "other"]),
        ({"workload": (Instance(tokens=64, adapters=2), PREFILL)}, ["workload", "32:8", "64:2"]),
        ({"space": named_space("reference", "expand")}, ["space", "[16, 32, 64, 128, 256]"]),
        ({"replayed": True}, ["replayed", "False", "True"]),
    ],
)
def test_a_record_of_something_else_is_refused_and_says_what(tmp_path, changes, words):
    path = filled(tmp_path / "a.journal")
    before = path.read_bytes()
    with pytest.raises(JournalError) as caught:
        open_record(path, resume=True, **changes)
    assert all(word in str(caught.value) for word in [path.name, *words])
    assert path.read_bytes() == before


def test_a_record_of_other_tasks_cannot_be_resumed(tmp_path):
    journal = Journal(filled(tmp_path / "a.journal"))
    other = replace(TASK, dtype="bfloat16")
    with pytest.raises(JournalError, match="float16"):
        journal.check_resumable([other])
    journal.check_resumable([other, TASK])
    Journal(tmp_path / "new.journal").check_resumable([other])


def test_a_study_that_optuna_made_is_no_record(tmp_path):
    path = tmp_path / "a.journal"
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    study = optuna.create_study(
        study_name=TASK.key, storage=optuna.storages.JournalStorage(backend)
    )
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(JournalError, match=r"a\.journal"):
        open_record(path, resume=True)


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_torn_last_line_is_cut_off_and_nothing_is_glued_to_it(tmp_path, cut):
    path = filled(tmp_path / "a.journal")
    path.write_bytes(path.read_bytes()[:-cut])
    record = open_record(path, resume=True)
    assert record.trials == TRIALS[:-1]
    record.append(TRIALS[-1])
    assert open_record(path, resume=True).trials == TRIALS
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


@pytest.mark.parametrize("tail", [b"\0" * 200_000, b'{"op_code":4,"wor'])
def test_a_line_torn_by_another_process_meanwhile_is_cut_off_too(tmp_path, tail):
    record = open_record(tmp_path / "a.journal")
    record.append(TRIALS[0])
    with (tmp_path / "a.journal").open("ab") as file:
        file.write(tail)
    record.append(TRIALS[1])
    assert open_record(tmp_path / "a.journal", resume=True).trials == TRIALS[:2]


def test_a_file_that_was_torn_in_its_first_line_starts_over(tmp_path):
    (tmp_path / "a.journal").write_bytes(b'{"op_c')
    assert open_record(tmp_path / "a.journal").trials == []


@pytest.mark.parametrize("line", [2, -1])
@pytest.mark.parametrize("junk", [b"junk", b'{"op_code":', b"[]", b"\xff\xfe"])
def test_a_damaged_line_is_named_and_the_file_left_alone(tmp_path, line, junk):
    path = filled(tmp_path / "a.journal")
    lines = path.read_bytes().splitlines()
    lines[line] = junk
    path.write_bytes(b"\n".join(lines) + b"\n")
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"a\.journal is damaged at line"):
        Journal(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("operation", [b'{"op_code":0}', b'{"op_code":99,"worker_id":"x"}'])
def test_an_operation_that_makes_no_sense_is_damage(tmp_path, operation):
    (tmp_path / "a.journal").write_bytes(operation + b"\n")
    with pytest.raises(JournalError, match=r"a\.journal is damaged"):
        Journal(tmp_path / "a.journal")


@pytest.mark.parametrize("content", [b'{"16": {"BLOCK_N": 16}}', b"\x7fELF\0\1", b"hello\n", b"\n"])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "lora.json"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"lora\.json is not a journal"):
        Journal(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, Path(os.devnull), tmp_path / "file" / "a.journal"):
        with pytest.raises(JournalError) as caught:
            Journal(path)
        assert str(path) in str(caught.value)


def test_a_full_disk_is_a_journal_error_and_the_next_append_is_whole(tmp_path, monkeypatch):
    record = open_record(tmp_path / "a.journal")
    record.append(TRIALS[0])

    def full(*_):
        with (tmp_path / "a.journal").open("ab") as file:
            file.write(b'{"op_code":4,"half')
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(optuna.storages.journal.JournalFileBackend, "append_logs", full)
        with pytest.raises(JournalError, match="No space left"):
            record.append(TRIALS[1])
    record.append(TRIALS[2])
    expected = [TRIALS[0], TRIALS[2]]
    assert record.trials == expected
    assert open_record(tmp_path / "a.journal", resume=True).trials == expected


def test_a_bug_is_not_called_damage(tmp_path):
    record = open_record(tmp_path / "a.journal")
    with pytest.raises(ValueError, match="zip"):
        record.append(Trial(config=DEFAULT, outcome=Measurement(times_us=(1.0,))))


def test_a_space_of_other_axes_is_recorded_by_them(tmp_path):
    space = SearchSpace({"BLOCK_N": (16, 64), "BLOCK_K": (16,), "maxnreg": (None, 96)})
    open_record(tmp_path / "a.journal", space=space).append(TRIALS[0])
    assert study_of(tmp_path / "a.journal").trials[0].params == {
        "BLOCK_N": 64,
        "BLOCK_K": 16,
        "maxnreg": None,
    }


def test_a_fresh_journal_keeps_earlier_ones_under_names_of_their_own(tmp_path):
    path = filled(tmp_path / "a.journal")
    (tmp_path / "a-2.journal").write_text("somebody else's")
    for number in (1, 3):
        before = path.read_bytes()
        with Journal(path, fresh=True) as journal:
            assert journal.aside == tmp_path / f"a-{number}.journal"
            assert journal.aside.read_bytes() == before
            record = journal.open(TASK, WORKLOAD, PLATFORM, space=SPACE)
            assert record.trials == []
            for trial in TRIALS[:number]:
                record.append(trial)
    assert open_record(tmp_path / "a-1.journal", resume=True).trials == TRIALS
    assert open_record(tmp_path / "a-3.journal", resume=True).trials == TRIALS[:1]
    assert open_record(path, resume=True).trials == TRIALS[:3]
    assert (tmp_path / "a-2.journal").read_text() == "somebody else's"


def test_without_trials_nothing_is_kept_aside(tmp_path):
    path = tmp_path / "a.journal"
    for _ in range(2):
        with Journal(path, fresh=True) as journal:
            assert journal.aside is None
            journal.open(TASK, WORKLOAD, PLATFORM, space=SPACE)
    assert names(tmp_path) == [".a.journal", "a.journal"]


@pytest.mark.parametrize("content", [b"hello\n", b'{"op_code":0}\n', b'{"op_code":0}\njunk\n'])
def test_what_is_no_record_is_not_moved_either(tmp_path, content):
    path = tmp_path / "a.journal"
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"a\.journal is (not a journal|damaged)"):
        Journal(path, fresh=True)
    assert path.read_bytes() == content
    assert not (tmp_path / "a-1.journal").exists()
