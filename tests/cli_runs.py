"""Commands run in this process, and small landscapes for them to replay."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_autotune import cli
from lora_autotune.evaluator import Platform
from lora_autotune.landscape import Landscape, write_landscape
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace
from lora_autotune.task import DTypeName, Instance, Task
from lora_autotune.trial import Failure, Measurement, Outcome, Trial

SPACE = SearchSpace(
    {"BLOCK_N": (16, 32), "BLOCK_K": (64, 128), "num_warps": (4, 8), "num_stages": (2, 3)}
)
BEST_US = 3.0
BEST = {"BLOCK_N": 32, "BLOCK_K": 128, "num_warps": 8, "num_stages": 3}


def outcome(config: Config, default_us: float) -> Outcome:
    if config == DEFAULT_CONFIGS["shrink"]:
        return Measurement(times_us=(default_us,))
    if (config.num_warps, config.num_stages) == (4, 3):
        return Failure(kind="resources", message="too much shared memory")
    assert config.num_warps is not None
    assert config.num_stages is not None
    tile_us = 8192 / (config.BLOCK_N * config.BLOCK_K)
    return Measurement(times_us=(tile_us + 4 / config.num_warps + 1.5 / config.num_stages,))


def landscape_file(
    folder: Path,
    chunk_size: int,
    *,
    default_us: float = 10.0,
    K: int = 1024,
    dtype: DTypeName = "float16",
    device: str = "NVIDIA H200",
) -> Path:
    task = Task(kernel="shrink", K=K, R=64, S=3, chunk_size=chunk_size, dtype=dtype)
    configs = [DEFAULT_CONFIGS["shrink"], *SPACE]
    landscape = Landscape(
        task=task,
        workload=(Instance(tokens=30_720),),
        platform=Platform(device=device, triton="3.6.0"),
        space=SPACE,
        trials={c: Trial(config=c, outcome=outcome(c, default_us)) for c in configs},
    )
    folder.mkdir(exist_ok=True)
    path = folder / f"K{K}-chunk{chunk_size}.jsonl.gz"
    write_landscape(path, landscape)
    return path


def run(*words: str) -> int:
    """The exit code, also where argparse exits."""
    try:
        return cli.main(words)
    except SystemExit as stopped:
        return int(str(stopped.code))


def error_of(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """The one line that a command fails with."""
    assert run(*words) == code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("lora-autotune")
    return line


def config_file(out: Path) -> Path:
    name = "lora_shrink,K=1024,R=64,S=3,device=NVIDIA_H200.json"
    return out / "csgmv_configs" / "triton_3_6_0" / name
