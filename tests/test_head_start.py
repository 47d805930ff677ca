import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_autotune.errors import EvaluatorError
from lora_autotune.evaluators import bench_jobs, head_start
from tests import fault_jobs
from tests.test_worker import alive, assert_ends, bug, read_state, set_up

GET_READY = bench_jobs.get_ready


@pytest.fixture(autouse=True)
def _nothing_to_import(monkeypatch):
    monkeypatch.setattr(bench_jobs, "get_ready", fault_jobs.get_ready)
    monkeypatch.setattr(bench_jobs, "set_up", set_up)
    yield
    head_start._close_unused()


def test_the_process_that_was_started_early_is_the_next_one_that_measures():
    head_start.start_early()
    (early,) = head_start._early
    bench, other = head_start.take_bench(), head_start.take_bench()
    try:
        assert bench is early
        assert bench.worker.call(read_state, timeout_s=60) == [bench.cache_dir]
        assert other.worker.call(read_state, timeout_s=60) == [other.cache_dir]
        assert other.cache_dir != bench.cache_dir
    finally:
        other.close()
        bench.close()
    assert not Path(bench.cache_dir).exists()


def test_one_that_was_started_in_another_environment_is_not_taken(monkeypatch):
    head_start.start_early()
    (early,) = head_start._early
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    bench = head_start.take_bench()
    try:
        assert bench is not early
        assert not alive(early.worker._process.pid)
        assert not Path(early.cache_dir).exists()
        assert bench.worker.call(os.getenv, "CUDA_VISIBLE_DEVICES", timeout_s=60) == "7"
    finally:
        bench.close()


def test_one_that_died_while_it_waited_is_replaced():
    head_start.start_early()
    (early,) = head_start._early
    os.kill(early.worker._process.pid, signal.SIGKILL)
    early.worker._process.join()
    bench = head_start.take_bench()
    try:
        assert bench.worker.call(read_state, timeout_s=60) == [bench.cache_dir]
    finally:
        bench.close()


def test_what_cannot_get_ready_serves_all_the_same(monkeypatch):
    monkeypatch.setattr(bench_jobs, "get_ready", fault_jobs.cannot_get_ready)
    bench = head_start.take_bench()
    try:
        assert bench.worker.call(read_state, timeout_s=60) == [bench.cache_dir]
        with pytest.raises(EvaluatorError, match=r"a bug(.|\n)*could not get ready(.|\n)*made up"):
            bench.worker.call(bug, timeout_s=60)
    finally:
        bench.close()


def run(script, **environment):
    root = Path(__file__).parent.parent
    return subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        check=False,
        stdout=subprocess.PIPE,
        text=True,
    )


def loaded():
    return {"torch", "triton"} <= set(sys.modules), os.environ["TRITON_CACHE_DIR"]


def test_what_it_gets_ready_is_torch_and_triton_in_its_own_cache(monkeypatch):
    monkeypatch.setattr(bench_jobs, "get_ready", GET_READY)
    bench = head_start.take_bench()
    try:
        assert bench.worker.call(loaded, timeout_s=120) == (True, bench.cache_dir)
    finally:
        bench.close()


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.2])
def test_it_ends_with_a_parent_that_is_killed(after_s, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, time\n"
        "from lora_autotune.evaluators import bench_jobs, head_start\n"
        "from tests import fault_jobs\n"
        "bench_jobs.get_ready = fault_jobs.never_ready\n"
        "print(head_start.take_bench().worker._process.pid, flush=True)\n"
        f"time.sleep({after_s})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    folder = tmp_path / "temporary"
    folder.mkdir()
    done = run(script, TMPDIR=str(folder))
    assert done.returncode == -signal.SIGKILL
    assert_ends(int(done.stdout))


def test_one_that_nobody_used_ends_with_its_parent_and_leaves_no_file(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from lora_autotune.evaluators import bench_jobs, head_start\n"
        "from tests import fault_jobs\n"
        "bench_jobs.get_ready = fault_jobs.get_ready\n"
        "head_start.start_early()\n"
        "print(head_start._early[0].worker._process.pid)\n"
    )
    folder = tmp_path / "temporary"
    folder.mkdir()
    done = run(script, TMPDIR=str(folder))
    assert done.returncode == 0
    assert_ends(int(done.stdout))
    assert not list(folder.glob("lora-autotune-*"))
