"""What of the real SGLang is hooked in which mode, where it has all of it and where it has not."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("sglang") is None:
    pytest.skip("SGLang is not installed: .ci/sglang runs these", allow_module_level=True)

from lora_autotune.sglang import MODE_VARIABLE, activate
from tests.loader_cases import said
from tests.sglang_cases import module

pytestmark = pytest.mark.usefixtures("fresh")

METHOD = "forward_with_base"
HOOKED = f"sglang.srt.lora.backend.base_backend.BaseLoRABackend.{METHOD}"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The targets that are handed to SGLang, which does nothing with them."""
    targets: list[str] = []
    registry = module("sglang.srt.plugins.hook_registry").HookRegistry
    monkeypatch.setattr(registry, "register", lambda target, *rest: targets.append(target))
    return targets


@pytest.mark.parametrize(
    ("mode", "count"), [("layers", 5), ("kernels", 4), ("", 4), ("configs", 2), ("off", 0)]
)
def test_layers_are_hooked_in_their_mode_only(
    mode: str,
    count: int,
    registered: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MODE_VARIABLE, mode)
    activate()
    assert len(registered) == count
    assert (HOOKED in registered) == (mode == "layers")
    assert not said(caplog, "WARNING")


def test_an_sglang_without_the_method_gets_the_other_hooks(
    registered: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = module("sglang.srt.lora.backend.base_backend").BaseLoRABackend
    monkeypatch.setenv(MODE_VARIABLE, "layers")
    with monkeypatch.context() as patch:
        patch.delattr(backend, METHOD)
        activate()
        activate()
    assert len(registered) == 8
    assert HOOKED not in registered
    (warning,) = said(caplog, "WARNING")
    assert warning.startswith("LoRA layers are left to SGLang: AttributeError: ")


def test_an_sglang_with_another_method_gets_the_other_hooks(
    registered: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = module("sglang.srt.lora.backend.base_backend").BaseLoRABackend
    monkeypatch.setenv(MODE_VARIABLE, "layers")
    monkeypatch.setattr(backend, METHOD, lambda layer, x, base_fn: base_fn())
    activate()
    assert len(registered) == 4
    (warning,) = said(caplog, "WARNING")
    assert f"{HOOKED} takes (layer, x, base_fn), not (self, layer, x, base_fn, " in warning


def test_an_sglang_whose_forward_functions_differ_is_left_alone(
    registered: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expand = module("sglang.kernels.ops.lora.dense.chunked_sgmv_expand")
    monkeypatch.setenv(MODE_VARIABLE, "layers")
    monkeypatch.setattr(expand, "chunked_sgmv_lora_expand_forward", lambda x: x)
    activate()
    assert registered == []
    (warning,) = said(caplog, "WARNING")
    assert warning.startswith("LoRA is left to SGLang: ")
