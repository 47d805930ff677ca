"""Who may import whom: the layers by reading every import, the promises in fresh processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_autotune

PACKAGE = Path(lora_autotune.__file__).parent
HEAVY = {"torch", "triton", "optuna", "rich", "numpy"}

LAYERS = (
    {"errors"},
    {"chunk_file", "kernel_set", "kernels_version"},
    {"task", "space", "trial", "config_file", "provenance", "config_tree", "model_shapes"},
    {"model_families"},
    {"strategy", "evaluator", "loader", "model", "workload"},
    {"landscape", "kernels", "pruning"},
    {"finalist", "strategies", "journal", "evaluators", "recorder", "search", "neighbours"},
    {"selection", "budgets", "starting_points", "job"},
    {"result", "benchmark"},
    {"tuner", "doctor", "sglang"},
    {"testing"},
    {"__init__"},
    {"cli"},
    {"__main__"},
)
"""Rooms from the bottom up: each imports its own and lower layers only."""

NARROW = {
    "errors": set(),
    "chunk_file": {"errors"},
    "kernel_set": set(),
    "kernels_version": set(),
    "config_file": {"chunk_file", "errors"},
    "provenance": {"chunk_file", "config_file", "errors", "kernel_set"},
    "loader": {"config_file", "errors"},
    "workload": {"errors", "task"},
    "pruning": {"task", "trial"},
    "strategies": {"errors", "task", "space", "trial", "strategy"},
    "journal": {"errors", "task", "space", "trial", "evaluator"},
    "finalist": {"errors", "task", "space", "trial", "evaluator"},
    "selection": {"errors", "task", "space", "trial", "evaluator", "finalist"},
}
"""Rooms that may know even less than their layer would let them."""

STRANGERS = (
    ("strategy", "evaluator"),
    ("evaluators", "strategy"),
    ("evaluators", "strategies"),
    ("kernels", "strategy"),
    ("tuner", "kernels"),
    ("tuner", "evaluators"),
    ("tuner", "strategies"),
)
"""Pairs of which the first must not know the second, whatever their layers."""

FILES = {
    path.relative_to(PACKAGE).as_posix(): path
    for folder in (PACKAGE, *(path for path in PACKAGE.iterdir() if path.is_dir()))
    for path in sorted(folder.glob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            if node.module == "lora_autotune":  # whose version is for everybody
                names = [alias.name for alias in node.names if alias.name != "__version__"]
                yield from (f"lora_autotune.{name}" for name in names)
            else:
                yield node.module


def room(module: str) -> str:
    name = module.split(".")[1] if "." in module else "__init__"
    return name if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists() else "__init__"


def layer(name: str) -> int:
    found = [index for index, rooms in enumerate(LAYERS) if name in rooms]
    assert found, f"{name} is in no layer: give it one"
    return found[0]


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down_the_layers(file: str) -> None:
    own = Path(file).parts[0].removesuffix(".py")
    modules = [name for name in imports(FILES[file]) if name.split(".")[0] == "lora_autotune"]
    rooms = {room(module) for module in modules} - {own}
    assert [name for name in sorted(rooms) if layer(name) > layer(own)] == []
    assert [name for name in sorted(rooms) if (own, name) in STRANGERS] == []
    assert rooms <= NARROW.get(own, rooms)


@pytest.mark.parametrize("file", FILES)
def test_the_bare_strategies_are_never_imported(file: str) -> None:
    assert "strategies" not in {name.split(".")[0] for name in imports(FILES[file])}


@pytest.mark.parametrize("file", ["errors.py", "chunk_file.py", "config_file.py", "loader.py"])
def test_the_loader_knows_the_standard_library_only(file: str) -> None:
    others = {name.split(".")[0] for name in imports(FILES[file])} - {"lora_autotune"}
    assert others <= sys.stdlib_module_names


def loaded_by(code: str, *options: str) -> set[str]:
    """The modules of a fresh process after some code, which prints nothing."""
    script = (
        f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
        f"{code}\n"
        "print(*sys.modules, sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, *options, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines())


def test_importing_the_package_loads_nothing_of_it() -> None:
    modules = loaded_by("import lora_autotune; dir(lora_autotune)")
    assert modules & HEAVY == set()
    assert {name for name in modules if name.startswith("lora_autotune.")} == set()


def test_lookups_need_the_standard_library_only() -> None:
    # -I -S: no site-packages, so that anything else could not even be found.
    modules = loaded_by(
        "import lora_autotune as la\n"
        "who = dict(device_name='NVIDIA H200', triton_version='3.6.0')\n"
        "assert la.get_lora_shrink_config(7, 7, 1, 16, **who) == la.DEFAULT_SHRINK_CONFIG\n"
        "assert la.get_lora_expand_config(7, 7, 1, 16, **who) == la.DEFAULT_EXPAND_CONFIG\n"
        "assert la.get_lora_configs('shrink', 7, 7, 1, **who) is None\n"
        "assert la.get_lora_config_file_name('shrink', 7, 7, 1, **who)\n",
        "-I",
        "-S",
    )
    assert modules & HEAVY == set()
    rooms = {room(name) for name in modules if name.startswith("lora_autotune.")}
    assert rooms == {"chunk_file", "config_file", "errors", "loader"}


def test_lookups_do_not_reach_for_what_is_installed() -> None:
    who = "device_name='NVIDIA H200', triton_version='3.6.0'"
    modules = loaded_by(
        f"import lora_autotune as la; la.get_lora_shrink_config(7, 7, 1, 16, {who})"
    )
    assert modules & HEAVY == set()


@pytest.mark.parametrize("name", ["grid", "random", "tpe"])
def test_strategies_know_neither_gpu_nor_evaluator(name: str) -> None:
    modules = loaded_by(
        "from lora_autotune import make_strategy, named_space\n"
        f"assert make_strategy({name!r}, named_space('wide', 'shrink')).ask(1)"
    )
    assert modules & {"torch", "triton"} == set()
    assert {name for name in modules if name.startswith("lora_autotune.evaluator")} == set()


@pytest.mark.parametrize("module", ["preload", "cuda"])
def test_neither_the_tuner_nor_its_compilers_wait_for_torch(module: str) -> None:
    assert "torch" not in loaded_by(f"import lora_autotune.evaluators.{module}")


def test_the_lists_of_public_names_agree() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    named = {
        (node.module, alias.name)
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {(f"lora_autotune.{home}", name) for name, home in lora_autotune._HOME.items()}
    assert named == lazy
    assert {name for _, name in lazy} | {"__version__"} == set(lora_autotune.__all__)
    assert dir(lora_autotune) == sorted(lora_autotune.__all__)


@pytest.mark.parametrize("name", lora_autotune.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(lora_autotune, name) is not None


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="'lora_autotune' has no attribute 'tuna'"):
        lora_autotune.tuna  # noqa: B018


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
