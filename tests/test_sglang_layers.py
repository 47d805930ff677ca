"""Linear layers with LoRA in the real SGLang, on the CPU: which are ours, and what they make."""

from __future__ import annotations

import functools
import importlib.util
import math
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("sglang") is None:
    pytest.skip("SGLang is not installed: .ci/sglang runs these", allow_module_level=True)

import torch

from lora_autotune.sglang import forwards, layers
from tests.loader_cases import said
from tests.sglang_cases import batch_info

pytestmark = pytest.mark.usefixtures("fresh")

K, R, BOUNDARIES, ADAPTERS = 64, 16, (0, 32, 64, 96), 3
NAME = "LoRA layer K=64 N=96 R=16 S=3"
LEAST_ROWS = 32


@functools.cache
def kind_named(path: str) -> type:
    """A class that is called like one of SGLang's, which need not be there."""
    home, _, name = path.rpartition(".")
    return type(name, (), {"__module__": home, "__qualname__": name})


def named(path: str) -> Any:
    """An object of it."""
    return kind_named(path)()


class Weight(torch.nn.Parameter):
    """As a quantization that hides behind the layer's weight has it."""


def arguments(rows: int = 40, **changes: Any) -> dict[str, Any]:
    """A call of the hook; a change names an argument, or what of the layer or batch it is of."""
    layer = named(changes.pop("kind_of_layer", f"{layers.LAYERS_MODULE}.{layers.LAYERS[0]}"))
    layer.base_layer = SimpleNamespace(
        weight=torch.nn.Parameter(torch.zeros(96, K).half(), requires_grad=False),
        bias=None,
        skip_bias_add=False,
        quant_method=named(layers.QUANT_METHOD),
    )
    for name in ("weight", "bias", "skip_bias_add", "quant_method"):
        if name in changes:
            setattr(layer.base_layer, name, changes.pop(name))
    backend = SimpleNamespace(
        name=changes.pop("backend", "csgmv"), batch_info=batch_info(rows, **changes.pop("info", {}))
    )
    usual = {
        "backend": backend,
        "layer": layer,
        "x": torch.zeros(rows, K).half(),
        "base_fn": None,
        "lora_a": torch.zeros(ADAPTERS, 3 * R, K).half(),
        "lora_b": torch.zeros(ADAPTERS, 96, R).half(),
        "output_offset": torch.tensor(BOUNDARIES, dtype=torch.int32),
        "offsets": BOUNDARIES,
    }
    return {**usual, **changes}


class Original:
    """In the place of SGLang's method: keeps its calls and returns itself."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *positional: Any, **options: Any) -> Any:
        self.calls.append((positional, options))
        return self


class Ours:
    """In the place of our kernel: has a gap, and keeps what it is called with."""

    LEAST_ROWS = LEAST_ROWS

    def __init__(self) -> None:
        self.gap: str | None = None
        self.asked: list[tuple[Any, ...]] = []
        self.made: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def linear_gap(self, *operands: Any) -> str | None:
        self.asked.append(operands)
        return self.gap

    def linear_forward(self, *operands: Any, **options: Any) -> Any:
        self.made.append((operands, options))
        return self


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Ours:
    kernel = Ours()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(layers, "_ours", lambda: kernel)
    monkeypatch.setattr(layers, "_least_rows", lambda: LEAST_ROWS)
    return kernel


def call(call: dict[str, Any], original: Any = None) -> Any:
    """The hook, called as the registry does."""
    return layers.around_forward_with_base(original or Original(), *call.values())


def layer_gap(call: dict[str, Any]) -> str | None:
    names = ("backend", "layer", "x", "lora_a", "lora_b", "output_offset", "offsets")
    return layers.layer_gap(layers.LayerCall(*(call[name] for name in names)))


# --- what is ours --------------------------------------------------------------------------------


def test_a_layer_is_one_product_with_its_adapters_and_that_is_said_once(
    ours: Ours, caplog: pytest.LogCaptureFixture
) -> None:
    for rows in (LEAST_ROWS, 48, 64):
        given = arguments(rows)
        assert call(given) is ours
        operands, options = ours.made[-1]
        x, weight, lora_a, lora_b, batch, offset = operands
        assert x is given["x"]
        assert weight is given["layer"].base_layer.weight
        assert (lora_a, lora_b, offset) == tuple(
            given[name] for name in ("lora_a", "lora_b", "output_offset")
        )
        assert batch.permutation.shape == (rows,)
        assert ours.asked[-1][:-1] == (x, weight, lora_a, lora_b, batch)
        assert ours.asked[-1][-1] == BOUNDARIES
        ((_, config),) = (item for item in forwards.decisions().items() if item[0][0] == "shrink")
        assert options == {"shrink_config": config}
    shrink, layer = said(caplog, "INFO")
    assert shrink.startswith("LoRA shrink K=64 R=16 S=3 chunk size 16: lora_autotune's kernel with")
    assert layer == f"{NAME}: one product with the layer's own"
    assert not [line for line in said(caplog, "WARNING") if "layer" in line]


@pytest.mark.parametrize("kind", layers.LAYERS)
def test_these_layers_can_be_ours(kind: str, ours: Ours) -> None:
    assert call(arguments(kind_of_layer=f"{layers.LAYERS_MODULE}.{kind}")) is ours


def test_a_bias_that_is_left_to_the_caller_is_none(ours: Ours) -> None:
    assert call(arguments(bias=torch.zeros(96).half(), skip_bias_add=True)) is ours


# --- what is not ---------------------------------------------------------------------------------


def test_few_rows_are_sglangs_and_nothing_else_is_looked_at(
    ours: Ours, caplog: pytest.LogCaptureFixture
) -> None:
    original = Original()
    x = torch.zeros(LEAST_ROWS - 1, K).half()
    for options in ({}, {"all_reduce": None}):
        given = (None, None, x, None, None, None, None, None)
        assert layers.around_forward_with_base(original, *given, **options) is original
        assert original.calls[-1][0] == given
    assert not ours.asked
    assert not forwards.decisions()
    assert not said(caplog, "INFO") + said(caplog, "WARNING")


@pytest.mark.parametrize(
    "options",
    [
        {"all_reduce": torch.neg},
        {"kind": "lm_head"},
        {"kind": "embedding"},
        {"pruned_batch_info": "of some rows"},
    ],
)
def test_another_computation_is_sglangs(
    options: dict[str, Any], ours: Ours, caplog: pytest.LogCaptureFixture
) -> None:
    given, original = tuple(arguments().values()), Original()
    assert layers.around_forward_with_base(original, *given, **options) is original
    ((positional, passed),) = original.calls
    assert all(a is b for a, b in zip(positional, given, strict=True))
    usual = {"all_reduce": None, "kind": "linear", "pruned_batch_info": None}
    assert passed == {**usual, **options}
    assert not ours.asked
    assert not said(caplog, "INFO") + said(caplog, "WARNING")


def test_what_torch_compiles_is_sglangs(ours: Ours, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    original = Original()
    assert call(arguments(), original) is original
    assert not ours.asked


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"backend": "triton"}, "backend triton"),
        (
            {"kind_of_layer": f"{layers.LAYERS_MODULE}.ParallelLMHeadWithLoRA"},
            "layer sglang.srt.lora.layers.ParallelLMHeadWithLoRA",
        ),
        (
            {"kind_of_layer": "somebody.RowParallelLinearWithLoRA"},
            "layer somebody.RowParallelLinearWithLoRA",
        ),
        (
            {"quant_method": named("sglang.srt.layers.quantization.fp8.Fp8LinearMethod")},
            "quantization sglang.srt.layers.quantization.fp8.Fp8LinearMethod",
        ),
        ({"quant_method": None}, "quantization builtins.NoneType"),
        (
            {"weight": Weight(torch.zeros(96, K).half(), requires_grad=False)},
            "test_sglang_layers.Weight",
        ),
        ({"bias": torch.zeros(96).half()}, "a bias is added"),
        ({"offsets": (0, 96)}, "48 columns for 1 slices of rank 16"),
        ({"offsets": (0,)}, "48 columns for 0 slices of rank 16"),
        ({"output_offset": torch.zeros(4)}, "slice offsets are torch.float32 on cpu"),
        (
            {"output_offset": torch.zeros(4, dtype=torch.int32, device="meta")},
            "slice offsets are torch.int32 on meta",
        ),
        ({"output_offset": torch.zeros(3, dtype=torch.int32)}, "not one more than slices"),
        ({"output_offset": torch.zeros(8, dtype=torch.int64)[::2]}, "are not contiguous"),
        ({"x": torch.zeros(40, K)}, "dtype torch.float32"),
        ({"x": torch.zeros(K, 40).half().T}, "a matrix is not contiguous"),
        ({"lora_a": torch.zeros(ADAPTERS, 48, K).bfloat16()}, "weights are torch.bfloat16"),
        ({"lora_a": torch.zeros(ADAPTERS, 48, 32).half()}, "3 slices differ"),
        (
            {
                "lora_a": torch.zeros(ADAPTERS, 3 * 513, K).half(),
                "lora_b": torch.zeros(ADAPTERS, 96, 513).half(),
            },
            "rank 513",
        ),
        ({"lora_b": torch.zeros(4, 96, R).half()}, "3 ranks for 4 adapters"),
        ({"info": {"max_len": 24}}, "chunk size 24"),
        ({"info": {"permutation": None}}, "no permutation"),
        ({"info": {"num_segments": torch.tensor(6)}}, "number of segments"),
        ({"info": {"scalings": torch.ones(3).half()}}, "scalings is torch.float16"),
    ],
)
def test_what_is_not_covered_is_sglangs_decided_and_said_once(
    changes: dict[str, Any],
    why: str,
    ours: Ours,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = arguments(**changes)
    gap = layer_gap(given)
    assert gap is not None
    assert why in gap
    decided: list[Any] = []
    decide = layers.layer_gap
    monkeypatch.setattr(layers, "layer_gap", lambda c: decided.append(c) or decide(c))
    original = Original()
    for _ in range(3):
        assert call(given, original) is original
    assert len(original.calls) == 3
    assert len(decided) == 1
    assert not ours.asked
    (line,) = said(caplog, "INFO")
    assert line.startswith("LoRA layer K=")
    assert line.endswith(f": SGLang's ({gap})")
    assert not said(caplog, "WARNING")


def test_a_layer_without_a_weight_is_sglangs(ours: Ours, caplog: pytest.LogCaptureFixture) -> None:
    given = arguments(quant_method=named("somebody.Packed"))
    del given["layer"].base_layer.weight
    original = Original()
    assert call(given, original) is original
    assert said(caplog, "INFO") == [f"{NAME}: SGLang's (quantization somebody.Packed)"]
    assert not said(caplog, "WARNING")


@pytest.mark.parametrize(
    ("variable", "why"),
    [
        ("SGLANG_ENABLE_DETERMINISTIC_INFERENCE", "deterministic inference is asked for"),
        ("SGLANG_ENABLE_LORA_CSGMV_SPLIT_K", "split-K is asked for"),
    ],
)
def test_what_the_environment_asks_for_is_sglangs(
    variable: str, why: str, ours: Ours, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    assert layer_gap(arguments()) == why
    original = Original()
    assert call(arguments(), original) is original
    assert not ours.asked


def test_without_a_gpu_and_the_interpreter_it_is_sglangs(
    ours: Ours, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    assert layer_gap(arguments()) == "tensors are on cpu"


def test_what_the_rows_decide_is_asked_at_each_call_and_said_once(
    ours: Ours, caplog: pytest.LogCaptureFixture
) -> None:
    original = Original()
    for rows in (40, 48, 56):
        ours.gap = f"{rows / 100} tiles a multiprocessor"
        assert call(arguments(rows), original) is original
    ours.gap = None
    assert call(arguments(64), original) is ours
    assert len(ours.asked) == 4
    assert len(original.calls) == 3
    assert [line for line in said(caplog, "INFO") if "layer" in line.split(":")[0]] == [
        f"{NAME}: SGLang's with 40 rows (0.4 tiles a multiprocessor)",
        f"{NAME}: one product with the layer's own",
    ]


def test_where_shrink_was_given_up_the_layer_is_sglangs(
    ours: Ours, caplog: pytest.LogCaptureFixture
) -> None:
    given = arguments()
    info = given["backend"].batch_info
    shrink = forwards.shrink_case(given["x"], given["lora_a"], info, 3)
    forwards.give_up("shrink", shrink, ValueError("a bug of ours"))
    original = Original()
    assert call(given, original) is original
    assert said(caplog, "INFO") == [f"{NAME}: SGLang's (shrink is SGLang's)"]


@pytest.mark.parametrize(
    "where", ["layer_gap", "shrink_config", "batch_view", "linear_gap", "linear_forward"]
)
def test_whatever_fails_the_original_runs_from_then_on_after_one_warning(
    where: str,
    ours: Ours,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed: list[Any] = []

    def fail(*operands: Any, **_: Any) -> None:
        failed.append(operands)
        raise ValueError("a bug of ours")

    monkeypatch.setattr(ours if where.startswith("linear") else layers, where, fail)
    original = Original()
    for _ in range(3):
        assert call(arguments(), original) is original
    assert len(failed) == 1
    (warning,) = (line for line in said(caplog, "WARNING") if "goes back" in line)
    assert warning == "LoRA layer goes back to SGLang's kernel: ValueError: a bug of ours"
    another = arguments(kind_of_layer=f"{layers.LAYERS_MODULE}.{layers.LAYERS[1]}")
    assert call(another, original) is original
    assert len(failed) == 2  # given up is the one case


def test_what_is_no_call_at_all_is_for_the_original_to_refuse(ours: Ours) -> None:
    original = Original()
    assert layers.around_forward_with_base(original, *[None] * 8) is original
    given = (None, None, torch.zeros(40, K), None, None, None, None, None)
    assert layers.around_forward_with_base(original, *given) is original


def test_a_kernel_that_cannot_be_imported_is_tried_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[None] = []

    def fail() -> None:
        tried.append(None)
        raise ImportError("no tensor descriptors")

    monkeypatch.setattr(layers, "_ours", fail)
    layers._least_rows.cache_clear()
    original = Original()
    try:
        for _ in range(3):
            assert call(arguments(), original) is original
        assert layers._least_rows() == math.inf
    finally:
        layers._least_rows.cache_clear()
    assert len(tried) == 1
    assert said(caplog, "WARNING") == [
        "LoRA layers are left to SGLang: ImportError: no tensor descriptors"
    ]


def test_the_kernel_is_there() -> None:
    from lora_autotune.kernels.linear_forward import LEAST_ROWS as LEAST

    layers._least_rows.cache_clear()
    assert layers._least_rows() == LEAST
