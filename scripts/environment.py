"""Finds or makes the Python that a script of this folder runs on; prints what it chose.

    environment.py tune|search|test|ci

One line on stdout: ``cuda`` or ``cpu``, a space, the interpreter's path. Everything else goes to
stderr. A Python that has what is needed is used as it is: in a serving container configs must be
tuned under the Triton that will run them. One that only lacks small packages gets them in an
environment of ours on top. Otherwise an environment is made from a constraints file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venv"
CONSTRAINTS = ROOT / "scripts" / "constraints"

SEARCH = ("optuna", "rich")
GPU = ("torch", "triton")
TEST = (*GPU, *SEARCH, "pytest", "hypothesis", "numpy")
CI = (*TEST, "ruff", "mypy", "build", "hatchling")
OLDEST = {"optuna": 5, "rich": 13, "pytest": 8, "hypothesis": 6}
"""Oldest major version that will do; of the others any."""

_PROBE = """
import importlib.util, json, sys
from importlib import metadata

def version(name):
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "0"

root, cuda, *names = sys.argv[1:]
found = {name: version(name) for name in names}
sites = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
installed = {d.name: d.version for d in metadata.distributions() if d.name}
sees_cuda = False
if cuda and found.get("torch") and found.get("triton"):
    sys.path.insert(0, root)
    from lora_autotune.evaluators import driver, torch_build  # torch itself takes seconds
    sees_cuda = torch_build.torch_build().cuda is not None and driver.has_gpu()
print(json.dumps([found, sees_cuda, sites, installed]))
"""


@dataclass(frozen=True)
class Probe:
    """What a Python has.

    Attributes:
        missing: packages that it lacks, or has too old, of those asked about.
        cuda: its torch sees a GPU.
        sites: the folders that its packages lie in.
        installed: distribution -> version.
    """

    missing: tuple[str, ...]
    cuda: bool
    sites: tuple[str, ...]
    installed: dict[str, str]


def probe(python: str, names: Collection[str], *, cuda: bool = False) -> Probe | None:
    """What a Python has of some packages; None when it does not run."""
    command = [python, "-c", _PROBE, str(ROOT), "cuda" if cuda else "", *names]
    try:
        done = subprocess.run(command, cwd="/", check=True, stdout=subprocess.PIPE)
        found, has_cuda, sites, installed = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return None
    missing = tuple(name for name in names if not _will_do(name, found[name]))
    return Probe(missing, has_cuda, tuple(sites), installed)


def _will_do(name: str, version: str | None) -> bool:
    if version is None or name not in OLDEST:
        return version is not None
    return int(version.partition(".")[0]) >= OLDEST[name]


def choose(kind: str, python: str) -> tuple[str, str]:
    """Whether there is CUDA, and the interpreter; makes an environment where that is needed."""
    if kind == "search":
        return "cpu", _complete(python, SEARCH) or environment("search", python, SEARCH)
    needed = {"tune": (*GPU, *SEARCH), "test": TEST, "ci": CI}[kind]
    found = probe(python, needed, cuda=kind == "tune")
    has_torch = found is not None and not set(GPU) & set(found.missing)
    if found is not None and has_torch and (found.cuda or kind != "tune"):
        device = "cuda" if found.cuda else "cpu"
        if not found.missing:
            return device, python
        return device, environment(f"shared-{kind}", python, needed, base=found)
    if _gpu_present():
        return "cuda", environment("cuda", python, CI)
    if kind == "tune":
        return choose("search", python)
    return "cpu", environment("cpu", python, CI)


def _complete(python: str, needed: Sequence[str]) -> str | None:
    found = probe(python, needed)
    return python if found is not None and not found.missing else None


def _gpu_present() -> bool:
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    done = subprocess.run([command, "-L"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and "GPU" in done.stdout


def environment(name: str, python: str, needed: Sequence[str], *, base: Probe | None = None) -> str:
    """The interpreter of an environment in .venv, made unless it is there and complete.

    Its stamp is written last, so one that was interrupted is made again.

    Args:
        name: "search", "cuda", "cpu", or "shared-..." on top of the Python's own packages.
        python: what it is made with.
        needed: what it must have.
        base: what that Python has, for "shared-...".
    """
    folder = HOME / name
    interpreter = str(folder / "bin" / "python")
    packages, constraints = _plan(name, needed, base)
    parts = [python, sys.version, *packages, constraints, *(base.sites if base else ())]
    stamp, stamp_file = hashlib.sha256("\0".join(parts).encode()).hexdigest(), folder / "complete"
    HOME.mkdir(exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamped = stamp_file.is_file() and stamp_file.read_text() == stamp
        if stamped and _complete(interpreter, needed):
            return interpreter
        print(f"Setting up .venv/{name} ({', '.join(packages)}) ...", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        _run(
            [python, "-m", "venv", str(folder)],
            f"{python} cannot make virtual environments: install its venv and ensurepip modules "
            "(Debian: python3-venv), or name another Python in PYTHON",
        )
        if base is not None:
            (site,) = folder.glob("lib/python*/site-packages")
            lines = (f"import site; site.addsitedir({path!r})\n" for path in base.sites)
            (site / "below.pth").write_text("".join(lines))
        constraints_file = folder / "constraints.txt"
        constraints_file.write_text(constraints)
        quiet = [] if sys.stderr.isatty() else ["--quiet"]
        pip = [interpreter, "-m", "pip", "install", "--disable-pip-version-check", *quiet]
        _run([*pip, "-c", str(constraints_file), *packages], "pip could not install them")
        if not _complete(interpreter, needed):
            raise SystemExit(f"scripts: .venv/{name} lacks packages after its set-up")
        stamp_file.write_text(stamp)
        return interpreter


def _plan(name: str, needed: Sequence[str], base: Probe | None) -> tuple[list[str], str]:
    """What to install, and the pins for it."""
    pins = (CONSTRAINTS / "shared.txt").read_text()
    if base is None:
        if name in ("cpu", "cuda"):
            own = (CONSTRAINTS / f"{name}.txt").read_text()
            pins += own.replace("-c shared.txt", "")
        return list(needed), pins
    # Pins are for what the Python below lacks; its torch, Triton and numpy must stay what they are.
    present = {_canonical(k) for k in base.installed} - set(base.missing)
    rest = [pin for pin in pins.splitlines() if _canonical(pin.partition("==")[0]) not in present]
    held = [f"{k}=={v}" for k, v in base.installed.items() if k in (*GPU, "numpy")]
    return list(base.missing), "\n".join(rest + held) + "\n"


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _run(command: Sequence[str], problem: str) -> None:
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"scripts: {problem}")


if __name__ == "__main__":
    try:
        print(*choose(sys.argv[1], sys.executable))
    except KeyboardInterrupt:
        sys.exit(130)
