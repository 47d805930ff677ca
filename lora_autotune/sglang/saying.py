"""What the plug-in has to say, said once a process."""

from __future__ import annotations

import functools
import logging

_log = logging.getLogger("lora_autotune.sglang")


@functools.lru_cache(maxsize=4096)
def say_once(message: str) -> None:
    """Log as information."""
    _log.info("%s", message)


@functools.lru_cache(maxsize=4096)
def warn_once(message: str) -> None:
    """Log as a warning."""
    _log.warning("%s", message)
