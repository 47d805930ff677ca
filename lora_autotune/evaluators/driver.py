"""The version of the GPU's driver, which CUDA itself does not tell."""

from __future__ import annotations

import ctypes

_LONGEST = 80


def driver_version() -> str | None:
    """What NVML says ("580.159.04"), None where it does not; a wedged driver never answers."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(_LONGEST)
        refused = nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, _LONGEST)
    except (OSError, AttributeError):
        return None
    return None if refused else text.value.decode(errors="replace")
