"""Journals that processes share: none loses a trial, moves another's journal or leaves a lock."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_autotune.errors import JournalError

pytest.importorskip("optuna")
from lora_autotune.journal import Journal
from tests.journal_cases import (
    PLATFORM,
    SPACE,
    TASK,
    TRIALS,
    WORKLOAD,
    filled,
    go,
    names,
    open_record,
    writer,
)


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    path = tmp_path / "a.journal"
    for turn in range(2):
        child = writer(tmp_path, path, turn * 100_000, 100_000)
        go(child)
        acknowledged = [int(child.stdout.readline()) for _ in range(25)]
        child.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in child.stdout.read().splitlines()]
        child.wait()
        child.stdin.close()
        child.stdout.close()
        trials = open_record(path, resume=True).trials
        here = [t.config.BLOCK_K - 1 for t in trials if turn * 100_000 < t.config.BLOCK_K]
        assert here[: len(acknowledged)] == acknowledged
        assert len(here) <= len(acknowledged) + 1  # one may be on the disk, and not yet told


def test_a_lock_excludes_others_and_goes_with_its_process(tmp_path):
    path = filled(tmp_path / "a.journal")
    code = (
        "import sys, time; from pathlib import Path; from lora_autotune.journal import Journal;"
        "Journal(Path(sys.argv[1]))._lock.acquire(); print('locked', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        text=True,
    )
    assert child.stdout.readline() == "locked\n"
    with path.open("rb") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.kill()
        child.wait()
        child.stdout.close()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert open_record(path, resume=True).trials == TRIALS
    assert names(tmp_path) == [".a.journal", "a.journal"]


def test_two_processes_lose_no_trial(tmp_path):
    path = tmp_path / "a.journal"
    children = [writer(tmp_path, path, start, 40) for start in (0, 1000)]
    for child in children:
        go(child)
    for child in children:
        child.communicate()
        assert child.returncode == 0
    known = {trial.config.BLOCK_K - 1 for trial in open_record(path, resume=True).trials}
    assert known == {*range(40), *range(1000, 1040)}


@pytest.mark.parametrize("trials", [0, 3])
def test_nobody_moves_a_journal_that_another_process_has_open(tmp_path, trials):
    path = tmp_path / "a.journal"
    child = writer(tmp_path, path, 0, 3)
    if trials:
        go(child)
        assert [child.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
    else:
        before = path.read_bytes()
        with pytest.raises(JournalError, match=r"a\.journal is in use"):
            Journal(path, fresh=True)
        assert path.read_bytes() == before
        go(child)
    child.communicate()
    with Journal(path, fresh=True) as journal:
        assert journal.aside == tmp_path / "a-1.journal"
    trials = open_record(tmp_path / "a-1.journal", resume=True).trials
    assert [trial.config.BLOCK_K for trial in trials] == [1, 2, 3]


def test_kill_9_leaves_no_lock_behind(tmp_path):
    path = tmp_path / "a.journal"
    child = writer(tmp_path, path, 0, 100_000)
    go(child)
    assert child.stdout.readline() == "0\n"
    with pytest.raises(JournalError, match=r"a\.journal is in use"):
        Journal(path, fresh=True)
    child.kill()
    child.communicate()
    with Journal(path, fresh=True) as journal:
        assert journal.aside == tmp_path / "a-1.journal"
    assert open_record(tmp_path / "a-1.journal", resume=True).trials


def test_a_journal_begun_afresh_is_shared_like_any_other(tmp_path):
    path = tmp_path / "a.journal"
    with Journal(path, fresh=True) as journal:
        record = journal.open(TASK, WORKLOAD, PLATFORM, space=SPACE)
        child = writer(tmp_path, path, 0, 3)
        go(child)
        record.append(TRIALS[0])
        child.communicate()
        with pytest.raises(JournalError, match=r"a\.journal is in use"):
            Journal(path, fresh=True)
    assert len(open_record(path, resume=True).trials) == 4
    assert names(tmp_path)[:2] == [".a.journal", "a.journal"]


def test_a_record_keeps_its_journal_in_use_until_it_is_closed(tmp_path):
    path = tmp_path / "a.journal"
    journal = Journal(path)
    record = journal.open(TASK, WORKLOAD, PLATFORM, space=SPACE)
    close = journal.close
    del journal
    with pytest.raises(JournalError, match=r"a\.journal is in use"):
        Journal(path, fresh=True)
    close()
    Journal(path, fresh=True).close()
    assert record.trials == []


def test_of_processes_that_begin_afresh_at_once_one_does(tmp_path):
    path = filled(tmp_path / "a.journal")
    code = (
        "import sys; from pathlib import Path; from lora_autotune.journal import Journal\n"
        "from lora_autotune.errors import JournalError\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try: journal = Journal(Path(sys.argv[1]), fresh=True); print(journal.aside, flush=True)\n"
        "except JournalError as error: print(error, flush=True)\n"
        "sys.stdin.readline()\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
            text=True,
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        go(child)
    said = sorted(child.stdout.readline().strip() for child in children)
    for child in children:
        child.communicate("\n")
    assert said[0] == str(tmp_path / "a-1.journal")
    assert all("in use" in line for line in said[1:])
    assert names(tmp_path) == [".a.journal", "a-1.journal", "a.journal"]
    assert open_record(tmp_path / "a-1.journal", resume=True).trials == TRIALS
