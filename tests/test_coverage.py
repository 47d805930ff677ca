"""What the plug-in leaves to SGLang, as far as it can be told without SGLang."""

from __future__ import annotations

import pytest
import torch

from lora_autotune.sglang.coverage import config_fault, expand_gap, shrink_gap

SOUND = {"BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}


def test_a_sound_config_has_no_fault():
    assert config_fault(SOUND) is None
    assert config_fault({"BLOCK_N": 16, "BLOCK_K": 256}) is None
    assert config_fault({**SOUND, "maxnreg": 96}) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"BLOCK_N": 48}, "BLOCK_N=48 is not a power of two"),
        ({"BLOCK_K": 8}, "BLOCK_K=8 is not a power of two from 16 on"),
        ({"BLOCK_N": 1 << 20}, "BLOCK_N=1048576 is over 1024"),
        ({"BLOCK_N": 1024, "BLOCK_K": 1024}, "BLOCK_N * BLOCK_K is over 65536"),
        ({"num_stages": 1 << 20}, "num_stages=1048576 is over 8"),
        ({"num_warps": 64}, "num_warps=64"),
        ({"maxnreg": 1}, "maxnreg=1 is not from 16 to 255"),
        ({"maxnreg": 256}, "maxnreg=256 is not from 16 to 255"),
    ],
)
def test_what_no_kernel_can_be_launched_with_is_a_fault(change, words):
    fault = config_fault({**SOUND, **change})
    assert fault is not None
    assert words in fault


@pytest.mark.parametrize("value", ["1", "true", "True"])
def test_deterministic_inference_is_left_to_sglang(monkeypatch, value):
    monkeypatch.setenv("SGLANG_ENABLE_DETERMINISTIC_INFERENCE", value)
    x, weights = torch.zeros(4, 16), torch.zeros(1, 16, 16)
    gap = shrink_gap(x, weights, None, 1, None)
    assert gap == "deterministic inference is asked for"
    assert expand_gap(x, weights, None, torch.zeros(2), None) == gap
