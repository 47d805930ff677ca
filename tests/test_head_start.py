import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_autotune.evaluators import bench_jobs, head_start
from tests import fault_jobs
from tests.test_worker import alive, process_id, read_state, set_up


@pytest.fixture(autouse=True)
def _nothing_to_import(monkeypatch):
    monkeypatch.setattr(bench_jobs, "get_ready", fault_jobs.get_ready)
    monkeypatch.setattr(bench_jobs, "set_up", set_up)
    yield
    head_start._close_unused()


def test_the_process_that_was_started_early_is_the_next_one_that_measures():
    head_start.start_early()
    (early,) = head_start._bench
    worker = head_start.bench_worker("the cache")
    try:
        assert worker is early
        assert worker.call(read_state, timeout_s=60) == ["the cache"]
        other = head_start.bench_worker("another")
        try:
            assert other.call(process_id, timeout_s=60) != worker.call(process_id, timeout_s=60)
        finally:
            other.close()
    finally:
        worker.close()


def test_one_that_died_while_it_waited_is_replaced():
    head_start.start_early()
    (early,) = head_start._bench
    os.kill(early._process.pid, signal.SIGKILL)
    early._process.join()
    worker = head_start.bench_worker("the cache")
    try:
        assert worker.call(read_state, timeout_s=60) == ["the cache"]
    finally:
        worker.close()


def test_what_cannot_get_ready_serves_all_the_same(monkeypatch):
    monkeypatch.setattr(bench_jobs, "get_ready", fault_jobs.cannot_get_ready)
    worker = head_start.bench_worker("the cache")
    try:
        assert worker.call(read_state, timeout_s=60) == ["the cache"]
    finally:
        worker.close()


def test_one_that_nobody_used_ends_with_its_parent_and_leaves_no_file(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from lora_autotune.evaluators import bench_jobs, head_start\n"
        "from tests import fault_jobs\n"
        "if __name__ == '__main__':\n"
        "    bench_jobs.get_ready = fault_jobs.get_ready\n"
        "    head_start.start_early()\n"
        "    print(head_start._bench[0]._process.pid)\n"
    )
    folder = tmp_path / "temporary"
    folder.mkdir()
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(root)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline_s = time.monotonic() + 10
    while alive(int(done.stdout)) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not alive(int(done.stdout))
    assert not list(folder.glob("lora-autotune-*"))
