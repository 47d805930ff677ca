"""A doctor to run, config files for it to find, and what it says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import lora_autotune
from lora_autotune.doctor import Finding, Report
from lora_autotune.doctor.finding import Section

ROOT = Path(lora_autotune.__file__).parent.parent
GOOD = {16: {"BLOCK_N": 16, "BLOCK_K": 64}}


def config_file(root: Path, *, K: int = 1024, triton: str = "3_6_0", gpu: str = "H200") -> Path:
    name = f"lora_shrink,K={K},R=64,S=1,device=NVIDIA_{gpu}.json"
    return root / "csgmv_configs" / f"triton_{triton}" / name


def problems(section: Section | Report) -> list[Finding]:
    return [finding for finding in section.findings if finding.status == "problem"]


def only_problem(section: Section) -> Finding:
    (problem,) = problems(section)
    return problem


def facts_of(section: Section, status: str) -> list[str]:
    return [finding.fact for finding in section.findings if finding.status == status]


def has_cuda() -> bool:
    torch = pytest.importorskip("torch")
    found: bool = torch.cuda.is_available()
    return found


def run_doctor(
    python: Path | str, *words: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), "-m", "lora_autotune", "doctor", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )
