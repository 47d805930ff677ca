"""What tells one version of this package's kernels from another: a config is tuned on one.

Standard library only: a lookup says which version is here without loading torch.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent
_ROOM = "lora_autotune.kernels."

_HOST = {f"{_ROOM}variant"}
"""Modules that decide nothing of what runs on the GPU, only how the host finds it again."""


@cache
def builtin_kernels_version() -> str:
    """Twelve digits of a SHA-256 over what a launch of the built-in kernels is made of.

    That is ``kernels/launch.py`` and the modules beside it that it imports, directly or not,
    without their comments and docstrings, and without how a binary is found again: what cannot
    change a time on the GPU does not change the version.
    """
    digest = hashlib.sha256()
    for module in sorted(_with_imports({f"{_ROOM}launch"})):
        digest.update(repr((module, _skeleton(_tree(module)))).encode())
    return digest.hexdigest()[:12]


def _with_imports(modules: set[str]) -> set[str]:
    found = modules | {name for module in modules for name in _imports(module)} - _HOST
    return found if found == modules else _with_imports(found)


def _imports(module: str) -> Iterator[str]:
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_ROOM):
            yield str(node.module)


@cache
def _tree(module: str) -> ast.Module:
    path = _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _skeleton(node: Any) -> Any:
    """A syntax tree, alike under every Python: without what is absent, empty or a bare text."""
    if isinstance(node, ast.AST):
        fields = [(name, _skeleton(value)) for name, value in ast.iter_fields(node)]
        return type(node).__name__, [(n, value) for n, value in fields if value not in ("None", [])]
    if isinstance(node, list):
        return [_skeleton(one) for one in node if not _is_bare_text(one)]
    return repr(node)


def _is_bare_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
