"""What LoRA costs a whole model: a decoder of Qwen3-0.6B's shape, each step one CUDA graph.

    bench_model.py [--only TEXT ...] [--rounds 9] [--published-configs DIR] [--out FILE]

bf16, LoRA of rank 64 on qkv, o, gate_up and down, 8 slots; scripts/decoder.py says what else the
model is. The steps: prefill of 60 x 512 tokens with one adapter, at chunk size 16 and at 128, and
decode of 32 tokens over 8 adapters with 1,024 tokens cached, all in a server's segment buffers. The
ways: no LoRA; at prefill what no kernel outside of the layers' own can do without (each layer's
input read, its output read and written, and nothing computed); our kernels, by default and with the
configs that the loader finds (it reads SGLANG_LORA_CONFIG_DIR), and, "one product", with a layer's
own product and its LoRA in one where that is covered and pays; SGLang's kernels, where SGLang is
installed, by default, with the configs in its package, and with those in a folder that is given
(configs/sglang). They are replayed in turns: median milliseconds, and the ratio to no LoRA.
Each way's LoRA layers are compared with the float64 reference on a small batch first. It needs a
GPU: about a minute on an H200.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from clock import Clock
from contest import first_line, named, times_us
from decoder import DEVICE, DTYPE, Attention, Decoder, Lora, Projection
from gpu_session import Results, gpu_session, lacks_gpu
from lora_ways import Configs, Kernels, OneProduct
from published import SET, config_in, looked_up, published_config, published_name
from torch import Tensor

from lora_autotune.errors import LoraAutotuneError
from lora_autotune.evaluators.correctness import TOLERANCES
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.kernel_set import BUILTIN
from lora_autotune.kernels.batch import ADAPTER_SLOTS, Batch, served_batch
from lora_autotune.kernels.linear_forward import CAPABILITY
from lora_autotune.kernels.reference import expand_reference, shrink_reference
from lora_autotune.model import load_model_shape, tasks_for
from lora_autotune.space import DEFAULT_CONFIGS
from lora_autotune.task import DECODE, PREFILL, Instance, Task

MODEL, LAYERS, RANK = "Qwen3-0.6B", 28, 64
DTYPE_NAME = "bfloat16"
TUNED, ONE_PRODUCT = "ours, tuned", "ours, one product"
PROJECTIONS = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One pass through the model.

    Attributes:
        sequences: in the batch.
        cached: tokens of each in the cache, the new one included; None: a prefill.
    """

    name: str
    instance: Instance
    chunk_size: int
    sequences: int
    cached: int | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def small(self) -> Instance:
        """What the kernels are checked on: ragged rows of adapters with different ranks."""
        ranks = (RANK, 16, 20, 0, RANK)
        return Instance(tokens=3 * self.chunk_size + 5, adapters=len(ranks), ranks=ranks)


STEPS = (
    Step(name="prefill 60x512, chunk 16", instance=PREFILL, chunk_size=16, sequences=60),
    Step(name="prefill 60x512, chunk 128", instance=PREFILL, chunk_size=128, sequences=60),
    Step(name="decode 32, chunk 16", instance=DECODE, chunk_size=16, sequences=32, cached=1024),
)

Variants = Mapping[str, tuple[str, Configs]]
"""Name -> the set of kernels, and each task's config."""


def tasks_of(chunk_size: int) -> list[Task]:
    """The model's tasks at a chunk size."""
    shape = load_model_shape(MODEL)
    return tasks_for(shape, rank=RANK, dtype=DTYPE_NAME, chunk_sizes=(chunk_size,))


def variants_of(chunk_size: int, *, published: bool, configs: Path | None) -> Variants:
    """The ways to run LoRA; ``configs``: more for SGLang's kernels than its package has."""
    tasks = tasks_of(chunk_size)
    default = {task: DEFAULT_CONFIGS[task.kernel] for task in tasks}
    found = {
        "ours, default": (BUILTIN, default),
        TUNED: (BUILTIN, {task: looked_up(task) for task in tasks}),
    }
    if published:
        found["published, default"] = (SET, default)
        found["published, its files"] = (SET, {task: published_config(task) for task in tasks})
    if published and configs is not None:
        found["published, tuned"] = (SET, {task: config_in(configs, task) for task in tasks})
    return found


def loras_of(
    variants: Variants, batch: Batch, gpu: Gpu, *, prefill: bool, always: bool
) -> dict[str, Lora]:
    """Each way to run LoRA on a batch; ``always``: one product also where it does not pay."""
    loras: dict[str, Lora] = {}
    for name, (kernels, configs) in variants.items():
        apart = loras[name] = Kernels(kernels, configs, batch, gpu)
        if name == TUNED and prefill and gpu.capability == CAPABILITY:
            loras[ONE_PRODUCT] = OneProduct(apart, batch, always=always)
    return loras


def traffic_alone(x: Tensor, projection: Projection) -> Tensor:
    """Reads x, reads and writes the output: the least that LoRA beside a layer moves."""
    output = x @ projection.weight.T
    x.sum()
    return output.add_(0)


def error_of(lora: Lora, projection: Projection, batch: Batch) -> float:
    """Relative error of what is added to a projection's output; the reference is float64."""
    rows = batch.permutation.shape[0]
    x = torch.randn((rows, projection.weight.shape[1]), device=DEVICE, dtype=DTYPE)
    nothing = torch.zeros((rows, projection.weight.shape[0]), device=DEVICE, dtype=DTYPE)
    middle = shrink_reference(x, projection.a, batch, projection.slices)
    middle = middle.nan_to_num(0.0).to(DTYPE)
    offsets = projection.offsets_on_device
    expected = expand_reference(middle, projection.b, batch, offsets, nothing)
    added = lora(x, replace(projection, weight=torch.zeros_like(projection.weight)))
    return float((added.double() - expected).norm() / expected.norm())


def check(decoder: Decoder, step: Step, variants: Variants, gpu: Gpu) -> dict[str, str]:
    """The ways that compute something else, each with what, on a small batch."""
    batch = served_batch(step.small, rank=RANK, chunk_size=step.chunk_size, device=DEVICE)
    layer = decoder.layers[0]
    wrong = {}
    loras = loras_of(variants, batch, gpu, prefill=step.cached is None, always=True)
    for name, lora in loras.items():
        try:
            errors = {one: error_of(lora, getattr(layer, one), batch) for one in PROJECTIONS}
        except Exception as error:  # one way's, not the others'
            wrong[name] = first_line(error)
            continue
        worst = max(errors, key=errors.__getitem__)
        if not errors[worst] <= 2 * TOLERANCES[DTYPE_NAME]:
            wrong[name] = f"relative error of {worst}: {errors[worst]:.2g}"
    return wrong


def attention_of(decoder: Decoder, step: Step) -> Attention:
    """The step's."""
    if step.cached is None:
        return decoder.prefill(step.sequences)
    return decoder.decode(step.sequences, step.cached)


@torch.inference_mode()
def measure(
    decoder: Decoder, step: Step, variants: Variants, gpu: Gpu, rounds: int
) -> dict[str, Any]:
    """A step's times in milliseconds, and what went wrong."""
    failed = check(decoder, step, variants, gpu)
    rows = step.instance.tokens
    hidden = torch.randn((rows, decoder.shape.hidden_size), device=DEVICE, dtype=DTYPE)
    batch = served_batch(step.instance, rank=RANK, chunk_size=step.chunk_size, device=DEVICE)
    attend = attention_of(decoder, step)
    tokens = rows // step.sequences
    last = slice(tokens - 1, None, tokens)
    loras: dict[str, Lora | None] = {"no LoRA": None}
    if step.cached is None:  # at decode launches are what costs
        loras["its traffic alone"] = traffic_alone
    own = loras_of(variants, batch, gpu, prefill=step.cached is None, always=False)
    loras |= {name: lora for name, lora in own.items() if name not in failed}
    entries = {
        name: [partial(decoder.step, hidden, attend, lora, last)] for name, lora in loras.items()
    }
    times, untimed = times_us(entries, rounds)
    return {
        "step": step.name,
        "ms": {name: time_us / 1e3 for name, time_us in times.items()},
        "failed": failed | untimed,
    }


def show(found: Mapping[str, Any]) -> None:
    """A step's lines."""
    plain_ms = found["ms"].get("no LoRA")
    print(found["step"])
    for name, time_ms in found["ms"].items():
        ratio = f"{time_ms / plain_ms:6.3f}x" if plain_ms else ""
        print(f"    {name:22}{time_ms:10.3f} ms {ratio}", flush=True)
    for name, why in found["failed"].items():
        print(f"    {name}: {why}", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, with the steps that they name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="steps whose name holds a text")
    parser.add_argument("--rounds", type=int, default=9, help="odd, for a median")
    parser.add_argument(
        "--published-configs", type=Path, metavar="DIR", help="more configs for SGLang's kernels"
    )
    parser.add_argument("--out", type=Path, help="everything as JSON")
    options = parser.parse_args(arguments)
    options.steps = named(STEPS, options.only)
    if not options.steps:
        parser.error(f"--only: no such step (there are: {'; '.join(s.name for s in STEPS)})")
    if options.rounds < 1:
        parser.error("--rounds: 1 or more")
    return options


def main() -> int:
    """Measure every step; the exit status."""
    options = parse()
    if lacks_gpu("bench_model.py"):
        return 2
    published = published_name()
    with gpu_session(Clock(), published) as session:
        variants = {
            step: variants_of(
                step.chunk_size,
                published=published is not None,
                configs=options.published_configs,
            )
            for step in options.steps
        }
        session.compile_ahead(
            (task, instance, config, kernels)
            for step in options.steps
            for instance in (step.instance, step.small)
            for kernels, configs in variants[step].values()
            for task, config in configs.items()
        )
        shape = load_model_shape(MODEL)
        decoder = Decoder(shape, layers=LAYERS, rank=RANK, slots=ADAPTER_SLOTS)
        results = Results(options.out, session.about, "steps")
        for step in options.steps:
            try:
                found = measure(decoder, step, variants[step], session.gpu, options.rounds)
            except Exception as error:  # one step's, not the others'
                found = {"step": step.name, "ms": {}, "failed": {"step": first_line(error)}}
            show(found)
            torch.cuda.empty_cache()
            results.keep(found)
    return results.status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LoraAutotuneError as error:
        sys.exit(f"bench_model.py: {error}")
