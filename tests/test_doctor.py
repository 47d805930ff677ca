"""The doctor among real faults: a Python without torch, a torch that hangs, files that are bad."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lora_autotune
from lora_autotune import cli, doctor
from lora_autotune.config_file import merge_config_file
from lora_autotune.doctor import Finding, Report, configs, gpu, processes, software
from lora_autotune.doctor.child import run
from lora_autotune.doctor.configs import examine_configs
from lora_autotune.doctor.disk import examine_disk
from lora_autotune.doctor.finding import Section
from lora_autotune.evaluators import cores as cores_module
from lora_autotune.kernels_version import builtin_kernels_version
from lora_autotune.provenance import write_with_provenance
from tests.provenance_cases import ENTRY

ROOT = Path(lora_autotune.__file__).parent.parent
GOOD = {16: {"BLOCK_N": 16, "BLOCK_K": 64}}


def config_file(root: Path, *, K: int = 1024, triton: str = "3_6_0", gpu: str = "H200") -> Path:
    name = f"lora_shrink,K={K},R=64,S=1,device=NVIDIA_{gpu}.json"
    return root / "csgmv_configs" / f"triton_{triton}" / name


def problems(section: Section | Report) -> list[Finding]:
    return [finding for finding in section.findings if finding.status == "problem"]


def only_problem(section: Section) -> Finding:
    (problem,) = problems(section)
    return problem


def facts_of(section: Section, status: str) -> list[str]:
    return [finding.fact for finding in section.findings if finding.status == status]


def has_cuda() -> bool:
    torch = pytest.importorskip("torch")
    found: bool = torch.cuda.is_available()
    return found


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python in which nothing is installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


def run_doctor(
    python: Path | str, *words: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), "-m", "lora_autotune", "doctor", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )


def test_where_nothing_is_installed_it_says_what_is_missing_and_what_still_works(
    bare_python: Path,
) -> None:
    done = run_doctor(bare_python)

    assert (done.returncode, done.stderr) == (1, "")
    for name, extra in software._EXTRA.items():
        assert f"{name} is not installed\n" in done.stdout
        assert f"-> pip install --upgrade 'lora-autotune[{extra}]'\n" in done.stdout
    assert "worker processes start" in done.stdout
    *_, tuning, searching, looking = done.stdout.splitlines()
    assert tuning.startswith("Tuning here: no, because ")
    assert searching.endswith("(--replay): no, because optuna is not installed")
    assert looking == "Looking configs up: yes"


def test_every_problem_is_one_line_and_the_next_says_what_to_do(
    bare_python: Path, tmp_path: Path
) -> None:
    bad = config_file(tmp_path)
    merge_config_file(bad, GOOD)
    bad.write_text('{"16": {"BLOCK_N": 0}}')
    file = tmp_path / "file"
    file.touch()

    done = run_doctor(bare_python, SGLANG_LORA_CONFIG_DIR=str(tmp_path), TRITON_CACHE_DIR=str(file))

    assert done.returncode == 1
    lines = done.stdout.splitlines()
    wrong = [i for i, line in enumerate(lines) if line.startswith("  problem ")]
    assert len(wrong) == 7  # no GPU, four packages, a config file, a cache
    assert all(lines[i + 1].strip().startswith("-> ") for i in wrong)
    assert any(f"{bad}: " in lines[i] and "BLOCK_N" in lines[i] for i in wrong)


def test_a_report_on_this_machine_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    cuda = has_cuda()

    code = cli.main(["doctor", "--json"])

    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["healthy"] else 1)
    assert set(found["facts"]) | {"Trial"} == set(doctor.TOPICS)
    assert found["abilities"]["search"] == {"works": True, "because": None}
    assert found["abilities"]["lookup"]["works"]
    assert found["abilities"]["tune"]["works"] == cuda
    assert found["facts"]["GPU"]["worker"] == {"works": True}
    assert found["facts"]["Packages"]["torch"]
    assert found["facts"]["Processes"]["compile_workers"] >= 1
    for finding in found["findings"]:
        assert set(finding) == {"status", "topic", "fact", "remedy", "stops"}
        assert finding["topic"] in doctor.TOPICS
        assert finding["remedy"] or finding["status"] != "problem"
    if not cuda:
        assert "no CUDA device" in found["abilities"]["tune"]["because"]


@pytest.mark.gpu
def test_on_a_gpu_a_kernel_is_compiled_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    assert cli.main(["doctor"]) == 0

    printed = capsys.readouterr().out
    assert f"{torch.cuda.get_device_name()}, compute capability " in printed
    assert "a kernel was compiled, checked and timed here" in printed
    assert "Tuning here: yes" in printed


FAKE_TORCH = """
import warnings
from types import SimpleNamespace
__version__ = "2.9.0"
version = SimpleNamespace(cuda="13.0", hip=None)
def is_available():
    {body}
    return False
cuda = SimpleNamespace(is_available=is_available)
"""


@pytest.fixture
def fake_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a torch of our making before the real one, for child processes."""

    def put(code: str) -> None:
        folder = tmp_path / "fake"
        folder.mkdir()
        (folder / "torch.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.setenv("PATH", "")  # no nvidia-smi

    return put


def put_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{body}\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_torch_that_hangs_is_given_up(
    fake_torch: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_torch("import time; time.sleep(600)")
    monkeypatch.setattr(gpu, "TRIAL_TIMEOUT_S", 1.5)
    started_s = time.monotonic()

    problem = only_problem(gpu.examine_gpu())

    assert time.monotonic() - started_s < 30
    assert "no answer within 2 s" in problem.fact
    assert problem.stops == ("tune",)


def test_a_driver_that_hangs_is_given_up_with_the_workers_still_judged(
    fake_torch: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_torch(FAKE_TORCH.format(body="import time; time.sleep(600)"))
    monkeypatch.setattr(gpu, "OPEN_TIMEOUT_S", 0.5)

    section = gpu.examine_gpu()

    assert "torch cannot use a GPU here: over its limit of 0.5 s" in only_problem(section).fact
    assert "worker processes start (forkserver)" in facts_of(section, "ok")


def test_a_driver_that_crashes_is_named(fake_torch: Callable[[str], None]) -> None:
    fake_torch(FAKE_TORCH.format(body="import ctypes; ctypes.string_at(0)"))

    assert "killed by SIGSEGV" in only_problem(gpu.examine_gpu()).fact


def test_a_torch_that_does_not_load_says_why(fake_torch: Callable[[str], None]) -> None:
    fake_torch("raise OSError('libcudart.so.13: cannot open shared object file')")

    first, *_ = problems(gpu.examine_gpu())

    assert "OSError: libcudart.so.13: cannot open" in first.fact


def test_a_temporary_folder_with_too_long_a_path_is_said(
    fake_torch: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_torch(FAKE_TORCH.format(body="pass"))
    deep = tmp_path / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))

    *_, workers = problems(gpu.examine_gpu())

    assert "path too long" in workers.fact
    assert workers.remedy == "export TMPDIR=DIR, one with a shorter path"


def test_what_cuda_says_no_with_is_passed_on(
    fake_torch: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_torch(FAKE_TORCH.format(body="warnings.warn('The NVIDIA driver is too old')"))
    problem = only_problem(gpu.examine_gpu())
    assert problem.fact.endswith("torch 2.9.0 sees none: The NVIDIA driver is too old")
    assert "--replay" in str(problem.remedy)

    put_nvidia_smi(tmp_path, monkeypatch, "echo NVIDIA H200, 400.10")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    problem = only_problem(gpu.examine_gpu())
    assert problem.fact.startswith("there is a GPU, but torch 2.9.0 does not see it")
    assert "driver 400.10" in str(problem.remedy)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    problem = only_problem(gpu.examine_gpu())
    assert problem.remedy == "unset CUDA_VISIBLE_DEVICES"


def test_an_nvidia_smi_that_hangs_or_fails_is_a_note(
    fake_torch: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_torch(FAKE_TORCH.format(body="pass"))
    monkeypatch.setattr(gpu, "SMI_TIMEOUT_S", 0.5)
    put_nvidia_smi(tmp_path, monkeypatch, "sleep 600")
    assert any("gave no answer" in fact for fact in facts_of(gpu.examine_gpu(), "note"))

    put_nvidia_smi(tmp_path, monkeypatch, "echo couldn\\'t communicate >&2; exit 9")
    assert "nvidia-smi: couldn't communicate" in facts_of(gpu.examine_gpu(), "note")


def h200(**changes: Any) -> dict[str, Any]:
    one = {"name": "NVIDIA H200", "capability": "9.0", "memory_bytes": 1 << 37, "uuid": "aa-b"}
    return {**one, "free_bytes": 1 << 36, **changes}


def judged(
    monkeypatch: pytest.MonkeyPatch,
    devices: list[dict[str, Any]],
    processes: list[dict[str, str]],
    **tried: Any,
) -> Section:
    """What is found on a machine of which the children say this."""
    smi = {"gpus": ["NVIDIA H200"], "driver": "580.1", "processes": processes, "error": None}
    monkeypatch.setattr(gpu, "_ask_nvidia_smi", lambda: smi)
    seen = {
        "worker": {"works": True},
        "torch": {"version": "2.11", "cuda": "13.0", "hip": None, "devices": devices},
        "trial": {"time_us": 4.56},
        "timed_out": False,
        "last_words": "",
        **tried,
    }
    monkeypatch.setattr(gpu, "_try", lambda: seen)
    return gpu.examine_gpu()


def test_others_on_the_gpu_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def user(uuid: str) -> dict[str, str]:
        return {"gpu_uuid": uuid, "pid": "12", "name": "python", "memory_mib": "4000"}

    section = judged(monkeypatch, [h200()], [user("GPU-aa-b"), user("GPU-cc-d")])
    assert problems(section) == []
    assert facts_of(section, "ok")[:2] == [
        "NVIDIA H200, compute capability 9.0, 64.0 of 128.0 GiB free",
        "driver 580.1; torch is built for CUDA 13.0",
    ]
    (note,) = facts_of(section, "note")
    assert note.endswith("disturbs timings: python (12)")

    several = judged(monkeypatch, [h200(free_bytes=1 << 30), h200()], [user("GPU-cc-d")])
    assert [note[:6] for note in facts_of(several, "note")] == ["2 GPUs", "little"]


@pytest.mark.parametrize(
    ("trial", "said", "remedy"),
    [
        ({"failed": "RuntimeError: Failed to find C compiler"}, "C compiler", "problem above"),
        ({"failed": "the workload does not fit the GPU's memory"}, "not fit", "nvidia-smi"),
        (None, "no answer within", "reset the GPU"),
    ],
)
def test_a_gpu_on_which_no_kernel_runs_is_a_problem(
    trial: dict[str, str] | None, said: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = trial is None
    problem = only_problem(judged(monkeypatch, [h200()], [], trial=trial or {}, timed_out=hung))

    assert said in problem.fact
    assert remedy in str(problem.remedy)
    assert problem.stops == ("tune",)


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


def test_configs_are_counted_by_what_a_server_here_would_do_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path))
    for path in (
        config_file(tmp_path),
        config_file(tmp_path, K=2048),
        config_file(tmp_path, triton="3_7_1"),
        config_file(tmp_path, gpu="B200"),
    ):
        merge_config_file(path, GOOD)

    section = examine_configs("NVIDIA H200", "3.7.1+git12")
    assert problems(section) == []
    assert "for NVIDIA H200 and Triton 3.7.1+git12: 1 file" in facts_of(section, "ok")
    assert "for other GPUs: NVIDIA_B200 under triton_3_6_0 (1 file)" in facts_of(section, "ok")
    (note,) = facts_of(section, "note")
    assert note.endswith("3.7.1+git12: 1 file (triton_3_6_0), used with a warning")

    (note,) = facts_of(examine_configs("NVIDIA L4", "3.6.0"), "note")
    assert note == "none for NVIDIA L4: its server gets the defaults"
    assert "no GPU here" in facts_of(examine_configs(None, "3.6.0"), "note")[0]
    assert "no Triton here" in facts_of(examine_configs("NVIDIA H200", None), "note")[0]


def test_the_kernels_that_configs_were_tuned_on_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path))
    here = builtin_kernels_version()
    ours = replace(ENTRY, config=GOOD[16], kernels_version=here)
    write_with_provenance(config_file(tmp_path), 16, ours)
    write_with_provenance(config_file(tmp_path), 64, ours)
    write_with_provenance(config_file(tmp_path, gpu="B200"), 16, replace(ours, kernels="other"))
    merge_config_file(config_file(tmp_path, K=2048), GOOD)

    section = examine_configs("NVIDIA H200", "3.6.0")
    said = f"tuned on the kernels: builtin {here} (2 entries), not recorded (1 entry)"
    assert said in facts_of(section, "ok")
    assert section.facts["kernels"] == {f"builtin {here}": 2, "not recorded": 1}
    assert facts_of(section, "note") == []
    assert sum(examine_configs("NVIDIA L4", "3.6.0").facts["kernels"].values()) == 4

    write_with_provenance(config_file(tmp_path), 64, replace(ours, kernels_version="0123"))
    (note,) = facts_of(examine_configs("NVIDIA H200", "3.6.0"), "note")
    assert note == f"the kernels here are builtin {here}: 1 entry was tuned on an earlier version"

    theirs = replace(ours, kernels="sglang-0.5.23", kernels_version=None)
    write_with_provenance(config_file(tmp_path, K=512), 16, theirs)
    (note,) = facts_of(examine_configs("NVIDIA H200", "3.6.0"), "note")
    assert note.startswith("tuned on different kernels: ")
    assert "sglang-0.5.23 (1 entry)" in note


def test_which_configs_sglang_launches_which_kernels_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_autotune.doctor.configs.installed_version", lambda _: "0.5.23")
    monkeypatch.setenv("LORA_AUTOTUNE_SGLANG", "configs")
    monkeypatch.delenv("SGLANG_LORA_CONFIG_DIR", raising=False)
    write_with_provenance(config_file(tmp_path), 16, replace(ENTRY, config=GOOD[16]))
    monkeypatch.setattr("lora_autotune.loader._PACKAGED", str(tmp_path))

    def served() -> str:
        (fact,) = (f for f in facts_of(section(), "ok") if f.startswith("SGLang 0.5.23, "))
        return fact.partition("LORA_AUTOTUNE_SGLANG=")[2]

    def section() -> Section:
        return examine_configs("NVIDIA H200", "3.6.0")

    assert served() == "configs: its kernels launch with its own files"
    write_with_provenance(
        config_file(tmp_path / "sglang"),
        16,
        replace(ENTRY, config=GOOD[16], kernels="sglang-0.5.23"),
    )
    assert served() == f"configs: its kernels launch with {tmp_path}/sglang"
    monkeypatch.setenv("LORA_AUTOTUNE_SGLANG", "off")
    assert served() == "off: its kernels launch with its own files"
    monkeypatch.delenv("LORA_AUTOTUNE_SGLANG")
    theirs = f"kernels: its kernels launch with {tmp_path}/sglang"
    assert served() == f"{theirs}; ours run where they can, with {tmp_path}"
    assert not any("ones run" in note for note in facts_of(section(), "note"))

    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path / "sglang"))
    (note,) = (note for note in facts_of(section(), "note") if "ones run" in note)
    assert (
        note == "SGLANG_LORA_CONFIG_DIR has configs tuned on sglang kernels, but builtin ones run"
    )
    monkeypatch.setenv("LORA_AUTOTUNE_SGLANG", "configs")
    assert not any("ones run" in note for note in facts_of(section(), "note"))
    assert section().facts["sglang"]["configs"] == str(tmp_path / "sglang")


def test_a_provenance_of_another_config_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path))
    write_with_provenance(config_file(tmp_path), 16, ENTRY)
    merge_config_file(config_file(tmp_path), GOOD)

    section = examine_configs("NVIDIA H200", "3.6.0")
    assert problems(section) == []
    assert f"{tmp_path} (SGLANG_LORA_CONFIG_DIR): 1 good, 0 bad" in facts_of(section, "ok")
    (note,) = facts_of(section, "note")
    assert "chunk size 16: is of another config" in note
    assert section.facts["kernels"] == {"not recorded": 1}


def test_every_bad_config_file_is_named_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path))
    monkeypatch.setattr(configs, "_MOST_NAMED", 2)
    merge_config_file(config_file(tmp_path), GOOD)
    for K in (1, 2, 3):
        config_file(tmp_path, K=K).write_text("{}")

    section = examine_configs("NVIDIA H200", "3.6.0")

    assert f"{tmp_path} (SGLANG_LORA_CONFIG_DIR): 1 good, 3 bad" in facts_of(section, "ok")
    first, second, rest = problems(section)
    assert f"{config_file(tmp_path, K=1)}: holds no chunk size" in first.fact
    assert f"{config_file(tmp_path, K=2)}: " in second.fact
    assert rest.fact == "and 1 file more"
    assert "lora-autotune check" in str(rest.remedy)


@pytest.mark.parametrize(
    ("below", "said"),
    [
        ("nowhere", "does not exist"),
        ("file", "is not a folder"),
        ("empty", "holds no csgmv_configs"),
        ("out/csgmv_configs", "is inside csgmv_configs"),
        ("out/csgmv_configs/triton_3_6_0", "is inside csgmv_configs"),
    ],
)
def test_a_root_where_a_server_finds_nothing_is_a_problem(
    below: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    merge_config_file(config_file(tmp_path / "out"), GOOD)
    monkeypatch.setenv("SGLANG_LORA_CONFIG_DIR", str(tmp_path / below))

    problem = only_problem(examine_configs(None, None))

    assert said in problem.fact
    assert problem.stops == ("lookup",)
    if "inside" in said:
        assert problem.remedy == f"export SGLANG_LORA_CONFIG_DIR={tmp_path / 'out'}"


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


def test_a_torch_that_asks_for_another_triton_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(name: str, version: str, *lines: str) -> None:
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        head = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        (folder / "METADATA").write_text("\n".join([*head, *lines, ""]))

    monkeypatch.syspath_prepend(tmp_path)
    needs = 'Requires-Dist: triton==3.6.0; platform_system == "Linux"'
    install("torch", "2.11.0", "Requires-Dist: filelock", needs)
    install("triton", "3.6.0")
    assert "torch and Triton belong together (torch asks for triton 3.6.0)" in facts_of(
        software.examine_packages(), "ok"
    )

    (tmp_path / "triton-3.6.0.dist-info" / "METADATA").unlink()
    (tmp_path / "triton-3.6.0.dist-info").rmdir()
    install("triton", "3.3.1")
    section = software.examine_packages()
    assert facts_of(section, "note") == [
        "torch 2.11.0 asks for triton 3.6.0, which is 3.3.1",
    ]
    assert "triton 3.3.1 is too old: 3.4 is needed" in only_problem(section).fact


def test_a_ptxas_that_is_not_there_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/nowhere/ptxas")
    section = software.examine_compilers(9.0)
    assert "names no ptxas that runs" in facts_of(section, "note")[0]

    monkeypatch.setenv("CC", "no-such-compiler")
    section = software.examine_compilers(None)
    assert "CC is 'no-such-compiler', which is not there" in only_problem(section).fact


def test_what_is_said_twice_agrees() -> None:
    wanted = (ROOT / "pyproject.toml").read_text()
    for name, oldest in software.OLDEST.items():
        assert re.search(rf'"{name}>={re.escape(oldest)}[",]', wanted)


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
    assert cores_module.compile_workers() == 3
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


def test_a_probe_that_fails_is_a_note_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Section:
        raise RuntimeError("a bug of\nours")

    for name in ("gpu", "packages", "compilers", "processes", "configs", "disk"):
        monkeypatch.setattr(doctor, f"examine_{name}", broken)

    assert cli.main(["doctor"]) == 0

    lines = capsys.readouterr().out.splitlines()
    said = "  note     could not be examined: RuntimeError: a bug of ours"
    assert lines.count(said) == 6


def test_a_terminal_of_80_columns_is_enough(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Finding(status="problem", topic="Disk", fact="word " * 50, remedy="do " * 60)
    monkeypatch.setattr(
        "lora_autotune.cli.doctor.examine", lambda: Report(facts={}, findings=(one,))
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")

    assert cli.main(["doctor"]) == 1

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line.strip().startswith("-> do do")]


def test_a_problem_without_a_remedy_is_a_bug() -> None:
    with pytest.raises(ValueError, match="without a remedy"):
        Finding(status="problem", topic="GPU", fact="gone")
