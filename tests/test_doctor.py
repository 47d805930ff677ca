"""The doctor among real faults: a Python without torch, a torch that hangs, files that are bad."""

from __future__ import annotations

import json
import re
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from lora_autotune import cli, doctor
from lora_autotune.config_file import merge_config_file
from lora_autotune.doctor import Finding, Report, software
from lora_autotune.doctor.finding import Section
from tests.doctor_cases import (
    GOOD,
    ROOT,
    config_file,
    has_cuda,
    run_doctor,
)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python in which nothing is installed."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


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


def test_what_is_said_twice_agrees() -> None:
    wanted = (ROOT / "pyproject.toml").read_text()
    for name, oldest in software.OLDEST.items():
        assert re.search(rf'"{name}>={re.escape(oldest)}[",]', wanted)


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
