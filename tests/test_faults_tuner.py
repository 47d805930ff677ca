"""A tuner that is killed leaves no worker and whole files, and goes on to the same winners."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lora_autotune.config_file import merge_config_file
from tests.fault_stage import (
    LANDSCAPES,
    LARGER_SPACES,
    NAMES,
    Tuner,
    part,
    processes,
    wait_until,
    winners,
)

MACHINE = """
import sys, tempfile
from pathlib import Path
from lora_autotune.evaluators import bench_jobs
from lora_autotune.evaluators.cuda import CudaMachine
from tests import fault_jobs
tempfile.tempdir = sys.argv[1]
bench_jobs.describe = fault_jobs.describe
plan = fault_jobs.Plan(files={}, notes=Path(sys.argv[1]))
machine = CudaMachine(compile_workers=2)
workers = [machine.bench, *machine.compilers]
for worker in workers[1:]:
    worker.submit(fault_jobs.compute, plan, timeout_s=600)
machine.bench.submit(fault_jobs.sleep, plan, timeout_s=600)
from multiprocessing import forkserver
server = forkserver._forkserver._forkserver_pid
print(server, *(worker._process.pid for worker in workers), flush=True)
sys.stdin.read()
"""


def test_the_workers_of_a_tuner_that_is_killed_die_with_it(tmp_path):
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    tuner = subprocess.Popen(
        [sys.executable, "-c", MACHINE, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    pids = {int(word) for word in tuner.stdout.readline().split()}
    assert len(pids) == 4
    assert pids <= set(processes())
    tuner.kill()
    wait_until(lambda: not pids & set(processes()), "workers are left")
    tuner.communicate()


@pytest.mark.parametrize(("strategy", "seed"), [("grid", 1), ("tpe", 2)])
def test_a_tuner_killed_at_twenty_random_moments_goes_on_to_the_same_winners(
    tmp_path, strategy, seed
):
    rng = random.Random(seed)
    count, most_events = {"grid": (2, 15), "tpe": (1, 8)}[strategy]
    landscapes = [part(name, LARGER_SPACES) for name in NAMES[:count]]
    expected = winners(landscapes)
    with Tuner(tmp_path, landscapes, strategy=strategy, delay_s=0.003) as tuner:
        name = next(iter(expected))
        file = tuner.out / "csgmv_configs" / "triton_3_6_0" / name
        merge_config_file(file, {128: {"BLOCK_N": 16, "BLOCK_K": 64}})
        before = tuner.tables()
        for _ in range(20):
            moment = tuner.events() + rng.randrange(most_events)
            pid = tuner.start()
            deadline_s = time.monotonic() + 5
            while tuner.events() < moment and time.monotonic() < deadline_s:
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.01))
            os.kill(pid, signal.SIGKILL)
            assert tuner.end()[0] == -signal.SIGKILL
            recorded = tuner.recorded()
            assert set(tuner.acknowledged()) <= set(recorded)
            assert max(Counter(recorded).values(), default=1) == 1
            assert tuner.tables() == before
            if rng.random() < 0.3:
                with tuner.journal.open("a") as journal:
                    journal.write('{"op_code": 4, "worker_id": "to')
        assert tuner.acknowledged()
        assert tuner.run()[0] == 0
        assert Counter(tuner.recorded()) == tuner.all_trials()
        expected[name][128] = {"BLOCK_N": 16, "BLOCK_K": 64}
        assert tuner.tables() == expected


def test_a_tuner_killed_while_it_chooses_and_writes_leaves_whole_files(tmp_path):
    expected = winners(LANDSCAPES)
    with Tuner(tmp_path, LANDSCAPES, delay_s=0.003) as tuner:
        assert tuner.run()[0] == 0
        for path in tuner.out.rglob("*.json"):
            path.unlink()
        for events in range(12):
            moment = tuner.events() + events
            pid = tuner.start()
            wait_until(lambda moment=moment: tuner.events() >= moment)
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(pid, signal.SIGKILL)
            tuner.end()
            assert tuner.tables().items() <= expected.items()
        assert tuner.run()[0] == 0
        assert tuner.tables() == expected
        assert Counter(tuner.recorded()) == tuner.all_trials()
