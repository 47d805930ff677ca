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
import fnmatch
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from ahead import compile_ahead
from contest import first_line, surroundings, times_us
from published import SET, looked_up, published_config, published_name
from torch import Tensor

from lora_autotune.evaluators import measuring
from lora_autotune.evaluators.correctness import TOLERANCES
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.plan import Operands, schedule_of, task_launch
from lora_autotune.kernel_set import BUILTIN
from lora_autotune.kernels.batch import Batch, served_batch
from lora_autotune.kernels.linear_forward import linear_forward, linear_gap
from lora_autotune.kernels.reference import expand_reference, shrink_reference
from lora_autotune.model import load_model_shape, tasks_for
from lora_autotune.space import Config
from lora_autotune.task import Instance, Task, offsets_from_widths

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
        shape = load_model_shape(name)
        tasks = tasks_for(shape, rank=RANK, dtype=DTYPE, chunk_sizes=(128,))
        q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        hidden, between = shape.hidden_size, shape.intermediate_size
        assert between is not None
        layers = (
            (hidden, (q, kv, kv)),
            (q, (hidden,)),
            (hidden, (between, between)),
            (between, (hidden,)),
        )
        for instance, (width, outputs) in itertools.product(instances, layers):
            offsets = offsets_from_widths(outputs)
            shrink, expand = (
                next(t for t in tasks if (t.kernel, t.K, t.S) == (kernel, size, len(outputs)))
                for kernel, size in (("shrink", width), ("expand", offsets[-1]))
            )
            yield Row(model=name, shrink=shrink, expand=expand, instance=instance)


class Layer:
    """A layer's tensors on a row's batch."""

    def __init__(self, row: Row, gpu: Gpu) -> None:
        generator = torch.Generator("cuda").manual_seed(0)

        def random(*size: int, scale: float = 1.0) -> Tensor:
            made = torch.randn(size, generator=generator, device="cuda", dtype=torch.bfloat16)
            return made.mul_(scale)

        task, expand = row.shrink, row.expand
        self.row, self._gpu = row, gpu
        self.batch: Batch = served_batch(
            row.instance, rank=task.R, chunk_size=task.chunk_size, device="cuda"
        )
        slots = self.batch.lora_ranks.shape[0]
        self.x = random(row.instance.tokens, task.K)
        self.weight = random(expand.K, task.K, scale=task.K**-0.5)
        self.a = random(slots, task.S * task.R, task.K, scale=task.K**-0.5)
        self.b = random(slots, expand.K, task.R, scale=task.R**-0.5)
        self.boundaries = expand.slice_offsets or (0, expand.K)
        self.offsets = torch.tensor(self.boundaries, device="cuda")

    def plain(self) -> Tensor:
        """Without LoRA."""
        return self.x @ self.weight.T

    def one(self, config: Config) -> Tensor:
        """As one product."""
        return linear_forward(
            self.x, self.weight, self.a, self.b, self.batch, self.offsets,
            shrink_config=config.as_dict(),
        )  # fmt: skip

    def apart(self, kernels: str, shrink: Config, expand: Config) -> Callable[[], Tensor]:
        """As the layer's product, shrink and expand of a set of kernels."""
        task, batch = self.row.shrink, self.batch
        plans = [
            (task, each.as_dict(), schedule_of(
                task, batch, each.as_dict(), self._gpu.multiprocessors, kernels=kernels
            ))
            for task, each in ((self.row.shrink, shrink), (self.row.expand, expand))
        ]  # fmt: skip

        def call() -> Tensor:
            output = self.plain()
            middle = self.x.new_empty((self.x.shape[0], task.S * task.R))
            for (its_task, config, schedule), operands in zip(
                plans,
                (
                    Operands(x=self.x, weights=self.a, output=middle),
                    Operands(x=middle, weights=self.b, output=output),
                ),
                strict=True,
            ):
                task_launch(
                    its_task, operands, batch, self.offsets, config, schedule, kernels=kernels
                )()
            return output

        return call

    def reference(self) -> Tensor:
        """float64 (s, N)."""
        middle = shrink_reference(self.x, self.a, self.batch, self.row.shrink.S).nan_to_num(0.0)
        product = self.x.double() @ self.weight.double().T
        return expand_reference(middle, self.b, self.batch, self.offsets, product)

    def pays(self) -> bool:
        """Whether a server takes the one product."""
        operands = self.x, self.weight, self.a, self.b
        return linear_gap(*operands, self.batch, self.boundaries) is None


Sides = Mapping[str, tuple[str, Config, Config]]
"""Name -> the set of kernels, and the configs of its shrink and its expand."""


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
    ways: dict[str, Callable[[], Tensor]] = {
        name: layer.apart(*side) for name, side in sides.items()
    }
    ways["one"] = lambda: layer.one(sides["apart"][1])
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
    wanted = [f"*{text}*" for text in options.only or [""]]
    rows = [
        row for row in all_rows() if any(fnmatch.fnmatchcase(str(row), text) for text in wanted)
    ]
    if not rows:
        parser.error("--only: no such row")
    if options.rounds < 1:
        parser.error("--rounds: 1 or more")
    return options, rows


def main() -> int:
    """Measure every row; the exit status."""
    options, rows = parse()
    if not torch.cuda.is_available():
        print("bench_layers.py: torch sees no CUDA device", file=sys.stderr)
        return 2
    started_s = time.perf_counter()
    published = published_name()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache_dir:
        measuring.set_up(cache_dir)
        gpu = measuring.describe()
        assert isinstance(gpu, Gpu)
        about = surroundings(gpu, published)
        print("; ".join(f"{key}: {value}" for key, value in about.items()))
        sides = {row: sides_of(row, published=published is not None) for row in rows}
        work = [
            (task, row.instance, config, kernels)
            for row in rows
            for kernels, *configs in sides[row].values()
            for task, config in zip((row.shrink, row.expand), configs, strict=True)
        ]
        compile_ahead(work, gpu, cache_dir)
        print(f"compiled after {time.perf_counter() - started_s:.0f} s", file=sys.stderr)
        heads = [f"{name:>9}" for name in (*NAMES, *NAMES[1:])]
        print(f"{'us; then of plain':{WIDTH}}", *heads)
        for row in rows:
            try:
                found = measure(row, sides[row], gpu, options.rounds)
            except Exception as error:  # one row's, not the others'
                found = {"row": str(row), "us": {}, "failed": {"row": first_line(error)}}
            results.append(found)
            show(found)
            torch.cuda.empty_cache()
            if options.out is not None:
                options.out.write_text(json.dumps({"about": about, "rows": results}, indent=1))
    print(f"{time.perf_counter() - started_s:.0f} s", file=sys.stderr)
    return 1 if any(found["failed"] for found in results) else 0


if __name__ == "__main__":
    sys.exit(main())
