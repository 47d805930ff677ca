"""What a clone relies on before anything is installed: the links of the package and the scripts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lora_autotune.evaluators import driver

ROOT = Path(__file__).resolve().parent.parent


def load_environment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", ROOT / "scripts/environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["environment"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


environment = load_environment()


@pytest.mark.parametrize("name", ["strategies", "configs"])
def test_the_package_holds_the_top_level_folders_by_relative_links(name: str) -> None:
    link = ROOT / "lora_autotune" / name

    if link.is_symlink():  # in an unpacked sdist they are folders
        assert str(link.readlink()) == f"../{name}"
    assert any(link.iterdir())


FAKE_PYTHON = """#!/bin/bash
case $1 in
    -c) exit 0 ;;
    */environment.py) echo "$DEVICE $0"; echo "$2" >"$KIND" ;;
    -m) shift; printf '%s\\n' "$@" ;;
esac
"""


def tune(folder: Path, device: str, *words: str) -> tuple[str, list[str]]:
    """The environment that scripts/tune asks for, and what it runs there."""
    folder = folder / "a path with spaces"
    folder.mkdir(exist_ok=True)
    python, kind = folder / "python", folder / "kind"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    kind.write_text("none\n")
    done = subprocess.run(
        [ROOT / "scripts/tune", *words],
        cwd=folder,
        env={**os.environ, "PYTHON": str(python), "DEVICE": device, "KIND": str(kind)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    module, command, *passed = done.stdout.splitlines()
    assert (module, command) == ("lora_autotune", "tune")
    return kind.read_text().strip(), passed


@pytest.mark.parametrize(
    ("device", "words", "kind", "passed"),
    [
        ("cuda", "", "tune", "--model Qwen3-0.6B --rank 64"),
        ("cuda", "--trials 9", "tune", "--model Qwen3-0.6B --rank 64 --trials 9"),
        ("cuda", "--rank 8", "tune", "--model Qwen3-0.6B --rank 8"),
        ("cuda", "--model=x --rank=8", "tune", "--model=x --rank=8"),
        ("cuda", "--kernel shrink -K 8", "tune", "--kernel shrink -K 8"),
        ("cpu", "", "tune", "--replay"),
        ("cpu", "--model x --rank 8", "tune", "--model x --rank 8 --replay"),
        ("cpu", "--replay x", "search", "--replay x"),
        ("cuda", "--rank 8 --help", "none", "--rank 8 --help"),
    ],
)
def test_tune_says_what_nobody_said(
    tmp_path: Path, device: str, words: str, kind: str, passed: str
) -> None:
    assert tune(tmp_path, device, *words.split()) == (kind, passed.split())


def test_a_python_that_has_everything_is_used_as_it_is() -> None:
    assert environment.choose("test", sys.executable) == ("cpu", sys.executable)
    assert environment.choose("search", sys.executable) == ("cpu", sys.executable)


def test_what_a_python_lacks_or_has_too_old_is_missing() -> None:
    found = environment.probe(sys.executable, ["rich", "no_such_package"])
    assert found.missing == ("no_such_package",)
    assert found.installed["rich"]

    assert not environment._will_do("optuna", "4.6.0")
    assert environment._will_do("optuna", "5.0.0")
    assert environment.probe("/no/such/python", ["rich"]) is None


@pytest.mark.parametrize("built_with", [None, "13.0"])
def test_whether_torch_sees_a_gpu_is_told_without_importing_it(built_with, tmp_path, monkeypatch):
    for name in ("torch", "triton"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('it was imported')\n")
    (tmp_path / "torch" / "version.py").write_text(f"__version__ = '2.0'\ncuda = {built_with!r}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = environment.probe(sys.executable, ["torch", "triton"], cuda=True)
    assert not found.missing
    assert found.cuda == (built_with is not None and driver.first_gpu() is not None)


def test_on_top_of_another_python_nothing_of_it_is_replaced() -> None:
    base = environment.Probe(
        missing=("optuna", "rich"),
        cuda=True,
        sites=("/site",),
        installed={"torch": "2.9.0+cu128", "triton": "3.5.0", "PyYAML": "5.1", "rich": "9.0"},
    )

    packages, pins = environment._plan("shared-tune", environment.SEARCH, base)

    lines = pins.splitlines()
    assert packages == ["optuna", "rich"]
    assert {"torch==2.9.0+cu128", "triton==3.5.0", "optuna==5.0.0"} <= set(lines)
    assert [line for line in lines if line.startswith("rich==")] == ["rich==15.0.0"]
    assert not [line for line in lines if line.lower().startswith("pyyaml")]


@pytest.mark.parametrize(("name", "torch"), [("cpu", "2.13.0"), ("cuda", "2.11.0")])
def test_an_environment_of_its_own_has_the_pinned_pair(name: str, torch: str) -> None:
    _, pins = environment._plan(name, environment.TEST, None)

    assert f"torch=={torch}" in pins.splitlines()
    pinned = {line.partition("==")[0].lower() for line in pins.splitlines() if "==" in line}
    assert set(environment.CI) <= pinned


def test_an_interrupted_set_up_is_made_again_and_a_finished_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    interrupted = True

    def run(command: list[str], problem: str) -> None:
        runs.append(command[2])
        (tmp_path / "search").mkdir(exist_ok=True)
        if interrupted and command[2] == "pip":
            raise KeyboardInterrupt

    monkeypatch.setattr(environment, "HOME", tmp_path)
    monkeypatch.setattr(environment, "_run", run)
    monkeypatch.setattr(environment, "_complete", lambda python, needed: python)

    def make() -> str:
        return str(environment.environment("search", sys.executable, environment.SEARCH))

    with pytest.raises(KeyboardInterrupt):
        make()
    interrupted = False
    assert make() == make() == str(tmp_path / "search" / "bin" / "python")
    assert runs == ["venv", "pip"] * 2

    # A stamped one that has lost its packages is made again too.
    answers = iter([None, sys.executable])
    monkeypatch.setattr(environment, "_complete", lambda python, needed: next(answers))
    make()
    assert runs == ["venv", "pip"] * 3


def test_the_choice_is_one_line_on_stdout() -> None:
    command = [sys.executable, str(ROOT / "scripts/environment.py"), "search"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)

    assert done.stdout == f"cpu {sys.executable}\n"
