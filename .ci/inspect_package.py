"""Looks inside the sdist and the wheels: nothing that belongs there is missing.

inspect_package.py FOLDER_WITH_SDIST_AND_WHEEL FOLDER_WITH_WHEEL
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def expected() -> set[str]:
    """Every file of the package, those behind its two links included."""
    package = ROOT / "lora_autotune"
    files = set()
    for folder in (package, package / "strategies", package / "configs"):
        files |= {p.relative_to(ROOT).as_posix() for p in folder.rglob("*") if p.is_file()}
    return {name for name in files if "__pycache__" not in name}


def wheel_files(folder: Path) -> set[str]:
    (wheel,) = folder.glob("*.whl")
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def sdist_files(folder: Path) -> set[str]:
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        links = [member.name for member in archive if member.issym() or member.islnk()]
        assert not links, f"links in the sdist: {links}"
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


package = expected()
for name in ("py.typed", "strategies/tpe.py", "strategies/__init__.py", "loader.py"):
    assert f"lora_autotune/{name}" in package, f"the checkout lacks {name}"

built, direct = Path(sys.argv[1]), Path(sys.argv[2])
for what, found in {"from the sdist": wheel_files(built), "direct": wheel_files(direct)}.items():
    assert found == package, f"wheel {what}: differs in {sorted(found ^ package)}"

sdist = sdist_files(built)
assert package <= sdist, f"the sdist lacks {sorted(package - sdist)}"
for name in ("LICENSE", "README.md", "scripts/tune", "tests/test_model.py"):
    assert name in sdist, f"the sdist lacks {name}"
provenances = sum(name.endswith(".provenance.json") for name in package)
configs = sum(name.endswith(".json") for name in package) - provenances
trees = {name.partition("/csgmv_configs/")[0] for name in package if "/csgmv_configs/" in name}
assert "lora_autotune/configs" in trees, "the package lacks the configs of scripts/tune"
landscapes = sum(name.endswith((".jsonl", ".jsonl.gz")) for name in package)
print(
    f"{len(package)} files: {configs} configs in {len(trees)} trees, "
    f"{provenances} with provenance, {landscapes} landscapes; {len(sdist)} in the sdist"
)
