"""A layer with LoRA, as one product and as three, beside the layer without LoRA, in one run.

    bench_layers.py [--only TEXT ...] [--rounds 9] [--out FILE]

bf16, rank 64, prefills of 2,048 to 30,720 tokens, of one adapter and of several with different
ranks; the layers of Qwen3-0.6B and of Qwen3-8B. The ways, timed in CUDA graphs in turns:

plain    x @ weight.T, by cuBLAS: what the layer takes without LoRA
apart    that, then our shrink and our expand
one      the layer's product and LoRA in one (kernels/linear.py), after our shrink
publ.    plain, then SGLang's shrink and expand with the configs in its package, where it is
         installed

Every way is compared with the float64 reference on the row's own batch first. The table shows
microseconds, what each way takes of plain, and whether a server takes "one" there (it "pays").
It needs a GPU: about a minute on an H100.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from clock import Clock
from contest import first_line, named, times_us
from decoder import DEVICE, project, random_projection, random_source
from gpu_session import Results, gpu_session, lacks_gpu
from lora_ways import Kernels, OneProduct
from published import SET, looked_up, published_config, published_name
from torch import Tensor

from lora_autotune.evaluators.correctness import TOLERANCES
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.kernel_set import BUILTIN
from lora_autotune.kernels.batch import Batch, served_batch
from lora_autotune.kernels.linear_forward import linear_gap
from lora_autotune.kernels.reference import expand_reference, shrink_reference
from lora_autotune.model import layer_task, layers_of, load_model_shape
from lora_autotune.space import Config
from lora_autotune.task import KERNELS, Instance, Task

DTYPE, RANK = "bfloat16", 64
NAMES = ("plain", "apart", "one", "publ.")
RANKS = (64, 16, 20, 0, 64, 8, 32, 64)
PREFILLS = (
    *(Instance(tokens=tokens) for tokens in (2048, 3072, 4096, 6144, 8192, 16_384, 30_720)),
    *(Instance(tokens=tokens, adapters=8, ranks=RANKS) for tokens in (4096, 8192)),
)
MODELS = {"Qwen3-0.6B": PREFILLS, "Qwen3-8B": PREFILLS[2:5]}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layer and one batch.

    Attributes:
        shrink: its shrink task.
        expand: its expand task; the chunk size is that of a server for the batch.
    """

    model: str
    shrink: Task
    expand: Task
    instance: Instance

    def __str__(self) -> str:
        task, batch = self.shrink, self.instance
        return f"{self.model}: {task.K} -> {self.expand.K}, S={task.S}, {batch}"


def all_rows() -> Iterator[Row]:
    """Every layer of both models on every batch of theirs."""
    for name, instances in MODELS.items():
        for instance, layer in itertools.product(instances, layers_of(load_model_shape(name))):
            shrink, expand = (
                layer_task(layer, kernel, rank=RANK, chunk_size=128, dtype=DTYPE)
                for kernel in KERNELS
            )
            yield Row(model=name, shrink=shrink, expand=expand, instance=instance)


Sides = Mapping[str, tuple[str, Config, Config]]
"""Name -> the set of kernels, and the configs of its shrink and its expand."""


class Layer:
    """A projection with an input and a batch, for one row."""

    def __init__(self, row: Row, gpu: Gpu) -> None:
        random = random_source(0)
        task, expand = row.shrink, row.expand
        self._row, self._gpu = row, gpu
        self._batch: Batch = served_batch(
            row.instance, rank=task.R, chunk_size=task.chunk_size, device=DEVICE
        )
        slots = self._batch.lora_ranks.shape[0]
        offsets = expand.slice_offsets or (0, expand.K)
        self._x = random(row.instance.tokens, task.K)
        self._projection = random_projection(random, task.K, offsets, rank=task.R, slots=slots)

    def ways(self, sides: Sides) -> dict[str, Callable[[], Tensor]]:
        """Each way to run LoRA."""
        row, batch = self._row, self._batch
        apart = {
            name: Kernels(kernels, {row.shrink: shrink, row.expand: expand}, batch, self._gpu)
            for name, (kernels, shrink, expand) in sides.items()
        }
        loras = {**apart, "one": OneProduct(apart["apart"], batch, always=True)}
        return {name: partial(lora, self._x, self._projection) for name, lora in loras.items()}

    def plain(self) -> Tensor:
        """Without LoRA."""
        return project(self._x, self._projection, None)

    def reference(self) -> Tensor:
        """float64 (s, N)."""
        of = self._projection
        middle = shrink_reference(self._x, of.a, self._batch, of.slices).nan_to_num(0.0)
        product = self._x.double() @ of.weight.double().T
        return expand_reference(middle, of.b, self._batch, of.offsets_on_device, product)

    def pays(self) -> bool:
        """Whether a server takes the one product."""
        of = self._projection
        return linear_gap(self._x, of.weight, of.a, of.b, self._batch, of.offsets) is None


def sides_of(row: Row, *, published: bool) -> Sides:
    """The ways that launch shrink and expand."""
    sides = {"apart": (BUILTIN, looked_up(row.shrink), looked_up(row.expand))}
    if published:
        sides["publ."] = (SET, published_config(row.shrink), published_config(row.expand))
    return sides


@torch.inference_mode()
def measure(row: Row, sides: Sides, gpu: Gpu, rounds: int) -> dict[str, Any]:
    """A row's times in microseconds, and what went wrong."""
    layer = Layer(row, gpu)
    ways = layer.ways(sides)
    failed: dict[str, str] = {}
    reference = layer.reference()
    for name in list(ways):
        try:
            relative = float((ways[name]().double() - reference).norm() / reference.norm())
            if not relative <= 2 * TOLERANCES[DTYPE]:
                failed[name] = f"differs from the reference by {relative:.2g}"
        except Exception as error:  # one way's, not the others'
            failed[name] = first_line(error)
        if name in failed:
            del ways[name]
    del reference
    ways["plain"] = layer.plain
    times, untimed = times_us({name: [call] for name, call in ways.items()}, rounds)
    return {
        "row": str(row),
        "us": {name: times[name] for name in NAMES if name in times},
        "pays": layer.pays(),
        "failed": failed | untimed,
    }


WIDTH = 62


def show(found: Mapping[str, Any]) -> None:
    """A line of the table, and one for each way that failed."""
    us = found["us"]
    cells = [f"{us[name]:9.1f}" if name in us else f"{'-':>9}" for name in NAMES]
    for name in NAMES[1:]:
        known = name in us and "plain" in us
        cells.append(f"{us[name] / us['plain']:8.2f}x" if known else f"{'-':>9}")
    print(f"{found['row']:{WIDTH}}", *cells, "  pays" if found.get("pays") else "", flush=True)
    for name, why in found["failed"].items():
        print(f"    {name}: {why}", flush=True)


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[Row]]:
    """The options, and the rows that they name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="rows whose name holds a text")
    parser.add_argument("--rounds", type=int, default=9, help="odd, for a median")
    parser.add_argument("--out", type=Path, help="everything as JSON")
    options = parser.parse_args(arguments)
    rows = named(all_rows(), options.only)
    if not rows:
        parser.error("--only: no such row")
    if options.rounds < 1:
        parser.error("--rounds: 1 or more")
    return options, rows


def main() -> int:
    """Measure every row; the exit status."""
    options, rows = parse()
    if lacks_gpu("bench_layers.py"):
        return 2
    published = published_name()
    with gpu_session(Clock(), published) as session:
        sides = {row: sides_of(row, published=published is not None) for row in rows}
        session.compile_ahead(
            (task, row.instance, config, kernels)
            for row in rows
            for kernels, *configs in sides[row].values()
            for task, config in zip((row.shrink, row.expand), configs, strict=True)
        )
        heads = [f"{name:>9}" for name in (*NAMES, *NAMES[1:])]
        print(f"{'us; then of plain':{WIDTH}}", *heads)
        results = Results(options.out, session.about, "rows")
        for row in rows:
            try:
                found = measure(row, sides[row], session.gpu, options.rounds)
            except Exception as error:  # one row's, not the others'
                found = {"row": str(row), "us": {}, "failed": {"row": first_line(error)}}
            show(found)
            torch.cuda.empty_cache()
            results.keep(found)
    return results.status


if __name__ == "__main__":
    sys.exit(main())
