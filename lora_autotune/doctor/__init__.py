"""What this machine has, what is wrong with it, and what to do: facts and findings, no printing.

Needs the standard library only, and imports neither torch nor Triton here: a GPU is asked in a
child process under a time limit, because a wedged driver never answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_autotune.doctor.configs import examine_configs
from lora_autotune.doctor.disk import examine_disk
from lora_autotune.doctor.finding import Ability, Finding, Notebook, Section
from lora_autotune.doctor.gpu import examine_gpu
from lora_autotune.doctor.processes import examine_processes
from lora_autotune.doctor.software import (
    examine_compilers,
    examine_packages,
    installed_version,
)

__all__ = ["ABILITIES", "TOPICS", "Finding", "Report", "examine"]

TOPICS = ("GPU", "Packages", "Compiler", "Processes", "Configs", "Disk", "Trial")
"""In the order in which they are shown: causes before what they lead to."""

ABILITIES: Mapping[Ability, str] = {
    "tune": "tuning here",
    "search": "searching recorded measurements (--replay)",
    "lookup": "looking configs up",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that was seen.

    Attributes:
        facts: topic -> what its probe saw; for programs.
        findings: in the order of TOPICS.
    """

    facts: Mapping[str, Mapping[str, Any]]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """True when there is no problem."""
        return all(finding.status != "problem" for finding in self.findings)

    def obstacle(self, ability: Ability) -> Finding | None:
        """The first problem that stops an ability; None: it is there."""
        return next((one for one in self.findings if ability in one.stops), None)


def examine() -> Report:
    """Look at everything. Never raises: a probe that fails is a note that says so."""
    sections = {"GPU": _guarded("GPU", examine_gpu)}
    sections["Packages"] = _guarded("Packages", examine_packages)
    sections["Processes"] = _guarded("Processes", examine_processes)
    device = _device(sections["GPU"].facts)
    capability = float(device["capability"]) if device else None
    sections["Compiler"] = _guarded("Compiler", lambda: examine_compilers(capability))
    sections["Configs"] = _guarded(
        "Configs", lambda: examine_configs(device.get("name"), installed_version("triton"))
    )
    sections["Disk"] = _guarded("Disk", examine_disk)
    findings = [one for section in sections.values() for one in section.findings]
    return Report(
        facts={topic: section.facts for topic, section in sections.items()},
        findings=tuple(sorted(findings, key=lambda one: TOPICS.index(one.topic))),
    )


def _guarded(topic: str, probe: Callable[[], Section]) -> Section:
    try:
        return probe()
    except Exception as error:  # whatever it is, the other probes still have their say
        book = Notebook(topic)
        book.note(f"could not be examined: {type(error).__name__}: {error}")
        return book.section({"error": repr(error)})


def _device(gpu: Mapping[str, Any]) -> Mapping[str, Any]:
    """The GPU that tuning and a server here would use; empty: there is none."""
    devices: list[Mapping[str, Any]] = gpu.get("torch", {}).get("devices") or [{}]
    return devices[0]
