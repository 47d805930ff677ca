"""The record: what was acknowledged is there again, and nothing else is touched."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lora_autotune.errors import JournalError
from lora_autotune.evaluator import Platform
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace, named_space
from lora_autotune.task import DECODE, PREFILL, Instance, Task
from lora_autotune.trial import Failure, Measurement, Pruned, Resources, Trial

optuna = pytest.importorskip("optuna")
from lora_autotune.journal import Journal  # noqa: E402

PLATFORM = Platform(device="NVIDIA H200", triton="3.6.0")
TASK = Task(kernel="expand", K=1024, R=64, S=1, chunk_size=16)
WORKLOAD = (replace(DECODE, weight=3.0), PREFILL)
SPACE = named_space("wide", "expand")
DEFAULT = DEFAULT_CONFIGS["expand"]
TRIALS = [
    Trial(config=DEFAULT, outcome=Measurement(times_us=(5.1, 200.7))),
    Trial(
        config=Config(BLOCK_N=32, BLOCK_K=32, num_warps=4, num_stages=2, maxnreg=96),
        outcome=Measurement(times_us=(0.1 + 0.2, 1e-7), coarse=True),
        compile_s=0.57,
        resources=Resources(registers=96, spill_words=8, smem_bytes=16384),
    ),
    Trial(
        config=Config(BLOCK_N=64, BLOCK_K=32, num_warps=4, num_stages=2),
        outcome=Failure(kind="resources", message='no "room"\n\u00b5\ud800 \x00'),
        compile_s=0.1,
    ),
    Trial(
        config=Config(BLOCK_N=48, BLOCK_K=32, num_warps=4, num_stages=2),  # not in the space
        outcome=Pruned(rule="spills", times_us=(9.0,)),
    ),
]
WRITER = """
import sys
from pathlib import Path
from lora_autotune.journal import Journal
from tests_shared import PLATFORM, SPACE, TASK, WORKLOAD, measured
name, start, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
record = Journal(Path(name)).open(TASK, WORKLOAD, PLATFORM, space=SPACE, resume=True)
print("ready", flush=True)
sys.stdin.readline()
for number in range(start, start + count):
    record.append(measured(number))
    print(number, flush=True)
"""


def open_record(path: Path, **changes):
    named = {"workload": WORKLOAD, "platform": PLATFORM, "space": SPACE, "task": TASK} | changes
    task, workload, platform = named.pop("task"), named.pop("workload"), named.pop("platform")
    return Journal(path).open(task, workload, platform, **named)


def filled(path: Path) -> Path:
    record = open_record(path)
    for trial in TRIALS:
        record.append(trial)
    return path


def study_of(path: Path):
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name=TASK.key, storage=storage)


def writer(folder: Path, path: Path, start: int, count: int) -> subprocess.Popen:
    (folder / "tests_shared.py").write_text(
        "from lora_autotune.evaluator import Platform\n"
        "from lora_autotune.space import Config, named_space\n"
        "from lora_autotune.task import DECODE, PREFILL, Task\n"
        "from lora_autotune.trial import Measurement, Trial\n"
        "from dataclasses import replace\n"
        f"PLATFORM = {PLATFORM!r}\nTASK = {TASK!r}\n"
        "WORKLOAD = (replace(DECODE, weight=3.0), PREFILL)\n"
        "SPACE = named_space('wide', 'expand')\n"
        "def measured(number):\n"
        "    return Trial(config=Config(BLOCK_N=16, BLOCK_K=number + 1),\n"
        "                 outcome=Measurement(times_us=(1.0, number + 1.0)))\n"
    )
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, str(folder)])}
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(start), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    return child


def go(child: subprocess.Popen) -> None:
    child.stdin.write("\n")
    child.stdin.flush()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
