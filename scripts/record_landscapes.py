"""Records the landscapes that are to ship, one after the other on one warm machine. It needs a GPU.

    python scripts/record_landscapes.py [WORD..] [--out DIR] [--limit SECONDS] [--list]

With words, those whose file names hold any of them. What lies in the folder already, of the kernels
as they are now, is left out: a run which was cut short is simply started again. Up to two minutes
each on one H200.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lora_autotune.cli.command import public_command
from lora_autotune.errors import LoraAutotuneError
from lora_autotune.kernels_version import builtin_kernels_version
from lora_autotune.landscape import landscape_file_name, read_landscape
from lora_autotune.model import load_model_shape, tasks_for
from lora_autotune.task import Task, Workload, default_workload
from lora_autotune.workload import PRESETS, reaching

ROOT = Path(__file__).resolve().parent.parent

QKV = ("shrink", 1024, 3), ("expand", 4096, 3)
O_PROJ = ("shrink", 2048, 1), ("expand", 1024, 1)
GATE_UP = ("expand", 6144, 2)

WANTED = (
    # What scripts/tune replays where there is no GPU: the default workload.
    ("Qwen3-0.6B", 64, None, 64, (*QKV, *O_PROJ)),
    # A default server, where few rows have configs of their own, and are measured all the same.
    ("Qwen3-0.6B", 64, None, 16, (QKV[0], O_PROJ[1])),
    # Prompts from one to many; those of a larger model with a small rank. At decode there is
    # nothing to choose, and a chunk size of 128 is launched as 64.
    ("Qwen3-0.6B", 64, "prefill", 16, (GATE_UP, O_PROJ[0])),
    ("Llama-3.1-8B", 16, "prefill", 16, (("shrink", 4096, 3),)),
)
"""Model, rank, preset (None: default workload), chunk size, (kernel, K, S) of its tasks. What is
most wanted comes first."""


def wanted() -> dict[str, tuple[Task, Workload]]:
    """File name -> what is measured."""
    found = {}
    for model, rank, preset, chunk_size, shapes in WANTED:
        tasks = tasks_for(load_model_shape(model), rank=rank, chunk_sizes=[chunk_size])
        by_shape = {(task.kernel, task.K, task.S): task for task in tasks}
        batches = reaching(PRESETS[preset], chunk_size) if preset else default_workload(chunk_size)
        for task in (by_shape[shape] for shape in shapes):
            found[landscape_file_name(task, batches)] = task, batches
    return found


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--out", type=Path, default=ROOT / "configs/landscapes", metavar="DIR")
    parser.add_argument(
        "--limit", type=float, default=float("inf"), metavar="SECONDS", help="then begin no more"
    )
    parser.add_argument("--list", action="store_true", help="say which, and record none")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """The exit status; what one landscape fails with keeps no other from being recorded."""
    started_s = time.monotonic()
    words = sys.argv[1:] if words is None else words
    options = parse(words)
    left = {
        name: pair
        for name, pair in wanted().items()
        if (not options.words or any(word in name for word in options.words))
        and not _is_there(options.out / name)
    }
    if options.list or not left:
        print("\n".join(left) or f"nothing is missing in {options.out}")
        return 0
    from lora_autotune.evaluators.head_start import start_early

    start_early()  # while this process imports the rest
    from lora_autotune.cli.recording import record_all
    from lora_autotune.evaluators.cuda import CudaMachine

    command = public_command(words, "python scripts/record_landscapes.py")
    failed = 0
    with CudaMachine() as machine:
        for name, pair in left.items():
            if time.monotonic() - started_s > options.limit:
                print(f"the time is up: {name} is left", flush=True)
                continue
            try:
                record_all(machine, [pair], options.out, space_name="wide", command=command)
            except LoraAutotuneError as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                failed = 1
            print(f"{time.monotonic() - started_s:.0f} s", flush=True)
    return failed


def _is_there(file: Path) -> bool:
    """Whether a landscape was recorded on the kernels as they are now."""
    if not file.exists():
        return False
    return read_landscape(file).platform.kernels_version == builtin_kernels_version()


if __name__ == "__main__":
    sys.exit(main())
