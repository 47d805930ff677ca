"""Python, packages, and the compilers that Triton calls."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
from importlib import metadata
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from lora_autotune.doctor.child import run
from lora_autotune.doctor.disk import nearest, write_error
from lora_autotune.doctor.finding import Ability, Notebook, Section

OLDEST = {"torch": "2.8", "triton": "3.4", "optuna": "5.0", "rich": "13.7"}
"""What pyproject.toml asks for."""

_STOPS: dict[str, tuple[Ability, ...]] = {
    "torch": ("tune",),
    "triton": ("tune",),
    "optuna": ("tune", "search"),
    "rich": ("tune", "search"),
}
_EXTRA = {"torch": "tune,cuda", "triton": "tune,cuda", "optuna": "tune", "rich": "tune"}
_EXACT = re.compile(r"((?:pytorch-)?triton)\s*\(?\s*==\s*([^\s;),]+)")
_LARGE = ("torch", "triton")
_BLACKWELL = 10.0
_TOOL_TIMEOUT_S = 20.0


def examine_packages() -> Section:
    """Versions, and whether torch and Triton belong together."""
    book = Notebook("Packages")
    book.ok(f"Python {platform.python_version()} ({sys.executable})")
    versions = {name: installed_version(name) for name in OLDEST}
    good = []
    for name, version in versions.items():
        remedy = f"pip install --upgrade 'lora-autotune[{_EXTRA[name]}]'"
        if version is None:
            book.problem(f"{name} is not installed", remedy, stops=_STOPS[name])
        elif _numbers(version) < _numbers(OLDEST[name]):
            fact = f"{name} {version} is too old: {OLDEST[name]} is needed"
            book.problem(fact, remedy, stops=_STOPS[name])
        else:
            good.append(f"{name} {version}")
    if good:
        book.ok(", ".join(good))
    pair = _judge_pair(book, versions)
    sources = _judge_bytecode(book)
    facts = {"python": platform.python_version(), "executable": sys.executable, **versions}
    return book.section({**facts, "torch_asks_for": pair, "without_bytecode": sources})


def installed_version(name: str) -> str | None:
    """The version of a distribution, without importing it; None: it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _judge_pair(book: Notebook, versions: dict[str, str | None]) -> str | None:
    """The Triton that the installed torch names, if it names one."""
    if versions["torch"] is None or versions["triton"] is None:
        return None
    for requirement in metadata.requires("torch") or ():
        match = _EXACT.match(requirement)
        if match is not None:
            break
    else:
        book.ok("this torch does not say which Triton belongs with it")
        return None
    name, wanted = match.groups()
    if installed_version(name) == wanted:
        book.ok(f"torch and Triton belong together (torch asks for {name} {wanted})")
    else:
        there = installed_version(name) or "not there"
        book.note(
            f"torch {versions['torch']} asks for {name} {wanted}, which is {there}",
            f"pip install '{name}=={wanted}', unless the server runs this very pair",
        )
    return f"{name}=={wanted}"


def without_bytecode() -> dict[str, Path]:
    """The large packages that every process compiles from their sources, and where they are.

    So it is where the installer compiled nothing, and no import may write what it compiled. To
    import torch takes twice as long then.
    """
    found = {}
    for name in _LARGE:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or not isinstance(spec.loader, SourceFileLoader):
            continue
        bytecode = Path(importlib.util.cache_from_source(spec.origin))
        if not bytecode.exists() and not _may_write(bytecode):
            found[name] = Path(spec.origin).parent
    return found


def _judge_bytecode(book: Notebook) -> list[str]:
    lacking = without_bytecode()
    if lacking:
        folders = shlex.join(map(str, lacking.values()))
        book.note(
            f"no compiled bytecode of {' and '.join(lacking)}, and none is written here: every"
            " start takes seconds longer",
            f"as who may write there: {shlex.quote(sys.executable)} -m compileall -q {folders}",
        )
    return list(lacking)


def _may_write(bytecode: Path) -> bool:
    """Whether the next import leaves it there."""
    return not sys.dont_write_bytecode and write_error(nearest(bytecode.parent)) is None


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def examine_compilers(capability: float | None) -> Section:
    """The ptxas that Triton would call, and the C compiler that it builds its launchers with.

    Args:
        capability: of the GPU (9.0 for a Hopper); None: there is none.
    """
    book = Notebook("Compiler")
    spec = importlib.util.find_spec("triton")
    if spec is None or not spec.submodule_search_locations:
        book.note("Triton is not installed, which brings ptxas with it")
        return book.section({"ptxas": None})
    tools = Path(spec.submodule_search_locations[0]) / "backends" / "nvidia" / "bin"
    blackwell = (tools / "ptxas-blackwell").is_file() and (capability or 0) >= _BLACKWELL
    ptxas = _judge_ptxas(book, tools / ("ptxas-blackwell" if blackwell else "ptxas"))
    compiler = _judge_c(book)
    return book.section({"ptxas": ptxas, "c_compiler": compiler})


def _judge_ptxas(book: Notebook, shipped: Path) -> dict[str, str] | None:
    """As Triton does it: what TRITON_PTXAS_PATH names if it runs, else Triton's own."""
    variable = f"TRITON_{shipped.name.upper().replace('-', '_')}_PATH"
    override = os.environ.get(variable)
    for path in filter(None, [override, str(shipped)]):
        version = _ptxas_version(path)
        if version is not None:
            book.ok(f"ptxas {version} ({path})")
            return {"path": path, "version": version}
        if path == override:
            fact = f"{variable} names no ptxas that runs, so Triton uses its own: {path}"
            book.note(fact, f"unset {variable}, or make it the path of a ptxas")
    book.problem(
        f"ptxas does not run: {shipped}",
        "install Triton again: pip install --force-reinstall --no-deps triton",
        stops=("tune",),
    )
    return None


def _ptxas_version(path: str) -> str | None:
    try:
        done = run([path, "--version"], timeout_s=_TOOL_TIMEOUT_S)
    except OSError:
        return None
    match = re.search(r"release (\d+\.\d+)", done.out)
    return match[1] if match and done.code == 0 else None


def _judge_c(book: Notebook) -> dict[str, Any]:
    """As Triton does it: $CC, else gcc, else clang; and the headers of this Python."""
    named = os.environ.get("CC") or "gcc"
    compiler = shutil.which(named) or (None if "CC" in os.environ else shutil.which("clang"))
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if compiler is None:
        missing = f"CC is {named!r}, which is not there" if "CC" in os.environ else "none is there"
        remedy = "install gcc, or name a compiler: export CC=PATH"
        book.problem(f"Triton needs a C compiler: {missing}", remedy, stops=("tune",))
    elif not header.is_file():
        remedy = "install the headers of this Python (Debian: apt install python3-dev)"
        book.problem(f"Triton needs Python.h: {header} is not there", remedy, stops=("tune",))
    else:
        book.ok(f"C compiler {compiler}, with Python's headers")
    return {"path": compiler, "python_h": str(header) if header.is_file() else None}
