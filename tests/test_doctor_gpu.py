"""The doctor on GPUs, drivers and torches that hang, crash or say no."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_autotune import cli
from lora_autotune.doctor import gpu, software
from lora_autotune.doctor.finding import Section
from tests.doctor_cases import (
    facts_of,
    only_problem,
    problems,
)


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
