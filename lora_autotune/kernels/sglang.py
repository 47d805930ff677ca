"""The CSGMV kernels of the SGLang that is installed, as they are.

They are read from SGLang's files rather than imported: importing them takes five seconds, most of a
server and everything that it depends on, and wraps them in a launcher that is of no use here. What
is read is the same source, so a server compiles the same kernel.

Versions differ (0.5.12 and 0.5.23: where the files are, ``SLICE_OFFSETS``), so each argument is
found by its own name.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton

from lora_autotune.errors import EvaluatorError
from lora_autotune.kernels.batch import Batch
from lora_autotune.kernels.launch import Launch
from lora_autotune.kernels.schedule import Schedule, Target
from lora_autotune.kernels.variant import Variant
from lora_autotune.task import KERNELS, Task

if TYPE_CHECKING:
    from torch import Tensor

HOMES = ("kernels/ops/lora/dense", "srt/lora/triton_ops")
"""Where in SGLang its files are, from the newest version to the oldest."""

_ARGUMENTS = {
    **{name: name for name in ("x", "weights", "output")},
    "output_stride_0": "row_stride",
    "output_stride_1": "column_stride",
    **{
        name: f"batch.{name}"
        for name in (
            *("seg_indptr", "weight_indices", "lora_ranks", "permutation", "num_segs"),
            "scalings",
        )
    },
    "slice_offsets": "offsets",
    "SLICE_OFFSETS": "task.slice_offsets",
    "N": "columns",
    "K": "task.K",
    "OUTPUT_DIM": "task.K",
    "MAX_RANK": "task.R",
    "NUM_SLICES": "task.S",
    "BLOCK_M": "task.chunk_size",
}
"""A kernel's argument -> the attribute of :class:`_Call` that it is given; the config has the rest.

SLICE_OFFSETS, which newer versions have, are the boundaries known to the compiler.
"""

_FROM_CONFIG = ("BLOCK_N", "BLOCK_K")


@dataclass(frozen=True, slots=True)
class _Call:
    task: Task
    x: Tensor
    weights: Tensor
    output: Tensor
    batch: Batch
    offsets: Tensor

    @property
    def columns(self) -> int:
        return self.task.S * self.task.R

    @property
    def row_stride(self) -> int:
        return self.output.stride(0)

    @property
    def column_stride(self) -> int:
        return self.output.stride(1)


@dataclass(frozen=True, slots=True)
class SglangKernels:
    """See :class:`lora_autotune.kernels.launcher.Launcher`.

    Attributes:
        name: "sglang-" and the version of the package.
        version: of the two files: twelve digits of their SHA-256.
        kernels: "shrink" and "expand" -> the Triton function.
    """

    name: str
    version: str
    kernels: Mapping[str, Any]

    def schedule(
        self, task: Task, batch: Batch, config: Mapping[str, int], target: Target
    ) -> Schedule:
        """Theirs know only one: a tile of a segment is a program."""
        del task, batch, config, target
        return Schedule()

    def launch(
        self,
        task: Task,
        matrices: tuple[Tensor, Tensor, Tensor],
        batch: Batch,
        offsets: Tensor,
        config: Mapping[str, int],
        schedule: Schedule,
    ) -> Launch:
        """As SGLang's own forward functions launch them."""
        del schedule
        kernel = self.kernels[task.kernel]
        call = _Call(task, *matrices, batch, offsets)
        constants = {name: value for name, value in config.items() if name not in _FROM_CONFIG}
        return Launch(
            variant=Variant(kernel, constants),
            grid=_grid(task, batch, config["BLOCK_N"], flat="SLICE_OFFSETS" in kernel.arg_names),
            args=tuple(
                config[name] if name in _FROM_CONFIG else attrgetter(_ARGUMENTS[name])(call)
                for name in kernel.arg_names
            ),
        )


def _grid(task: Task, batch: Batch, block_n: int, *, flat: bool) -> tuple[int, ...]:
    """Tiles and segments; with slices, those are an axis of their own, or the tiles of all."""
    segments = batch.sizes.grid_segments
    if task.slice_offsets is None:
        return triton.cdiv(task.S * task.R, block_n), segments
    tiles = [
        triton.cdiv(end - start, block_n) for start, end in itertools.pairwise(task.slice_offsets)
    ]
    return (sum(tiles), segments) if flat else (max(tiles), task.S, segments)


@functools.cache
def installed_kernels() -> SglangKernels:
    """Those of the SGLang that this process would import.

    Raises:
        EvaluatorError: there is none, or a kernel is not there or takes what we do not know.
    """
    files = _files()
    version = _version()
    kernels = {}
    for kernel, file in files.items():
        name = f"_chunked_lora_{kernel}_kernel"
        found = _triton_functions(file).get(name)
        if found is None:
            raise EvaluatorError(f"SGLang {version} has no {name} in {file}", hint=_HINT)
        unknown = [arg for arg in found.arg_names if arg not in {*_ARGUMENTS, *_FROM_CONFIG}]
        if unknown:
            raise EvaluatorError(
                f"SGLang {version}: nobody knows what {name} takes as {', '.join(unknown)}",
                hint=_HINT,
            )
        kernels[kernel] = found
    source = b"".join(file.read_bytes() for file in files.values())
    digest = hashlib.sha256(source).hexdigest()[:12]
    return SglangKernels(name=f"sglang-{version}", version=digest, kernels=kernels)


_HINT = "known are the kernels of SGLang 0.5.12 to 0.5.23"


def _files() -> dict[str, Path]:
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise EvaluatorError(
            "SGLang is not installed here: there are no kernels of it to tune",
            hint="pip install sglang, or leave out --kernels sglang",
        )
    for place, home in itertools.product(spec.submodule_search_locations, HOMES):
        files = {kernel: Path(place, home, f"chunked_sgmv_{kernel}.py") for kernel in KERNELS}
        if all(file.is_file() for file in files.values()):
            return files
    raise EvaluatorError(f"SGLang {_version()} has no CSGMV kernels where they were", hint=_HINT)


def _version() -> str:
    try:
        return metadata.version("sglang")
    except metadata.PackageNotFoundError:  # a checkout on the path
        return "unknown"


def _triton_functions(file: Path) -> dict[str, Any]:
    """The functions of a file under ``triton.jit``, without its other decorators and imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    tree.body = list(_kept(tree))
    names: dict[str, Any] = {"__name__": f"{__name__}.{file.stem}"}
    exec(compile(tree, str(file), "exec"), names)  # noqa: S102 - what a server imports
    return {name: value for name, value in names.items() if hasattr(value, "arg_names")}


def _kept(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = [d for d in node.decorator_list if "triton.jit" in ast.unparse(d)]
            if node.decorator_list:
                yield node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [getattr(node, "module", None) or alias.name for alias in node.names]
            if all(module.split(".")[0] in ("__future__", "triton") for module in modules):
                yield node
