"""Configs in the real SGLang: what its own loader reads of ours, and what its kernels get."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("sglang") is None:
    pytest.skip("SGLang is not installed: .ci/sglang runs these", allow_module_level=True)

import torch
import triton

from lora_autotune import loader
from lora_autotune.config_file import FOLDER, config_file_path, merge_config_file
from lora_autotune.provenance import is_provenance
from lora_autotune.sglang import lookups
from tests.loader_cases import said
from tests.sglang_cases import CONFIGS, H200, HOME, module, state

NAME = re.compile(r"lora_(\w+),K=(\d+),R=(\d+),S=(\d+),device=(.+)\.json")
TABLE = {16: {"BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 2}, 64: {"BLOCK_N": 64, "BLOCK_K": 32}}


pytestmark = pytest.mark.usefixtures("fresh")


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONFIGS.rglob(f"{FOLDER}/*/*.json")) if not is_provenance(path)],
    ids=lambda path: path.relative_to(CONFIGS).as_posix(),
)
def test_its_own_loader_reads_what_we_ship(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = module(f"{HOME}.lora_tuning_config")
    match = NAME.fullmatch(path.name)
    assert match
    kernel, device = match[1], match[5]
    K, R, S = map(int, match.groups()[1:4])
    version = path.parent.name.removeprefix("triton_").replace("_", ".")
    monkeypatch.setenv(loader.ROOT_VARIABLE, str(path.parents[2]))
    monkeypatch.setattr(tuning, "get_device_name", lambda: device)
    monkeypatch.setattr(tuning, "triton", SimpleNamespace(__version__=version))
    tuning.get_lora_configs.cache_clear()
    who = {"device_name": device, "triton_version": version}
    theirs = tuning.get_lora_configs(kernel, K, R, S)
    assert theirs == loader.get_lora_configs(kernel, K, R, S, **who)
    assert theirs == {int(k): v for k, v in json.loads(path.read_text()).items()}
    for chunk_size in (1, 16, 17, 32, 48, 64, 96, 128, 999):
        name = f"get_lora_{kernel}_config"
        ours = getattr(loader, name)(K, R, S, chunk_size, **who)
        assert getattr(tuning, name)(K, R, S, chunk_size) == ours
    tuning.get_lora_configs.cache_clear()


def test_in_mode_configs_its_kernels_get_what_the_variable_names(tmp_path: Path) -> None:
    def path(kernel: str, K: int, version: str, S: int = 3) -> Path:
        return config_file_path(
            tmp_path, kernel, K, 64, S, device_name=H200, triton_version=version
        )

    # By number 3.10.0 is newer than 3.9.0, by text it isn't; and SGLang's reader raises on "{".
    merge_config_file(path("shrink", 1024, "3.10.0"), TABLE)
    merge_config_file(path("shrink", 1024, "3.9.0"), {64: {"BLOCK_N": 16, "BLOCK_K": 16}})
    path("expand", 4096, "3.9.0").write_text("{")
    merge_config_file(path("expand", 1000, "3.9.0", 1), {16: {"BLOCK_N": 48, "BLOCK_K": 16}})
    hooked, answers, log = state("configs", **{loader.ROOT_VARIABLE: str(tmp_path)})
    assert hooked == "11110000"
    shrink, expand = loader.DEFAULT_SHRINK_CONFIG, loader.DEFAULT_EXPAND_CONFIG
    assert answers == [TABLE[64], shrink, expand, expand]
    assert "is not JSON" in log
    assert "BLOCK_N=48 is not a power of two" in log


def test_its_kernels_get_what_ships_for_them_else_its_own_files() -> None:
    (_, hooked, _), (_, plain, _) = state("kernels"), state("off")
    who: dict[str, Any] = {"device_name": H200, "triton_version": triton.__version__}
    shapes = [("shrink", 1024, 3, 64), ("shrink", 1000, 3, 64)]
    shapes += [("expand", 4096, 3, 16), ("expand", 1000, 1, 16)]
    for (kernel, K, S, chunk), found, own in zip(shapes, hooked, plain, strict=True):
        shipped = loader.explain_lookup(kernel, K, 64, S, chunk, kernels="sglang", **who)
        assert found == (own if shipped.path is None else shipped.config)
    ours = loader.get_lora_shrink_config(1024, 64, 3, 64, **who)
    assert hooked[0] != ours


def test_what_ships_for_its_kernels_is_read_before_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def original(*shape: int) -> dict[str, int]:
        return {"BLOCK_N": 128, "BLOCK_K": 64}

    monkeypatch.setattr(loader, "_PACKAGED", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: H200)
    for root, table in ((tmp_path, {16: original()}), (tmp_path / "sglang", TABLE)):
        path = config_file_path(
            root, "shrink", 1024, 64, 3, device_name=H200, triton_version=triton.__version__
        )
        merge_config_file(path, table)
    assert lookups.around_shrink_lookup(original, 1024, 64, 3, 64) == TABLE[64]
    assert lookups.around_shrink_lookup(original, 2048, 64, 3, 64) == original()
    assert lookups.around_expand_lookup(original, 1024, 64, 3, 64) == original()


def test_a_lookup_that_raises_is_the_defaults_with_one_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: H200)

    def broken(*shape: int) -> dict[str, int]:
        raise RuntimeError("no device")

    for _ in range(3):
        found = lookups.around_shrink_lookup(broken, 1000, 64, 3, 16)
        assert found == loader.DEFAULT_SHRINK_CONFIG
    assert len(said(caplog, "WARNING")) == 1
