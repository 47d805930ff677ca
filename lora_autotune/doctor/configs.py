"""The config files that a server on this machine would find."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from lora_autotune import loader
from lora_autotune.config_file import FOLDER, check_tree, version_folder
from lora_autotune.doctor.finding import Notebook, Section
from lora_autotune.loader import ROOT_VARIABLE

_DEVICE = re.compile(r",device=(.+)\.json")
_MOST_NAMED = 20
_TUNE = "lora-autotune tune --model NAME --rank R --out DIR"


def examine_configs(device: str | None, triton: str | None) -> Section:
    """Validate every file under the root, and count those that are for this machine.

    Args:
        device: the GPU's name; None: there is none.
        triton: the version that runs here; None: there is none.
    """
    book = Notebook("Configs")
    named = os.environ.get(ROOT_VARIABLE)
    root = Path(named) if named else Path(loader.__file__).parent / "configs"
    origin = ROOT_VARIABLE if named else "shipped with the package"
    fault = _root_fault(root)
    if fault is not None:
        fact, remedy = fault
        book.problem(f"{root} ({origin}) {fact}", remedy, stops=("lookup",))
        return book.section({"root": str(root), "origin": origin, "files": {}, "bad": []})
    good: dict[Path, str] = {}
    bad = []
    for path, error in check_tree(root / FOLDER):
        match = _DEVICE.search(path.name)
        if error is not None:
            bad.append(str(error))
        elif match is not None:
            good[path] = match[1]
    book.ok(f"{root} ({origin}): {len(good)} good, {len(bad)} bad")
    for message in bad[:_MOST_NAMED]:
        book.problem(message, "tune that shape again, mend the file, or remove it")
    if len(bad) > _MOST_NAMED:
        rest = f"and {_files(len(bad) - _MOST_NAMED)} more"
        book.problem(rest, f"see them all: lora-autotune check {root / FOLDER}")
    _judge_use(book, good, device, triton)
    counts = Counter((name, path.parent.name) for path, name in good.items())
    files = [{"device": d, "folder": f, "files": n} for (d, f), n in sorted(counts.items())]
    return book.section({"root": str(root), "origin": origin, "files": files, "bad": bad})


def _root_fault(root: Path) -> tuple[str, str] | None:
    """Why a server finds nothing at all there, and what to do."""
    set_it = f"export {ROOT_VARIABLE}=DIR, the --out of a run of lora-autotune tune"
    if not root.is_dir():
        return "is not a folder" if root.exists() else "does not exist", set_it
    for above in (root, root.parent):
        if above.name == FOLDER and not (root / FOLDER).exists():
            return f"is inside {FOLDER}, not above it", f"export {ROOT_VARIABLE}={above.parent}"
    try:
        names = {entry.name for entry in root.iterdir()}
    except OSError as error:
        return f"cannot be listed: {error.strerror}", f"chmod u+rx {root}, or {set_it}"
    return None if FOLDER in names else (f"holds no {FOLDER}", set_it)


def _judge_use(
    book: Notebook, good: Mapping[Path, str], device: str | None, triton: str | None
) -> None:
    others = Counter(f"{of} under {path.parent.name}" for path, of in good.items())
    if device is not None and triton is not None:
        name = device.replace(" ", "_")
        others = Counter({k: n for k, n in others.items() if not k.startswith(f"{name} under ")})
        mine = {path for path, of in good.items() if of == name}
        release = re.split(r"[^0-9.]", triton)[0].rstrip(".")
        folders = {version_folder(triton), version_folder(release)}
        exact = {path.name for path in mine if path.parent.name in folders}
        fallback = {path.name for path in mine} - exact
        if exact:
            book.ok(f"for {device} and Triton {triton}: {_files(len(exact))}")
        if fallback:
            versions = sorted({p.parent.name for p in mine if p.name in fallback})
            book.note(
                f"for {device}, but other Tritons than {triton}: {_files(len(fallback))}"
                f" ({', '.join(versions)}), used with a warning",
                f"tune under the server's Triton: {_TUNE}",
            )
        if not mine:
            book.note(f"none for {device}: its server gets the defaults", _TUNE)
    named = ", ".join(f"{of} ({_files(count)})" for of, count in sorted(others.items())) or "none"
    if device is None or triton is None:
        book.note(
            f"no {'GPU' if device is None else 'Triton'} here to look up for; there are: {named}",
            "name another machine's: lora-autotune lookup --device NAME --triton VERSION ...",
        )
    elif others:
        book.ok(f"for other GPUs: {named}")


def _files(count: int) -> str:
    return f"{count} file" + ("s" if count != 1 else "")
