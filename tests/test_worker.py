import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators.worker import Died, Worker, start_fork_server

state = []


def set_up(value):
    state.append(value)


def read_state():
    os.write(1, b"chatter that must not be seen\n")
    return list(state)


def endless():
    while True:
        time.sleep(1)


def endless_with_a_child(path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    path.write_text(str(child.pid))
    endless()


def segfault():
    os.write(2, b"about to go\n")
    ctypes.string_at(0)


def bug():
    raise KeyError("a bug")


def process_id():
    return os.getpid()


@pytest.fixture
def worker():
    one = Worker(set_up, "ready")
    yield one
    one.close()


def alive(pid):
    try:
        with Path(f"/proc/{pid}/stat").open() as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_ends(pid):
    deadline_s = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not alive(pid)


def test_it_is_set_up_once_and_keeps_its_state(worker, capfd):
    assert worker.call(read_state, timeout_s=60) == ["ready"]
    assert worker.call(read_state, timeout_s=60) == ["ready"]
    assert capfd.readouterr().out == ""


def test_a_job_that_hangs_is_killed_and_the_next_one_runs(worker):
    before = worker.call(process_id, timeout_s=60)
    died = worker.call(endless, timeout_s=0.3)
    assert died.timed_out
    assert "0.3 s" in died.message
    assert worker.call(process_id, timeout_s=60) != before
    assert not alive(before)


def test_the_children_of_a_killed_job_die_too(worker, tmp_path):
    note = tmp_path / "pid"
    worker.call(read_state, timeout_s=60)
    assert worker.call(endless_with_a_child, note, timeout_s=5).timed_out
    pid = int(note.read_text())
    assert_ends(pid)


def test_a_job_that_crashes_says_how_and_what_it_printed_last(worker):
    died = worker.call(segfault, timeout_s=60)
    assert isinstance(died, Died)
    assert not died.timed_out
    assert "SIGSEGV" in died.message
    assert "about to go" in died.message
    assert worker.call(read_state, timeout_s=60) == ["ready"]


def test_a_bug_in_a_job_propagates(worker):
    with pytest.raises(EvaluatorError, match="KeyError"):
        worker.call(bug, timeout_s=60)
    assert worker.call(read_state, timeout_s=60) == ["ready"]


def compute():
    while True:
        sum(range(10_000))


def compute_in_a_child():
    subprocess.run([sys.executable, "-c", "while True: sum(range(10_000))"], check=False)


@pytest.mark.parametrize("job", [compute, compute_in_a_child])
def test_a_job_that_computes_too_long_is_killed(worker, job):
    worker.submit(job, timeout_s=300, cpu_limit_s=0.5)
    died = worker.result()
    assert isinstance(died, Died)
    assert died.timed_out
    assert "0.5 s of computing" in died.message
    assert worker.call(read_state, timeout_s=60) == ["ready"]


def test_it_is_warm_after_a_job_until_its_process_is_dead(worker):
    assert not worker.warm
    pid = worker.call(process_id, timeout_s=60)
    assert worker.warm
    os.kill(pid, signal.SIGKILL)
    worker._process.join()
    assert not worker.warm
    worker.call(process_id, timeout_s=60)
    assert worker.warm


@pytest.mark.parametrize(
    ("kind", "ready"), [("ForkServerProcess", None), ("SpawnProcess", process_id)]
)
def test_a_start_that_is_interrupted_leaves_no_file(kind, ready, tmp_path, monkeypatch):
    def interrupted(process):
        raise KeyboardInterrupt

    start_fork_server()  # its socket is no temporary file of ours
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(f"multiprocessing.context.{kind}.start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Worker(ready=ready)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_whose_replacing_is_interrupted_can_be_closed(tmp_path, monkeypatch):
    def interrupted(process):
        raise KeyboardInterrupt

    start_fork_server()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    worker = Worker()
    pid = worker.call(process_id, timeout_s=60)
    monkeypatch.setattr("multiprocessing.context.ForkServerProcess.start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        worker.replace()
    worker.close()
    assert not alive(pid)
    assert list(tmp_path.iterdir()) == []


def blocked_signals():
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_what_is_started_does_not_hear_ctrl_c_and_we_do():
    one = Worker(ready=process_id)
    try:
        assert signal.SIGINT in one.call(blocked_signals, timeout_s=60)
        assert signal.SIGINT not in blocked_signals()
    finally:
        one.close()


def short_sleep():
    time.sleep(1.0)
    return "done"


def test_waiting_is_not_computing(worker):
    worker.submit(short_sleep, timeout_s=300, cpu_limit_s=0.4)
    assert worker.result() == "done"


@pytest.mark.parametrize("of_file", [True, False])
def test_a_script_needs_no_guard_and_no_file(of_file, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from lora_autotune.evaluators.worker import Worker\n"
        "for worker in (Worker(), Worker(ready=os.getpid)):\n"
        "    print(worker.call(os.getppid, timeout_s=60) > 0)\n"
        "    worker.close()\n"
    )
    with script.open() as file:
        done = subprocess.run(
            [sys.executable, script if of_file else "-"],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            stdin=None if of_file else file,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    assert done.stdout.split() == ["True", "True"]


def test_it_outlives_the_thread_that_made_it(tmp_path):
    made = []
    thread = threading.Thread(target=lambda: made.append(Worker(ready=process_id)))
    thread.start()
    thread.join()
    (one,) = made
    try:
        assert one.call(short_sleep, timeout_s=60) == "done"
    finally:
        one.close()


@pytest.mark.parametrize("ready", [None, process_id])
def test_its_processes_have_the_environment_that_it_was_made_in(ready, monkeypatch):
    start_fork_server()
    monkeypatch.setenv("MADE_IN", "this")
    one = Worker(ready=ready)
    try:
        monkeypatch.setenv("MADE_IN", "another")
        assert one.call(os.getenv, "MADE_IN", timeout_s=60) == "this"
        one.replace()
        assert one.call(os.getenv, "MADE_IN", timeout_s=60) == "this"
    finally:
        one.close()
