"""The command ``doctor``. Prints plainly: rich may be what is missing."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import textwrap
from typing import Any

from lora_autotune import __version__
from lora_autotune.doctor import ABILITIES, Report, examine


def doctor(arguments: Any) -> int:
    """Print what this machine has, what is wrong and what to do; 1 if there is a problem."""
    waiting = "Looking at this machine ..." if sys.stderr.isatty() else ""
    print(waiting, end="\r" if waiting else "", file=sys.stderr, flush=True)
    report = examine()
    print(" " * len(waiting), end="\r" if waiting else "", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps(_as_json(report), indent=2))
    else:
        _print(report)
    return 0 if report.healthy else 1


def _as_json(report: Report) -> dict[str, Any]:
    abilities = {}
    for ability in ABILITIES:
        obstacle = report.obstacle(ability)
        because = None if obstacle is None else obstacle.fact
        abilities[ability] = {"works": obstacle is None, "because": because}
    return {
        "version": __version__,
        "healthy": report.healthy,
        "abilities": abilities,
        "findings": [finding.as_dict() for finding in report.findings],
        "facts": report.facts,
    }


def _print(report: Report) -> None:
    print(f"lora-autotune {__version__}")
    for topic, findings in itertools.groupby(report.findings, key=lambda one: one.topic):
        print(f"\n{topic}")
        for finding in findings:
            _line(f"  {finding.status:8} ", finding.fact)
            if finding.remedy is not None:
                _line(f"  {'':8} -> ", finding.remedy)
    print()
    for ability, title in ABILITIES.items():
        obstacle = report.obstacle(ability)
        words = "yes" if obstacle is None else f"no, because {obstacle.fact}"
        _line(f"{title[0].upper()}{title[1:]}: ", words, hang=2)


def _line(start: str, text: str, *, hang: int | None = None) -> None:
    """A line; on a terminal it is wrapped, and elsewhere it stays whole."""
    if sys.stdout.isatty():
        width = max(40, min(shutil.get_terminal_size().columns, 100))
        indent = " " * (len(start) if hang is None else hang)
        whole = textwrap.wrap(
            text,
            width,
            initial_indent=start,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        print("\n".join(whole))
    else:
        print(start + text)
