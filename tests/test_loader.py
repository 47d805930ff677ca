"""Lookups: what they answer, keep in the cache, ask of this machine, and explain."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_autotune.errors import DeviceUnknownError, UsageError
from lora_autotune.loader import (
    DEFAULT_EXPAND_CONFIG,
    DEFAULT_SHRINK_CONFIG,
    clear_cache,
    explain_lookup,
    get_lora_config_file_name,
    get_lora_configs,
    get_lora_expand_config,
    get_lora_shrink_config,
)
from tests.loader_cases import (
    H200,
    HERE,
    TABLE,
    marked,
    path_of,
    put,
    said,
    shrink,
    spoil,
)

pytestmark = pytest.mark.usefixtures("root", "log")


class TestAnswers:
    def test_the_defaults_are_exactly_these(self) -> None:
        assert shrink() == DEFAULT_SHRINK_CONFIG == {"BLOCK_N": 16, "BLOCK_K": 256}
        expand = get_lora_expand_config(1024, 64, 3, 16, **HERE)
        assert expand == DEFAULT_EXPAND_CONFIG == {"BLOCK_N": 64, "BLOCK_K": 16}
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) is None

    def test_a_file_is_read(self, root: Path, log: pytest.LogCaptureFixture) -> None:
        put(root)
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) == TABLE
        assert shrink(64) == TABLE[64]
        assert not log.records

    def test_the_kernels_have_files_of_their_own(self, root: Path) -> None:
        put(root, kernel="expand", table={16: {"BLOCK_N": 32, "BLOCK_K": 32, "maxnreg": 96}})
        expand = get_lora_expand_config(1024, 64, 3, 16, **HERE)
        assert expand == {"BLOCK_N": 32, "BLOCK_K": 32, "maxnreg": 96}
        assert shrink() == DEFAULT_SHRINK_CONFIG

    @pytest.mark.parametrize(
        ("asked", "taken"), [(1, 16), (16, 16), (39, 16), (40, 16), (41, 64), (64, 64), (999, 64)]
    )
    def test_the_nearest_chunk_size_and_the_smaller_of_two(
        self, root: Path, asked: int, taken: int
    ) -> None:
        put(root)
        assert shrink(asked) == TABLE[taken]

    @pytest.mark.parametrize(
        "other", [{"device_name": "NVIDIA H100"}, {"K": 2048}, {"R": 32}, {"S": 1}]
    )
    def test_another_shape_or_device_is_another_file(
        self, root: Path, other: dict[str, Any]
    ) -> None:
        put(root)
        arguments = {"K": 1024, "R": 64, "S": 3} | HERE | other
        assert get_lora_configs("shrink", **arguments) is None

    def test_the_file_name_is_bare(self) -> None:
        name = get_lora_config_file_name("expand", 4096, 64, 3, device_name=H200)
        assert name == "lora_expand,K=4096,R=64,S=3,device=NVIDIA_H200.json"

    @pytest.mark.parametrize("ask", [get_lora_config_file_name, get_lora_configs])
    def test_an_unknown_kernel_is_refused(self, ask: Callable[..., object]) -> None:
        with pytest.raises(UsageError, match=r"'srink'.*allowed: shrink, expand"):
            ask("srink", 1024, 64, 3, **HERE)


class TestCache:
    def test_a_cached_lookup_touches_no_file(self, root: Path) -> None:
        path = put(root)
        assert shrink() == TABLE[16]
        path.unlink()
        assert shrink() == TABLE[16]
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) == TABLE
        clear_cache()
        assert shrink() == DEFAULT_SHRINK_CONFIG

    def test_nobody_changes_what_others_get(self, root: Path) -> None:
        put(root)
        shrink().clear()
        table = get_lora_configs("shrink", 1024, 64, 3, **HERE)
        assert table is not None
        table[16]["BLOCK_N"] = -1
        del table[64]
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) == TABLE
        explain_lookup("shrink", 1024, 64, 3, 16, **HERE).config.clear()
        assert shrink() == TABLE[16]

    def test_nobody_changes_the_defaults(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shrink().clear()
        monkeypatch.setitem(DEFAULT_SHRINK_CONFIG, "BLOCK_N", -1)
        clear_cache()
        assert shrink() == {"BLOCK_N": 16, "BLOCK_K": 256}

    def test_an_argument_of_another_type_spoils_nothing(self, root: Path) -> None:
        put(root)
        assert get_lora_shrink_config(1024.0, 64, 3, 16, **HERE) == DEFAULT_SHRINK_CONFIG  # type: ignore[arg-type]
        assert get_lora_shrink_config(1024, 64, 3, 16, **HERE) == TABLE[16]
        with pytest.raises(TypeError):
            get_lora_shrink_config([1024], 64, 3, 16, **HERE)  # type: ignore[arg-type]

    def test_threads_get_the_same(self, root: Path) -> None:
        put(root)
        barrier = threading.Barrier(8)
        answers: list[list[dict[str, int]]] = []

        def ask() -> None:
            barrier.wait()
            answers.append([shrink(16 + i % 64) for i in range(200)])

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = [TABLE[16 if 16 + i % 64 <= 40 else 64] for i in range(200)]
        assert answers == [expected] * 8


class TestMachine:
    """What is asked of this machine when the arguments do not say."""

    @pytest.fixture
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda = SimpleNamespace(get_device_name=lambda: H200)
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
        monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.6.0"))

    @pytest.fixture
    def no_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail() -> str:
            raise RuntimeError("Found no NVIDIA driver")

        cuda = SimpleNamespace(get_device_name=fail)
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))

    @pytest.mark.usefixtures("machine")
    def test_its_device_and_triton(self, root: Path) -> None:
        put(root)
        assert get_lora_shrink_config(1024, 64, 3, 16) == TABLE[16]
        assert get_lora_config_file_name("shrink", 1024, 64, 3) == path_of(root).name

    @pytest.mark.usefixtures("machine")
    def test_an_installed_triton_that_is_not_loaded(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(root, "3.5.0", marked(32))
        put(root)
        monkeypatch.delitem(sys.modules, "triton")
        monkeypatch.setattr(metadata, "version", {"triton": "3.5.0"}.__getitem__)
        assert get_lora_shrink_config(1024, 64, 3, 16)["BLOCK_N"] == 32
        assert "triton" not in sys.modules

    @pytest.mark.usefixtures("no_device")
    def test_no_device(self, root: Path, log: pytest.LogCaptureFixture) -> None:
        put(root)
        with pytest.raises(DeviceUnknownError, match="device_name"):
            get_lora_config_file_name("shrink", 1024, 64, 3)
        assert get_lora_configs("shrink", 1024, 64, 3, triton_version="3.6.0") is None
        for K in (1024, 2048):
            assert get_lora_shrink_config(K, 64, 3, 16) == DEFAULT_SHRINK_CONFIG
            assert get_lora_expand_config(K, 64, 3, 16) == DEFAULT_EXPAND_CONFIG
        assert len(said(log, "WARNING")) == 1

    def test_no_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(DeviceUnknownError):
            get_lora_config_file_name("shrink", 1024, 64, 3)

    def test_no_triton(
        self, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
    ) -> None:
        def absent(name: str) -> str:
            raise metadata.PackageNotFoundError(name)

        monkeypatch.delitem(sys.modules, "triton", raising=False)
        monkeypatch.setattr(metadata, "version", absent)
        assert get_lora_config_file_name("shrink", 1024, 64, 3, device_name=H200)
        assert shrink(device_name=H200) == DEFAULT_SHRINK_CONFIG
        assert ["triton_version" in line for line in said(log, "WARNING")] == [True]


class TestExplaining:
    def test_the_first_choice(self, root: Path) -> None:
        path = put(root)
        found = explain_lookup("shrink", 1024, 64, 3, 64, **HERE)
        assert (found.config, found.path, found.chunk_size) == (TABLE[64], path, 64)
        assert found.reason == "tuned for Triton 3.6.0"
        assert found.passed_over == ()

    def test_what_was_passed_over_and_why(self, root: Path) -> None:
        bad = spoil(root, "3.10.0")
        path = put(root, "3.9.0")
        found = explain_lookup("shrink", 1024, 64, 3, 32, **HERE)
        assert (found.path, found.chunk_size) == (path, 16)
        assert found.reason == (
            "from Triton 3.9.0: nothing for 3.6.0; it has no chunk size 32, the nearest is 16"
        )
        absent, spoiled = found.passed_over
        assert absent == f"{path_of(root)}: not there"
        assert spoiled.startswith(f"{bad}: is not JSON")

    def test_the_defaults(self) -> None:
        found = explain_lookup("expand", 1024, 64, 3, 16, **HERE)
        assert (found.config, found.path, found.chunk_size) == (DEFAULT_EXPAND_CONFIG, None, None)
        assert "defaults" in found.reason

    def test_it_says_what_the_lookup_answers(self, root: Path) -> None:
        put(root, "3.9.0")
        spoil(root)
        for chunk_size in (16, 32, 40, 41, 128):
            found = explain_lookup("shrink", 1024, 64, 3, chunk_size, **HERE)
            assert found.config == shrink(chunk_size)

    def test_an_unknown_kernel_is_refused(self) -> None:
        with pytest.raises(UsageError, match="'srink'"):
            explain_lookup("srink", 1024, 64, 3, 16, **HERE)
