"""The names of what can be tuned: our kernels, or those of an installed SGLang.

A config belongs to the set that it was tuned on. The name of a set that does not ship with this
package says its version ("sglang-0.5.23").
"""

from __future__ import annotations

BUILTIN = "builtin"
KERNEL_SETS = (BUILTIN, "sglang")


def set_of(kernels: str) -> str:
    """A name without its version: "sglang-0.5.23" -> "sglang"."""
    return kernels.partition("-")[0]


def has_one_binary(kernels: str) -> bool:
    """Whether a config is one binary for all batches: ours take tiles from the batch."""
    return set_of(kernels) != BUILTIN
