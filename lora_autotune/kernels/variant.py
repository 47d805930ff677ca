"""A kernel with its compile-time arguments, and the binaries of it that have been launched."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

ALIGNED_BYTES = 16
"""Triton compiles anew for a pointer that is not a multiple of it."""


class Variant:
    """What Triton has a binary for, but for the kind of the other arguments.

    Attributes:
        kernel: the Triton function.
        constants: its compile-time arguments, and the options that the config holds.
    """

    def __init__(self, kernel: Any, constants: Mapping[str, Any]) -> None:
        self.kernel = kernel
        self.constants = constants
        self._binaries: dict[Hashable, Any] = {}

    def launch(self, grid: tuple[int, ...], args: tuple[Any, ...], kind: Hashable) -> Any:
        """Launch on the current stream; returns the compiled kernel.

        Triton describes all arguments anew at each launch, to find the binary that fits: 21 us of
        the host. The same binary called again takes 9.

        Args:
            grid: programs along each axis of the launch grid: three of them, where a kind is given.
            args: the positional arguments, a tensor first.
            kind: all else that Triton compiles for, if every tensor is aligned: dtypes, and
                integers that the kernel is specialised for. None: Triton finds out itself.
        """
        if kind is None or not args[0].is_cuda or not _are_aligned(args):
            return self.kernel[grid](*args, **self.constants)
        binary = self._binaries.get(kind)
        if binary is None:
            binary = self._binaries[kind] = self.kernel[grid](*args, **self.constants)
        else:
            names = self.kernel.arg_names[len(args) :]
            binary[grid](*args, *[self.constants[name] for name in names])
        return binary

    def compile(self, grid: tuple[int, ...], args: tuple[Any, ...]) -> Any:
        """Compile for the active driver's target without launching; tensors may be blanks."""
        return self.kernel.warmup(*args, grid=grid, **self.constants)


def _are_aligned(args: tuple[Any, ...]) -> bool:
    return not any(
        arg.data_ptr() % ALIGNED_BYTES for arg in args if not isinstance(arg, int | float)
    )
