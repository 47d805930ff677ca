"""What an examination of the machine comes to: facts, and findings about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "note", "problem"]
Ability = Literal["tune", "search", "lookup"]

_MOST_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line about the machine.

    Attributes:
        status: ok; note: worth knowing, but all works; problem: something does not work.
        topic: what it is about; findings of one topic are shown together.
        fact: what is so, in one line.
        remedy: what to do about it, in one line; every problem has one.
        stops: what cannot be done here because of it.
    """

    status: Status
    topic: str
    fact: str
    remedy: str | None = None
    stops: tuple[Ability, ...] = ()

    def __post_init__(self) -> None:
        if self.status == "problem" and not self.remedy:
            raise ValueError(f"a problem without a remedy: {self.fact}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What one probe has seen: facts for programs, findings for people."""

    facts: Mapping[str, Any]
    findings: tuple[Finding, ...]


class Notebook:
    """Collects the findings of one probe under its topic."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._findings: list[Finding] = []

    def ok(self, fact: str) -> None:
        """Write down that something is as it should be."""
        self._add("ok", fact, None, ())

    def note(self, fact: str, remedy: str | None = None) -> None:
        """Write down something worth knowing."""
        self._add("note", fact, remedy, ())

    def problem(self, fact: str, remedy: str, *, stops: tuple[Ability, ...] = ()) -> None:
        """Write down what does not work, what to do, and what cannot be done until then."""
        self._add("problem", fact, remedy, stops)

    def section(self, facts: Mapping[str, Any]) -> Section:
        """All of it."""
        return Section(facts=facts, findings=tuple(self._findings))

    def _add(
        self, status: Status, fact: str, remedy: str | None, stops: tuple[Ability, ...]
    ) -> None:
        self._findings.append(
            Finding(
                status=status,
                topic=self._topic,
                fact=_one_line(fact),
                remedy=None if remedy is None else _one_line(remedy),
                stops=stops,
            )
        )


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 3] + "..."
