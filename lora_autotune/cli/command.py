"""The command line as it may be published: it names no place of this machine."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

_OF_PLACES = ("--out", "--journal")


def public_command(words: Sequence[str], program: str = "lora-autotune") -> str:
    """A program with its arguments; of the paths on this machine only the last part."""
    return " ".join([program, *map(shlex.quote, _public(words))])


def _public(words: Sequence[str]) -> Iterator[str]:
    option = ""
    for word in words:
        if word.startswith("--"):
            option, is_joined, value = word.partition("=")
            yield f"{option}={_last_part(option, value)}" if is_joined else word
        else:
            yield _last_part(option, word)


def _last_part(option: str, word: str) -> str:
    """A hub's name ("Qwen/Qwen3-0.6B") stays whole, unless it is a folder here."""
    is_place = option in _OF_PLACES or word.startswith(("/", "~", "."))
    text = Path(word).name or word if is_place or _is_here(word) else word
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _is_here(word: str) -> bool:
    try:
        return Path(word).exists()
    except (OSError, ValueError):  # too long for a name, or a null byte in it
        return False
