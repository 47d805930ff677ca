"""The doctor on cores, caches, folders and limits."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_autotune.doctor import processes, software
from lora_autotune.doctor.child import run
from lora_autotune.doctor.disk import examine_disk
from lora_autotune.evaluators import cores as cores_module
from tests.doctor_cases import (
    facts_of,
    only_problem,
    problems,
)


def test_a_command_over_its_limit_is_killed_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"echo first; sleep 600 & echo $! > {note}; wait"

    output = run(["/bin/sh", "-c", script], timeout_s=1.0)

    assert output.code is None
    assert output.out == "first\n"
    stat_file = Path(f"/proc/{int(note.read_text())}/stat")
    deadline_s = time.monotonic() + 10
    while stat_file.exists() and stat_file.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.mark.parametrize("below", ["", "/cache"])
def test_a_cache_that_cannot_be_written_is_a_problem(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", f"{file}{below}")

    problem = only_problem(examine_disk())

    assert problem.fact == f"Triton's cache {file}{below} cannot be written: Not a directory"
    assert "TRITON_CACHE_DIR" in str(problem.remedy)


def test_a_cache_is_measured_and_need_not_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    assert facts_of(examine_disk(), "ok")[0].startswith(
        f"Triton's cache {tmp_path}/.triton/cache: 0 B used, "
    )
    assert list(tmp_path.iterdir()) == []

    (tmp_path / ".triton" / "cache" / "ab").mkdir(parents=True)
    (tmp_path / ".triton" / "cache" / "ab" / "kernel.cubin").write_bytes(bytes(5 << 20))
    assert ": 5 MiB used, " in facts_of(examine_disk(), "ok")[0]


@pytest.mark.parametrize(
    ("flag", "free", "said"),
    [
        (os.ST_NOEXEC, 1 << 40, "mounted noexec"),
        (0, 1 << 20, "1 MiB free, too little"),
        (0, 1 << 30, None),
    ],
)
def test_a_folder_that_is_full_or_noexec_is_a_problem(
    flag: int, free: int, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SimpleNamespace(f_flag=flag, f_bavail=free, f_blocks=free, f_bfree=free, f_frsize=1)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "statvfs", lambda _: disk)

    section = examine_disk()

    if said is None:
        assert [note[-23:] for note in facts_of(section, "note")] == [", little for a long run"] * 2
    else:
        of_server, of_tuning = problems(section)
        assert said in of_server.fact
        assert (of_server.stops, of_tuning.stops) == ((), ("tune",))


@pytest.mark.parametrize(
    ("compiled", "unwritten", "lacking"),
    [(False, True, ["torch", "triton"]), (True, True, []), (False, False, [])],
)
def test_packages_that_every_start_compiles_anew_are_a_note(
    compiled: bool,
    unwritten: bool,
    lacking: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("torch", "triton"):
        source = tmp_path / name / "__init__.py"
        source.parent.mkdir()
        source.touch()
        if compiled:
            py_compile.compile(str(source))
    spec_of = importlib.util.spec_from_file_location
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: spec_of(name, tmp_path / name / "__init__.py")
    )
    monkeypatch.setattr(sys, "dont_write_bytecode", unwritten)

    section = software.examine_packages()

    assert section.facts["without_bytecode"] == lacking
    notes = [one for one in section.findings if "bytecode" in one.fact]
    assert len(notes) == bool(lacking)
    for note in notes:
        assert note.status == "note"
        assert note.fact.startswith("no compiled bytecode of torch and triton")
        assert str(note.remedy).endswith(f"{tmp_path}/torch {tmp_path}/triton")


def test_a_ptxas_that_is_not_there_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/nowhere/ptxas")
    section = software.examine_compilers(9.0)
    assert "names no ptxas that runs" in facts_of(section, "note")[0]

    monkeypatch.setenv("CC", "no-such-compiler")
    section = software.examine_compilers(None)
    assert "CC is 'no-such-compiler', which is not there" in only_problem(section).fact


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2.5),
        ("0::/\n", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/a\n", {"a/cpu.max": "max 100000"}, None),
        (
            "5:cpu,cpuacct:/x\n0::/\n",
            {
                "cpu,cpuacct/x/cpu.cfs_quota_us": "400000",
                "cpu,cpuacct/x/cpu.cfs_period_us": "100000",
            },
            4.0,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/a\n", {"a/cpu.max": "nonsense"}, None),
        ("", {}, None),
    ],
)
def test_the_cores_of_a_container(
    own: str, files: dict[str, str], cores: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")

    assert cores_module.cgroup_cores(own, tmp_path) == cores


def test_a_container_of_a_large_host_starts_few_compile_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cores_module, "cgroup_cores", lambda *_: 4.0)
    assert cores_module.compile_workers() == 4
    monkeypatch.setattr(cores_module, "cgroup_cores", lambda *_: 0.5)
    assert cores_module.compile_workers() == 1
    monkeypatch.setattr(cores_module, "cgroup_cores", lambda *_: None)
    assert cores_module.compile_workers() == cores_module.MAX_COMPILE_WORKERS


def test_a_busy_machine_and_few_files_are_notes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    monkeypatch.setattr(cores_module, "cgroup_cores", lambda *_: None)
    monkeypatch.setattr(processes.resource, "getrlimit", lambda _: (256, 4096))

    section = processes.examine_processes()

    busy, files = (one for one in section.findings if one.status == "note")
    assert "load 99.0 on 64 cores" in busy.fact
    assert files.remedy == "ulimit -n 2048"
