"""A kernel with its compile-time arguments, and the binaries of it that have been launched."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

ALIGNED_BYTES = 16
"""Triton compiles anew for a pointer that is not a multiple of it."""


class Variant:
    """What Triton has a binary for, but for the device and the kind of the other arguments.

    Attributes:
        kernel: the Triton function.
        constants: its compile-time arguments, and the options that the config holds.
    """

    def __init__(self, kernel: Any, constants: Mapping[str, Any]) -> None:
        self.kernel = kernel
        self.constants = constants
        self._binaries: dict[Hashable, tuple[Any, tuple[Any, ...]]] = {}

    def launch(self, grid: tuple[int, ...], args: tuple[Any, ...], kind: Hashable) -> Any:
        """Launch on the current stream; returns the compiled kernel.

        Triton describes all arguments anew at each launch, to find the binary that fits: 21 us of
        the host. The same binary called again takes 10. A hook that is to run before each launch
        is a case for Triton; its instrumentation has to be on from the first launch.

        Args:
            grid: programs along each axis of the launch grid: three of them, where a kind is given.
            args: the positional arguments, a tensor first, or one that is described by its tiles.
            kind: what Triton compiles for besides the device, the tensors' dtypes and their
                alignment: the integers that the kernel is specialised for. None: Triton finds out
                itself.
        """
        key = None if kind is None or self.kernel.pre_run_hooks else _key(args, kind)
        if key is None:
            return self.kernel[grid](*args, **self.constants)
        known = self._binaries.get(key)
        if known is None:
            binary = self.kernel[grid](*args, **self.constants)
            names = self.kernel.arg_names[len(args) :]
            self._binaries[key] = binary, tuple(self.constants[name] for name in names)
            return binary
        binary, constants = known
        binary[grid](*args, *constants)
        return binary

    def compile(self, grid: tuple[int, ...], args: tuple[Any, ...]) -> Any:
        """Compile for the active driver's target without launching; tensors may be blanks."""
        return self.kernel.warmup(*args, grid=grid, **self.constants)


def _key(args: tuple[Any, ...], kind: Hashable) -> Hashable | None:
    """What a binary is known by; None where a tensor is not aligned, or on no GPU."""
    first = _tensor(args[0])
    if not first.is_cuda:
        return None
    key: list[Hashable] = [kind, first.device]
    for arg in args:
        if not isinstance(arg, int | float):
            tensor = _tensor(arg)
            if tensor.data_ptr() % ALIGNED_BYTES:
                return None
            key.append(tensor.dtype)
    return tuple(key)


def _tensor(arg: Any) -> Any:
    return getattr(arg, "base", arg)
