"""Our kernels, cuBLAS on the same product and the published kernels, side by side in one run.

    bench_kernels.py [--all] [--only TEXT ...] [--tune] [--out FILE]

Each row is one batch of work. What is measured on it is timed in CUDA graphs over operands that the
L2 does not hold, in turns, median of 15 rounds:

ours       with the config that the loader finds (SGLANG_LORA_CONFIG_DIR is read), or by --tune
default    ours with the default config
cuBLAS     torch.bmm for shrink, baddbmm_ into the output for expand: see scripts/cublas.py
publ.      SGLang's kernels, where SGLang is installed, with the config in its own package
p. def.    SGLang's kernels with the default config
floor      bytes that must be read and written, over 4.8 TB/s (an H200's)

A kernel is compared with the float64 reference on a ragged batch, and with cuBLAS on the row's,
before it is timed: one that differs has its difference in the row in place of a time. It needs a
GPU: about a minute on an H200, and by --tune some three seconds more for each row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from clock import Clock
from contest import Calls, first_line, named, times_us
from cublas import cublas_call
from gpu_session import Results, gpu_session, lacks_gpu
from kernel_rows import Row, all_rows, floor_us
from published import SET, looked_up, published_config, published_name
from torch import Tensor

from lora_autotune.evaluators.correctness import TOLERANCES, difference_from_reference
from lora_autotune.evaluators.cuda import CudaMachine
from lora_autotune.evaluators.gpu import Gpu
from lora_autotune.evaluators.timing import Bench, make_bench
from lora_autotune.job import Job
from lora_autotune.kernel_set import BUILTIN
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.tuner import tune_all

NAMES = ("ours", "default", "cuBLAS", "publ.", "p. def.")
Sides = Mapping[str, tuple[str, Config]]
"""Name -> the set of kernels that it launches, and with what config."""


def sides_of(row: Row, ours: Config, *, published: bool) -> Sides:
    """All of a row's but cuBLAS."""
    default = DEFAULT_CONFIGS[row.task.kernel]
    sides = {"ours": (BUILTIN, ours), "default": (BUILTIN, default)}
    if published:
        sides["publ."] = (SET, published_config(row.task))
        sides["p. def."] = (SET, default)
    return sides


def tuned(rows: Sequence[Row]) -> list[Config]:
    """What the tuner chooses for each row's batch alone."""
    with CudaMachine() as machine:
        jobs = [Job(evaluator=machine.evaluator(row.task, (row.instance,))) for row in rows]
        chosen = {(one.task, one.workload): one.selection.config for one in tune_all(jobs)}
    return [chosen[row.task, (row.instance,)] or DEFAULT_CONFIGS[row.task.kernel] for row in rows]


def measure(row: Row, sides: Sides, gpu: Gpu) -> dict[str, Any]:
    """A row's times, and what went wrong, for the table and for JSON."""
    task, instance = row.task, row.instance
    bench = make_bench(task, instance, gpu=gpu, seed=0)
    scaling = float(bench.batch.scalings[0])
    cublas = [cublas_call(task, instance, operands, scaling) for operands in bench.sets]
    entries: dict[str, Calls] = {"cuBLAS": cublas}
    failed: dict[str, str] = {}
    for name, (kernels, config) in sides.items():
        try:
            own = replace(bench, kernels=kernels)
            launches = own.launches(config)
            wrong = difference(own, config, launches[0], cublas[0])
        except Exception as error:  # one side's, not the others'
            wrong = first_line(error)
        if wrong is None:
            entries[name] = launches
        else:
            failed[name] = wrong
    times, untimed = times_us(entries)
    return {
        "row": str(row),
        "task": asdict(task),
        "instance": instance.as_dict(),
        "us": {name: times[name] for name in NAMES if name in times},
        "floor_us": floor_us(task, instance),
        "configs": {name: config.as_dict() for name, (_, config) in sides.items()},
        "failed": failed | untimed,
    }


def difference(
    bench: Bench, config: Config, launch: Callable[[], Any], cublas: Callable[[], Tensor]
) -> str | None:
    """What a kernel gets wrong, in words; None: nothing that rounding does not explain."""
    generator = torch.Generator("cuda").manual_seed(0)
    wrong = difference_from_reference(
        bench.task, config, bench.schedule(config), generator, kernels=bench.kernels
    )
    if wrong is not None:
        return wrong
    output = bench.sets[0].output
    before = output.clone()
    products = []
    for call in (cublas, launch):
        output.fill_(torch.nan if bench.task.kernel == "shrink" else 0.0)
        call()
        products.append(output.float())
    output.copy_(before)
    expected, found = products
    owed = ~expected.isnan()
    relative = float((found - expected)[owed].norm() / expected[owed].norm())
    if relative <= 2 * TOLERANCES[bench.task.dtype]:
        return None
    return f"differs from cuBLAS by {relative:.2g}"


WIDTH = 84


def show_heads() -> None:
    """The table's first line."""
    times = [f"{name:>9}" for name in (*NAMES, "floor")]
    ratios = [f"{name:>8}" for name in (*NAMES[1:], "floor")]
    print(f"{'us; then others / ours, and ours / floor':{WIDTH}}", *times, *ratios)


def show(found: Mapping[str, Any]) -> None:
    """A line of the table, and one for each side that failed."""
    us, floor = found["us"], found["floor_us"]
    ours = us.get("ours")
    cells = [f"{us[name]:9.2f}" if name in us else f"{'-':>9}" for name in NAMES]
    cells.append(f"{floor:9.2f}")
    ratios = [us[name] / ours if ours and name in us else None for name in NAMES[1:]]
    ratios.append(ours / floor if ours else None)
    cells += [f"{'-':>8}" if ratio is None else f"{ratio:7.2f}x" for ratio in ratios]
    print(f"{found['row']:{WIDTH}}", *cells, flush=True)
    for name, why in found["failed"].items():
        print(f"    {name}: {why}", flush=True)


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[Row]]:
    """The options and the rows that they name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="all expand shapes at every chunk size")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="TEXT",
        help="rows whose name holds one of these (with * and ?)",
    )
    parser.add_argument("--tune", action="store_true", help="tune for each row's batch first")
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    parser.add_argument("--out", type=Path, help="everything as JSON")
    options = parser.parse_args(arguments)
    rows = named(all_rows(every_chunk=options.all), options.only)
    if not rows:
        parser.error("--only: no such row (--list shows them)")
    return options, rows


def main() -> int:
    """Measure every row; the exit status."""
    options, rows = parse()
    if options.list:
        print(*rows, sep="\n")
        return 0
    if lacks_gpu("bench_kernels.py"):
        return 2
    clock, published = Clock(), published_name()
    configs = tuned(rows) if options.tune else [looked_up(row.task) for row in rows]
    sides = {
        row: sides_of(row, config, published=published is not None)
        for row, config in zip(rows, configs, strict=True)
    }
    ours = "tuned for each row" if options.tune else "looked up"
    with gpu_session(clock, published, ours=ours) as session:
        session.compile_ahead(
            (row.task, row.instance, config, kernels)
            for row in rows
            for kernels, config in sides[row].values()
        )
        show_heads()
        results = Results(options.out, session.about, "rows")
        for row in rows:
            try:
                found = measure(row, sides[row], session.gpu)
            except Exception as error:  # one row's, not the others'
                found = {"row": str(row), "us": {}, "failed": {"row": first_line(error)}}
                found["floor_us"] = floor_us(row.task, row.instance)
            show(found)
            results.keep(found)
    return results.status


if __name__ == "__main__":
    sys.exit(main())
