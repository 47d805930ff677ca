"""The benchmarks of the kernels and of a model, and the compile check: all that needs no GPU."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lora_autotune.evaluators.plan import Operands, shapes, task_offsets
from lora_autotune.kernels.batch import served_batch
from lora_autotune.kernels.reference import expand_reference, shrink_reference
from lora_autotune.space import SPACE_NAMES, named_space
from lora_autotune.task import CHUNK_SIZES, KERNELS, PREFILL, Instance, Task
from lora_autotune.trial import Failure

SCRIPTS = str(Path(__file__).resolve().parent.parent / "scripts")


def load(name: str) -> ModuleType:
    sys.path.insert(0, SCRIPTS)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(SCRIPTS)


bench_kernels = load("bench_kernels")
bench_layers = load("bench_layers")
bench_model = load("bench_model")
check_compiles = load("check_compiles")
contest = load("contest")
cublas = load("cublas")
decoder = load("decoder")
kernel_rows = load("kernel_rows")


@pytest.mark.parametrize(
    "script", [bench_kernels.parse, bench_layers.parse, bench_model.parse, check_compiles.main]
)
def test_help_says_what_it_is(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script(["--help"])
    assert stopped.value.code == 0
    assert "--" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (bench_kernels.parse, ["--only", "no such row"]),
        (bench_layers.parse, ["--only", "no such layer"]),
        (bench_layers.parse, ["--rounds", "0"]),
        (bench_model.parse, ["--only", "no such step"]),
        (bench_model.parse, ["--rounds", "0"]),
        (check_compiles.main, ["--arch", "75"]),
        (check_compiles.main, ["--family", "narrow"]),
    ],
)
def test_what_makes_no_sense_is_refused(script, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        script(words)
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_rows_of_layers_are_of_all_four_of_a_model():
    rows = list(bench_layers.all_rows())
    assert len({str(row) for row in rows}) == len(rows)
    small = {
        (row.shrink.K, row.expand.K, row.shrink.S) for row in rows if row.model == "Qwen3-0.6B"
    }
    assert small == {(1024, 4096, 3), (2048, 1024, 1), (1024, 6144, 2), (3072, 1024, 1)}
    assert all(row.shrink.S == row.expand.S for row in rows)
    _, named = bench_layers.parse(["--only", "8B*4096 -> 24576"])
    assert {row.expand.slice_offsets for row in named} == {(0, 12_288, 24_576)}


def test_rows_hold_the_baseline_s_and_have_names_of_their_own():
    rows = kernel_rows.all_rows(every_chunk=True)
    assert len({str(row) for row in rows}) == len(rows)
    assert set(kernel_rows.all_rows()) < set(rows)
    large = {
        (row.task.K, row.task.S, row.task.chunk_size) for row in rows if row.instance == PREFILL
    }
    for shape in (1024, 3), (4096, 3), (1024, 1), (6144, 2):
        assert {(*shape, chunk_size) for chunk_size in CHUNK_SIZES} <= large
    _, named = bench_kernels.parse(["--only", "expand K=4096*chunk 64", "small"])
    assert {row.group for row in named} == {"prefill", "ranks", "small prefill"}


@pytest.mark.parametrize(
    ("kernel", "megabytes"),
    [
        ("shrink", (30_720 * 1024 + 192 * 1024 + 30_720 * 192) * 2e-6),
        ("expand", (30_720 * 192 + 1024 * 64 + 2 * 30_720 * 1024) * 2e-6),
    ],
)
def test_the_floor_is_all_bytes_over_the_bandwidth(kernel, megabytes):
    offsets = (0, 512, 768, 1024) if kernel == "expand" else None
    task = Task(kernel=kernel, K=1024, R=64, S=3, chunk_size=64, slice_offsets=offsets)
    assert kernel_rows.floor_us(task, PREFILL) == pytest.approx(megabytes / 4.8)
    nobody = Instance(tokens=30_721, adapters=2, ranks=(64, 0))
    assert kernel_rows.floor_us(task, nobody) < 0.6 * kernel_rows.floor_us(task, PREFILL)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("tokens", "adapters", "ranks"), [(40, 1, None), (12, 3, None), (45, 4, (16, 8, 0, 5))]
)
def test_the_dense_product_is_the_kernels_own(kernel, tokens, adapters, ranks):
    offsets = (0, 24, 40, 72) if kernel == "expand" else None
    task = Task(kernel=kernel, K=72, R=16, S=3, chunk_size=16, slice_offsets=offsets)
    instance = Instance(tokens=tokens, adapters=adapters, ranks=ranks)
    batch = served_batch(instance, rank=16, chunk_size=16, device="cpu")
    generator = torch.Generator().manual_seed(0)
    x, weights, output = (
        torch.randn(shape, generator=generator)
        for shape in shapes(task, tokens, batch.lora_ranks.shape[0])
    )
    if kernel == "shrink":
        output.fill_(torch.nan)
        expected = shrink_reference(x, weights, batch, 3)
    else:
        on_device = task_offsets(task, device="cpu")
        expected = expand_reference(x, weights, batch, on_device, output)
    operands = Operands(x=x, weights=weights, output=output)

    found = cublas.cublas_call(task, instance, operands, 0.5)()

    torch.testing.assert_close(found.double(), expected, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_an_entry_that_fails_leaves_the_others_their_times(monkeypatch):
    class Timer:
        def __init__(self, entry, config):
            (self.call,) = entry.launches(config)

        def time_us(self):
            return self.call()

    def warm_up(calls):
        for call in calls:
            call()

    def broken():
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setattr(contest, "GraphTimer", Timer)
    monkeypatch.setattr(contest, "warm_up", warm_up)
    times = iter(range(1, 100))
    times, failed = contest.times_us({"bad": [broken], "good": [lambda: next(times)]}, rounds=3)
    assert times == {"good": 5}  # of 3, 5 and 7: the others are the warm-up's and untimed replays
    assert failed == {"bad": "RuntimeError: no kernel image"}


def test_a_decoder_gives_each_projection_s_input_and_output_to_lora(monkeypatch):
    monkeypatch.setattr(decoder, "DEVICE", "cpu")
    shape = replace(
        bench_model.load_model_shape(bench_model.MODEL),
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=50,
    )
    model = decoder.Decoder(shape, layers=2, rank=8, slots=3)
    seen = []

    def lora(x, projection):
        assert x.is_contiguous()
        output = x @ projection.weight.T
        seen.append((projection.slices, x.shape, output.shape))
        assert projection.a.shape == (3, projection.slices * 8, x.shape[1])
        assert projection.b.shape == (3, output.shape[1], 8)
        return output

    one_layer = [
        (3, (12, 32), (12, 128)),
        (1, (12, 64), (12, 32)),
        (2, (12, 32), (12, 96)),
        (1, (12, 48), (12, 32)),
    ]
    hidden = torch.randn((12, 32), dtype=decoder.DTYPE)
    for attend, last in (
        (model.prefill(3), slice(3, None, 4)),
        (model.decode(12, 5), slice(0, None, 1)),
    ):
        seen.clear()
        logits = model.step(hidden, attend, lora, last)
        assert seen == one_layer * 2
        assert logits.shape == (3 if last.step == 4 else 12, 50)
        assert logits.isfinite().all()


@pytest.mark.parametrize("name", SPACE_NAMES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_compiled_families_hold_every_value_of_every_axis(name, kernel):
    space = named_space(name, kernel)
    configs = [config for task, _, config in check_compiles.cases(name) if task.kernel == kernel]
    for axis, values in space.axes.items():
        assert {getattr(config, axis) for config in configs} == set(values)


@pytest.mark.parametrize(
    ("kind", "is_default", "outcome"),
    [
        (None, True, "compiled"),
        ("resources", False, "too large"),
        ("resources", True, "failed"),
        ("compile", False, "failed"),
    ],
)
def test_a_default_that_is_too_large_has_failed(kind, is_default, outcome):
    failure = None if kind is None else Failure(kind=kind, message="made up")
    assert check_compiles.outcome_of(failure, is_default=is_default) == outcome


def test_defaults_and_odd_ranks_are_compiled_at_every_chunk_size_and_dtype():
    tasks = [task for task, _, _ in check_compiles.cases("default")]
    assert {(task.kernel, task.chunk_size) for task in tasks} == {
        (kernel, chunk_size) for kernel in KERNELS for chunk_size in CHUNK_SIZES
    }
    odd = [task for task, _, _ in check_compiles.cases("ranks")]
    assert {task.dtype for task in odd} == {"float16", "bfloat16"}
    assert {task.R for task in odd} == {1, 20, 24, 128}
