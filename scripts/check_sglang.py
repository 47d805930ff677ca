"""Our plug-in in a GPU machine's SGLang: the same results as without it, and both times.

    check_sglang.py [--dtype bfloat16] [--rounds 9]

Needs SGLang, torch and Triton on the path; the package itself may be installed or run from the
checkout. SGLang's own forward functions and the hooked ones get the same LoRABatchInfo: decode and
prefill, eager and CUDA-graph buffers, one adapter and mixed ranks. So do its backend's method for a
whole layer and the hooked one ("layer"): the layer's own product with shrink and expand beside it,
all SGLang's, and one product of ours; where ours leaves the layer to SGLang, with our shrink and
expand, the line ends with why. Each pair is compared with the float64 reference, captured in CUDA
graphs of many launches, and replayed in turns; the table shows the median microseconds a launch,
and the host's for one eager call. Weights stay in L2 from launch to launch, as tuning does not let
them: read ratios, not absolute times. SGLang's kernels get the configs that its own lookup finds.
Exits with 1 if a result is wrong or ours did not run.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import triton
from sglang_layer import layer_of

from lora_autotune.kernels.batch import Batch, make_batch
from lora_autotune.kernels.linear_forward import CAPABILITY, linear_gap
from lora_autotune.kernels.reference import expand_reference, shrink_reference
from lora_autotune.sglang import activate, forwards
from lora_autotune.sglang.batches import batch_view

LAUNCHES = 20
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
RANK = 64
LAYERS = (
    ("qkv_proj", 1024, (0, 2048, 3072, 4096)),
    ("o_proj", 2048, (0, 1024)),
    ("gate_up_proj", 1024, (0, 3072, 6144)),
    ("down_proj", 3072, (0, 1024)),
)
"""Of Qwen3-0.6B: name, input width, boundaries of the output's slices."""

MIXED = [64, 0, 16, 32, 64, 8, 20, 64]
FULL = [64] * 7 + [0]


@dataclass(frozen=True)
class Case:
    """A batch to serve.

    Attributes:
        name: for the table.
        rows: tokens, padding included.
        real: tokens that belong to requests.
        ranks: of the eight slots.
        chunk_size: most rows in a segment.
        buffer: segments of a CUDA-graph buffer; None: an eager batch.
        adapters: slots in use.
        run: consecutive rows of one request, and so of one adapter.
    """

    name: str
    rows: int
    real: int
    ranks: list[int]
    chunk_size: int
    buffer: int | None
    adapters: int
    run: int = 1


CASES = (
    Case("decode 32, mixed, graph", 32, 32, MIXED, 16, 256, 8),
    Case("decode 256, padded from 200", 256, 200, MIXED, 16, 256, 8),
    Case("decode 1", 1, 1, FULL, 16, 256, 1),
    Case("prefill 300, ragged, mixed", 300, 300, MIXED, 16, None, 8),
    Case("prefill 4096, mixed, graph", 4096, 4096, MIXED, 16, 264, 8),
    Case("prefill 4096, one adapter", 4096, 4096, FULL, 16, None, 1),
    Case("prefill 4096, chunk 128", 4096, 4096, MIXED, 128, None, 8),
)

LAYER_CASES = (
    Case("prefill 8 x 512, mixed", 4096, 4096, MIXED, 128, None, 8, run=512),
    Case("prefill 8192, ragged, mixed", 8192, 8192, MIXED, 128, None, 8, run=700),
    Case("prefill 30720, one adapter", 30720, 30720, FULL, 128, None, 1),
)
"""Whole layers; a tile of consecutive rows should have few adapters, as in a server's prefill."""


@dataclass(frozen=True)
class Server:
    """SGLang's class of batches, its two hooked functions and its module of the backend that calls
    them, and how they are called."""

    info_class: Any
    shrink: Any
    expand: Any
    backend: Any
    dtype: torch.dtype
    rounds: int


def batch_of(case: Case, info_class: Any) -> tuple[Any, Batch]:
    """SGLang's description of the batch, and ours for the reference."""
    generator = torch.Generator().manual_seed(case.rows)
    requests = torch.randint(0, case.adapters, (-(-case.real // case.run),), generator=generator)
    owners = requests.repeat_interleave(case.run)[: case.real]
    batch = make_batch(
        owners,
        ranks=case.ranks,
        scalings=[0.5 + slot / 8 for slot in range(8)],
        chunk_size=case.chunk_size,
        grid_segments=None,
        device="cuda",
    )
    indptr, indices = batch.seg_indptr, batch.weight_indices
    permutation = torch.zeros(max(case.rows, 256 if case.buffer else 0), dtype=torch.int32).cuda()
    permutation[: case.real] = batch.permutation
    if case.buffer is not None:
        surplus = max(case.buffer - batch.num_segs, 0)
        indptr = torch.cat([indptr, indptr[-1:].expand(surplus)])
        indices = torch.cat([indices, indices.new_zeros(surplus)])
    info = info_class(
        use_cuda_graph=case.buffer is not None,
        bs=case.rows,
        num_segments=batch.num_segs,
        seg_indptr=indptr,
        weight_indices=indices,
        lora_ranks=batch.lora_ranks,
        scalings=batch.scalings,
        max_len=case.chunk_size,
        seg_lens=None,
        permutation=permutation,
    )
    return info, batch


def captured(call: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """A graph of many launches, warmed up."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def times_us(calls: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Median time of one launch of each call, the calls in turns."""
    graphs = [captured(call) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for graph, found in zip(graphs, times, strict=True):
            start, end = torch.cuda.Event(True), torch.cuda.Event(True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) * 1000 / LAUNCHES)
    return [statistics.median(found) for found in times]


def host_us(call: Callable[[], Any]) -> float:
    """Median time that the host spends in one eager call."""
    found = []
    for _ in range(50):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1e6)
    torch.cuda.synchronize()
    return statistics.median(found)


def error(output: torch.Tensor, reference: torch.Tensor) -> float:
    """Relative to the reference, where there is one."""
    owed = ~reference.isnan()
    if not owed.any() or not reference[owed].any():
        return 0.0
    found = float((output[owed].double() - reference[owed]).norm() / reference[owed].norm())
    return math.inf if math.isnan(found) else found


def compare(
    case: Case, width: int, boundaries: tuple[int, ...], server: Server
) -> Iterator[tuple[str, list[float], list[float], list[float]]]:
    """Of both kernels of a layer: name, errors, times and host times, SGLang's and then ours."""
    info, batch = batch_of(case, server.info_class)
    slices, out = len(boundaries) - 1, boundaries[-1]
    generator = torch.Generator("cuda").manual_seed(width)

    def fresh(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda").to(server.dtype)

    x, a, b = fresh(case.rows, width), fresh(8, slices * RANK, width) / 32, fresh(8, out, RANK) / 8
    offsets_cpu = torch.tensor(boundaries)
    offsets = offsets_cpu.cuda()
    wanted = shrink_reference(x, a, batch, slices)
    middle = torch.nan_to_num(wanted, 0.0).to(server.dtype)
    base, scratch = fresh(case.rows, out), fresh(case.rows, out)

    def shrink(function: Any) -> torch.Tensor:
        found: torch.Tensor = function(x=x, weights=a, batch_info=info, num_slices=slices)
        return found

    def expand(function: Any, output: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = function(
            x=middle,
            weights=b,
            batch_info=info,
            slice_offsets=offsets,
            slice_offsets_cpu=offsets_cpu,
            max_slice_size=max(end - start for start, end in itertools.pairwise(boundaries)),
            base_output=output,
        )
        return found

    both = (server.shrink.__wrapped__, server.shrink)
    errors = [error(shrink(function), wanted) for function in both]
    calls = [partial(shrink, function) for function in both]
    yield "shrink", errors, times_us(calls, server.rounds), [host_us(call) for call in calls]

    both = (server.expand.__wrapped__, server.expand)
    wanted = expand_reference(middle, b, batch, offsets, base)
    errors = [error(expand(function, base.clone()), wanted) for function in both]
    calls = [partial(expand, function, scratch) for function in both]
    yield "expand", errors, times_us(calls, server.rounds), [host_us(call) for call in calls]


@contextmanager
def unhooked(server: Server) -> Iterator[None]:
    """Within it the backend calls SGLang's own forward functions."""
    functions = server.shrink, server.expand
    for function in functions:
        setattr(server.backend, function.__name__, function.__wrapped__)
    try:
        yield
    finally:
        for function in functions:
            setattr(server.backend, function.__name__, function)


def compare_layer(
    case: Case, width: int, boundaries: tuple[int, ...], server: Server
) -> tuple[str | None, list[float], list[float], list[float]]:
    """Of a whole layer: why it is not ours, if so; errors, times and host times as of kernels."""
    info, batch = batch_of(case, server.info_class)
    slices, out = len(boundaries) - 1, boundaries[-1]
    generator = torch.Generator("cuda").manual_seed(width)

    def fresh(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda").to(server.dtype)

    x, weight = fresh(case.rows, width), fresh(out, width) / 32
    a, b = fresh(8, slices * RANK, width) / 32, fresh(8, out, RANK) / 8
    for slot, rank in enumerate(case.ranks):  # what an adapter may leave behind
        b[slot, :, rank:] = torch.nan
    backend_class = server.backend.ChunkedSgmvLoRABackend
    backend = backend_class.__new__(backend_class)
    backend.batch_info = info
    layer = layer_of(backend, weight, a, b, boundaries)
    base = layer.base_layer

    def base_product() -> torch.Tensor:
        found: torch.Tensor = base.quant_method.apply(base, x, None)
        return found

    operands = layer, x, base_product, a, b, layer.output_offset, boundaries

    def theirs() -> torch.Tensor:
        with unhooked(server):
            found: torch.Tensor = backend_class.forward_with_base.__wrapped__(backend, *operands)
        return found

    def ours() -> torch.Tensor:
        found: torch.Tensor = backend.forward_with_base(*operands)
        return found

    middle = torch.nan_to_num(shrink_reference(x, a, batch, slices), 0.0)
    product = x.double() @ weight.double().T
    wanted = expand_reference(middle, b, batch, layer.output_offset, product)
    del middle, product
    calls = [theirs, ours]
    errors = [error(call(), wanted) for call in calls]
    del wanted
    gap = linear_gap(x, base.weight, a, b, batch_view(info, case.rows), boundaries)
    return gap, errors, times_us(calls, server.rounds), [host_us(call) for call in calls]


def hooked_server(dtype: torch.dtype, rounds: int) -> Server:
    """SGLang with its plug-ins loaded."""
    os.environ["LORA_AUTOTUNE_SGLANG"] = "layers"
    from sglang.kernels.ops.lora.dense import chunked_sgmv_expand, chunked_sgmv_shrink
    from sglang.srt.lora.backend import chunked_backend
    from sglang.srt.lora.utils import LoRABatchInfo
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    load_plugins()
    if not hasattr(chunked_sgmv_shrink.chunked_sgmv_lora_shrink_forward, "__wrapped__"):
        print("no entry point of ours is installed: activated by hand")
        activate()
        HookRegistry.apply_hooks()
    return Server(
        info_class=LoRABatchInfo,
        shrink=chunked_sgmv_shrink.chunked_sgmv_lora_shrink_forward,
        expand=chunked_sgmv_expand.chunked_sgmv_lora_expand_forward,
        backend=chunked_backend,
        dtype=dtype,
        rounds=rounds,
    )


def show(words: str, found: list[list[float]], tolerance: float, gap: str | None = None) -> bool:
    """Print a line of errors, times and host times; whether an error is too large."""
    errors, times, hosts = found
    bad = not max(errors) <= tolerance
    print(
        f"{words}{times[0]:12.1f}{times[1]:12.1f}{times[0] / times[1]:11.2f}x"
        f"{hosts[0]:12.1f}{hosts[1]:12.1f}{max(errors):12.1e}"
        f"{' WRONG' if bad else ''}{f' (SGLang: {gap})' if gap else ''}",
        flush=True,
    )
    return bad


def main() -> int:
    """Compare and time everything; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    dtype = getattr(torch, arguments.dtype)
    server = hooked_server(dtype, arguments.rounds)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}, "
        f"{arguments.dtype}, rank {RANK}; error: relative, the worse of both"
    )
    heads = "sglang us", "ours us", "ratio", "sglang host", "ours host", "error"
    print(f"{'case':28} {'layer':13} {'kernel':7}" + "".join(f"{head:>12}" for head in heads))
    wrong = 0
    for case in CASES:
        for layer, width, boundaries in LAYERS:
            for kernel, *found in compare(case, width, boundaries, server):
                wrong += show(f"{case.name:28} {layer:13} {kernel:7}", found, TOLERANCE[dtype])
    joined = 0
    for case in LAYER_CASES:
        for layer, width, boundaries in LAYERS:
            gap, *found = compare_layer(case, width, boundaries, server)
            joined += gap is None
            words = f"{case.name:28} {layer:13} {'layer':7}"
            wrong += show(words, found, TOLERANCE[dtype], gap)
    cases = forwards.decisions()
    left = [case for case, config in cases.items() if config is None]
    for case in left:
        print("left to SGLang:", case)
    print(f"{wrong} wrong; of {len(cases)} cases {len(left)} left to SGLang; {joined} one product")
    ran = {kernel for kernel, *_ in cases} >= {"shrink", "expand"}
    if 10 * torch.cuda.get_device_capability()[0] == CAPABILITY:
        ran = ran and joined > 0
    return 1 if wrong or left or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
