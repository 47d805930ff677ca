"""The plug-in for SGLang: installed beside it, a server uses our loader and our kernels.

SGLang calls :func:`activate` in each of its processes (entry-point group ``sglang.srt.plugins``).
``LORA_AUTOTUNE_SGLANG`` says how much is taken over; not set, it is "kernels".

======= ============================================ ===========================================
mode    SGLang's kernels launch with                 our kernels run
======= ============================================ ===========================================
off     what SGLang finds                            never
configs ``SGLANG_LORA_CONFIG_DIR``'s files, read by  never
        our loader; not set: those that ship here
        for its kernels, else SGLang's own
kernels the same (for what ours don't cover)         where they cover the case, with the configs
                                                     of ``SGLANG_LORA_CONFIG_DIR``; not set: with
                                                     those that ship here for ours
layers  the same                                     the same, and where it pays a layer's own
                                                     product and its LoRA are one product
======= ============================================ ===========================================

A config belongs to the kernels it was tuned on, and two sets ship: ``configs`` was tuned on ours,
``configs/sglang`` on SGLang's. Whoever sets the variable says what both get. Nothing here takes a
server down: what fails is left to SGLang, with one warning. (A fault of a running kernel poisons
the CUDA context, and is nobody's to catch.)
"""

from __future__ import annotations

import logging
import os

MODE_VARIABLE = "LORA_AUTOTUNE_SGLANG"
MODES = ("off", "configs", "kernels", "layers")
DEFAULT_MODE = "kernels"
WITH_OUR_KERNELS = ("kernels", "layers")
"""The modes in which our kernels run where they can."""

_log = logging.getLogger(__name__)


def chosen_mode() -> str:
    """What the environment asks for, which may be none of MODES."""
    return os.environ.get(MODE_VARIABLE, "").strip().lower() or DEFAULT_MODE


def activate() -> None:
    """Register the hooks of the chosen mode with SGLang's hook registry; never raises."""
    mode = chosen_mode()
    if mode not in MODES:
        _log.warning(
            "%s=%s is none of %s: LoRA is left to SGLang", MODE_VARIABLE, mode, ", ".join(MODES)
        )
        return
    if mode == "off":
        return
    try:
        from lora_autotune.sglang.hooks import register

        register(kernels=mode in WITH_OUR_KERNELS, layers=mode == "layers")
    except Exception as error:  # whatever another SGLang lacks: the server must start
        _log.warning("LoRA is left to SGLang: %s: %s", type(error).__name__, error)
