"""A full disk, or a record that two tuners share, loses no trial and breaks no file."""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import replace

import pytest

from tests.fault_stage import DECODE, EXPAND, LANDSCAPES, SHRINK, Tuner, wait_until, winners


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_a_full_disk_while_recording_is_one_line_and_loses_nothing(tmp_path, share):
    whole_folder, folder = tmp_path / "whole", tmp_path / "small"
    whole_folder.mkdir()
    folder.mkdir()
    with Tuner(whole_folder, LANDSCAPES, delay_s=0.0) as tuner:
        assert tuner.run()[0] == 0
        most_bytes = int(share * tuner.journal.stat().st_size)
    with Tuner(folder, LANDSCAPES, delay_s=0.0) as tuner:
        status, printed = tuner.run(most_bytes=most_bytes)
        assert status == 1
        assert printed.splitlines()[-1] == (
            f"lora-autotune: error: {tuner.journal} cannot be used: File too large"
            " (name another --journal)"
        )
        assert "Traceback" not in printed
        assert tuner.tables() == {}
        assert tuner.journal.stat().st_size <= most_bytes
        assert Counter(tuner.acknowledged()) == Counter(tuner.recorded())
        assert tuner.run()[0] == 0
        assert Counter(tuner.recorded()) == tuner.all_trials()
        assert tuner.tables() == winners(LANDSCAPES)


def test_a_full_disk_while_writing_leaves_the_file_as_it_was(tmp_path):
    with Tuner(tmp_path, [SHRINK], delay_s=0.0) as tuner:
        assert tuner.run()[0] == 0
        before = tuner.tables()
        status, printed = tuner.run(most_bytes=20)
        assert status == 1
        assert printed.splitlines()[-1].endswith(
            "cannot be written: File too large (choose another folder with --out)"
        )
        assert tuner.tables() == before
        assert [path.name for path in tuner.out.rglob(".*~")] == []


def test_two_tuners_of_different_tasks_share_a_record_and_a_file(tmp_path):
    other = replace(SHRINK, task=replace(SHRINK.task, chunk_size=16))
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with Tuner(folders[0], [SHRINK]) as one, Tuner(folders[1], [other, DECODE]) as two:
        shared = ["--journal", str(one.journal), "--out", str(one.out)]
        one.start(words=[])
        two.start(words=shared)
        assert [one.end()[0], two.end()[0]] == [0, 0]
        two.journal, two.out = one.journal, one.out
        for tuner in (one, two):
            assert Counter(tuner.recorded()) == tuner.all_trials()
            assert Counter(tuner.acknowledged()) == tuner.all_trials()
        assert one.tables() == winners([SHRINK, other, DECODE])


@pytest.mark.parametrize("killed", [False, True])
def test_two_tuners_of_the_same_task_lose_no_trial(tmp_path, killed):
    with Tuner(tmp_path, [SHRINK, EXPAND]) as one, Tuner(tmp_path, [SHRINK, EXPAND]) as two:
        pid = one.start()
        two.start()
        if killed:
            wait_until(lambda: one.events() >= 6)
            os.kill(pid, signal.SIGKILL)
        statuses = [one.end()[0], two.end()[0]]
        assert statuses == [-signal.SIGKILL if killed else 0, 0]
        recorded = Counter(one.recorded())
        assert set(recorded) == set(one.all_trials())
        assert not Counter(one.acknowledged()) + Counter(two.acknowledged()) - recorded
        assert one.run()[0] == 0  # finds everything, and measures nothing again
        assert Counter(one.recorded()) == recorded
        assert one.tables() == winners([SHRINK, EXPAND])
