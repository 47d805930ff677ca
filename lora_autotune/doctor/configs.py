"""The config files that a server on this machine would find."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

from lora_autotune import loader
from lora_autotune.config_file import FOLDER, read_config_file, version_folder
from lora_autotune.config_tree import check_tree
from lora_autotune.doctor.finding import Notebook, Section
from lora_autotune.doctor.software import installed_version
from lora_autotune.kernel_set import BUILTIN, set_of
from lora_autotune.kernels_version import builtin_kernels_version
from lora_autotune.loader import ROOT_VARIABLE
from lora_autotune.provenance import find_provenance, is_provenance
from lora_autotune.sglang import MODE_VARIABLE, WITH_OUR_KERNELS, chosen_mode

_DEVICE = re.compile(r",device=(.+)\.json")
_MOST_NAMED = 20
_UNKNOWN = "not recorded"
_TUNE = "lora-autotune tune --model NAME --rank R --out DIR"


def examine_configs(device: str | None, triton: str | None) -> Section:
    """Validate every file under the root, and count those that are for this machine.

    Args:
        device: the GPU's name; None: there is none.
        triton: the version that runs here; None: there is none.
    """
    book = Notebook("Configs")
    named = os.environ.get(ROOT_VARIABLE)
    root = Path(loader.config_root())
    origin = ROOT_VARIABLE if named else "shipped with the package"
    fault = _root_fault(root)
    if fault is not None:
        fact, remedy = fault
        book.problem(f"{root} ({origin}) {fact}", remedy, stops=("lookup",))
        return book.section({"root": str(root), "origin": origin, "files": {}, "bad": []})
    good: dict[Path, str] = {}
    bad: list[str] = []
    stale: list[str] = []
    for path, error in check_tree(root / FOLDER):
        match = _DEVICE.search(path.name)
        if error is not None:
            (stale if is_provenance(path) else bad).append(str(error))
        elif match is not None:
            good[path] = match[1]
    book.ok(f"{root} ({origin}): {len(good)} good, {len(bad)} bad")
    for message in bad[:_MOST_NAMED]:
        book.problem(message, "tune that shape again, mend the file, or remove it")
    if len(bad) > _MOST_NAMED:
        rest = f"and {_files(len(bad) - _MOST_NAMED)} more"
        book.problem(rest, f"see them all: lora-autotune check {root / FOLDER}")
    for message in stale[:_MOST_NAMED]:
        book.note(message, "tune that shape again, or remove the file: no server reads it")
    _judge_use(book, good, device, triton)
    kernels = _kernels_of(good, device)
    _say_kernels(book, kernels)
    served = _say_in_force(book, {set_of(name.split()[0]) for name in kernels if name != _UNKNOWN})
    counts = Counter((name, path.parent.name) for path, name in good.items())
    files = [{"device": d, "folder": f, "files": n} for (d, f), n in sorted(counts.items())]
    facts = {"root": str(root), "origin": origin, "files": files, "bad": bad}
    return book.section({**facts, "provenance": stale, "kernels": dict(kernels), "sglang": served})


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


def _kernels_of(good: Mapping[Path, str], device: str | None) -> Counter[str]:
    """Sets of kernels -> entries that were tuned on them: this device's if it has any, else all."""
    mine = [path for path, of in good.items() if device and of == device.replace(" ", "_")]
    found: Counter[str] = Counter()
    for path in mine or good:
        for chunk_size, config in read_config_file(path).items():
            entry = find_provenance(path, chunk_size, config)
            if isinstance(entry, str):
                found[_UNKNOWN] += 1
            else:
                found[" ".join(filter(None, [entry.kernels, entry.kernels_version]))] += 1
    return found


def _say_kernels(book: Notebook, found: Mapping[str, int]) -> None:
    if not found:
        return
    named = ", ".join(f"{kernels} ({_entries(count)})" for kernels, count in sorted(found.items()))
    sets = {kernels.split()[0] for kernels in found if kernels != _UNKNOWN}
    if len({set_of(kernels) for kernels in sets}) > 1:
        book.note(
            f"tuned on different kernels: {named}",
            f"keep a folder for each set, and export {ROOT_VARIABLE} for the one that runs",
        )
        return
    book.ok(f"tuned on the kernels: {named}")
    here = f"{BUILTIN} {builtin_kernels_version()}"
    old = sum(n for name, n in found.items() if name.startswith(f"{BUILTIN} ") and name != here)
    if old:
        were = "was" if old == 1 else "were"
        book.note(
            f"the kernels here are {here}: {_entries(old)} {were} tuned on an earlier version",
            _TUNE,
        )


def _entries(count: int) -> str:
    return f"{count} entr" + ("ies" if count != 1 else "y")


def _say_in_force(book: Notebook, labels: Collection[str]) -> dict[str, str] | None:
    """Which configs a server here launches which kernels with; None: SGLang is not installed.

    Args:
        book: where it is said.
        labels: the sets that the configs of ours were tuned on.
    """
    version = installed_version("sglang")
    if version is None:
        return None
    mode = chosen_mode()
    theirs = Path(loader.config_root("sglang"), FOLDER)
    of_theirs = str(theirs.parent) if mode != "off" and theirs.is_dir() else "its own files"
    text = f"SGLang {version}, {MODE_VARIABLE}={mode}: its kernels launch with {of_theirs}"
    ours_run = mode in WITH_OUR_KERNELS
    if ours_run:
        text += f"; ours run where they can, with {loader.config_root()}"
    book.ok(text)
    running = BUILTIN if ours_run else "sglang"
    if os.environ.get(ROOT_VARIABLE) and labels and running not in labels and mode != "off":
        book.note(
            f"{ROOT_VARIABLE} has configs tuned on {', '.join(sorted(labels))} kernels,"
            f" but {running} ones run",
            f"export {ROOT_VARIABLE} for a folder of tune --kernels {running}",
        )
    return {"version": version, "mode": mode, "configs": of_theirs}


def _files(count: int) -> str:
    return f"{count} file" + ("s" if count != 1 else "")
