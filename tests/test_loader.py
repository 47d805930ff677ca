from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_autotune import loader
from lora_autotune.config_file import FOLDER, ConfigTable, config_file_path, merge_config_file
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

H200 = "NVIDIA H200"
HERE = {"device_name": H200, "triton_version": "3.6.0"}
TABLE: ConfigTable = {
    16: {"BLOCK_N": 16, "BLOCK_K": 64, "num_warps": 2, "num_stages": 3},
    64: {"BLOCK_N": 64, "BLOCK_K": 128, "num_warps": 4, "num_stages": 4},
}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(loader.ROOT_VARIABLE, str(tmp_path))
    (tmp_path / FOLDER).mkdir()
    clear_cache()
    yield tmp_path
    clear_cache()


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="lora_autotune.loader")
    return caplog


def path_of(root: Path, version: str = "3.6.0", kernel: str = "shrink") -> Path:
    return config_file_path(root, kernel, 1024, 64, 3, device_name=H200, triton_version=version)


def put(root: Path, version: str = "3.6.0", table: ConfigTable = TABLE, **more: str) -> Path:
    path = path_of(root, version, **more)
    merge_config_file(path, table)
    return path


def spoil(root: Path, version: str = "3.6.0", content: bytes = b"{") -> Path:
    path = path_of(root, version)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def said(log: pytest.LogCaptureFixture, level: str) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelname == level]


def shrink(chunk_size: int = 16, **who: Any) -> dict[str, int]:
    return get_lora_shrink_config(1024, 64, 3, chunk_size, **(who or HERE))


def marked(mark: int) -> ConfigTable:
    return {16: {"BLOCK_N": mark, "BLOCK_K": 16}}


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


class TestVersions:
    def test_the_running_version_comes_first(
        self, root: Path, log: pytest.LogCaptureFixture
    ) -> None:
        put(root, "3.6.0", marked(16))
        put(root, "3.7.1", marked(32))
        assert shrink()["BLOCK_N"] == 16
        assert not log.records

    def test_then_the_others_by_number_with_one_warning(
        self, root: Path, log: pytest.LogCaptureFixture
    ) -> None:
        put(root, "3.9.0", marked(16))
        newest = put(root, "3.10.0", marked(32))
        put(root, "3.2.0", marked(64))
        for chunk_size in (16, 32, 16):
            assert shrink(chunk_size)["BLOCK_N"] == 32
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) == marked(32)
        (warning,) = said(log, "WARNING")
        assert str(newest) in warning
        assert "3.6.0" in warning

    def test_folders_of_no_version_are_ignored(self, root: Path) -> None:
        for folder in ("triton_old", "triton_", "3_7_0", "triton_3_7_0~"):
            path = root / FOLDER / folder / path_of(root).name
            merge_config_file(path, TABLE)
        (root / FOLDER / "triton_3_8_0").write_text("a file where a folder belongs")
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) is None

    @pytest.mark.parametrize("version", ["3.6.0+git1234", "3.6.0.post1", "3.6.0rc2"])
    def test_a_build_reads_its_own_folder_then_its_releases(
        self, root: Path, version: str, log: pytest.LogCaptureFixture
    ) -> None:
        put(root, "3.9.0", marked(16))
        put(root, "3.6.0", marked(32))
        assert shrink(device_name=H200, triton_version=version)["BLOCK_N"] == 32
        assert len(said(log, "WARNING")) == 1
        put(root, version, marked(64))
        clear_cache()
        assert shrink(device_name=H200, triton_version=version)["BLOCK_N"] == 64

    def test_others_read_a_builds_folder(self, root: Path) -> None:
        put(root, "3.6.0+git1234", marked(32))
        put(root, "3.5.1", marked(16))
        assert shrink(device_name=H200, triton_version="3.7.1")["BLOCK_N"] == 32


class TestRoots:
    def test_the_variable_is_read_at_each_lookup(
        self, root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(root, table=marked(16))
        other = tmp_path_factory.mktemp("other")
        put(other, table=marked(32))
        assert shrink()["BLOCK_N"] == 16
        monkeypatch.setenv(loader.ROOT_VARIABLE, str(other))
        assert shrink()["BLOCK_N"] == 32
        monkeypatch.setenv(loader.ROOT_VARIABLE, str(root))
        assert shrink()["BLOCK_N"] == 16

    @pytest.mark.parametrize("value", [None, ""])
    def test_without_it_the_packaged_configs_are_read(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
    ) -> None:
        if value is None:
            monkeypatch.delenv(loader.ROOT_VARIABLE)
        else:
            monkeypatch.setenv(loader.ROOT_VARIABLE, value)
        put(root)
        monkeypatch.setattr(loader, "_PACKAGED", str(root))
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) == TABLE

    def test_those_for_the_kernels_of_sglang_are_packaged_apart(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
    ) -> None:
        theirs = {"kernels": "sglang", **HERE}
        assert get_lora_configs("shrink", 1024, 64, 3, **theirs) is None
        put(root)
        put(root / "sglang", table=marked(32))
        clear_cache()
        assert get_lora_configs("shrink", 1024, 64, 3, **theirs) == TABLE  # the named folder
        monkeypatch.delenv(loader.ROOT_VARIABLE)
        monkeypatch.setattr(loader, "_PACKAGED", str(root))
        assert get_lora_configs("shrink", 1024, 64, 3, **theirs) == marked(32)
        assert get_lora_shrink_config(1024, 64, 3, 16, **theirs) == marked(32)[16]
        assert get_lora_expand_config(1024, 64, 3, 16, **theirs) == DEFAULT_EXPAND_CONFIG
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) == TABLE

    def test_that_none_are_packaged_for_sglang_is_no_fault(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.delenv(loader.ROOT_VARIABLE)
        monkeypatch.setattr(loader, "_PACKAGED", str(root))
        assert get_lora_configs("shrink", 1024, 64, 3, kernels="sglang", **HERE) is None
        assert log.records == []

    def test_the_packaged_configs_lie_beside_the_module(self) -> None:
        assert Path(loader._PACKAGED).samefile(Path(loader.__file__).parent / "configs")

    @pytest.mark.parametrize("kind", ["absent", "file"])
    def test_a_root_that_is_none_gives_the_defaults(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        log: pytest.LogCaptureFixture,
        kind: str,
    ) -> None:
        (tmp_path / "file").write_text("")
        wrong = str(tmp_path / kind)
        monkeypatch.setenv(loader.ROOT_VARIABLE, wrong)
        assert shrink(16) == shrink(32) == DEFAULT_SHRINK_CONFIG
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) is None
        assert len([line for line in said(log, "WARNING") if wrong in line]) == 1


class TestHostileFiles:
    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"\xff", b"{}", b'{"16": {"BLOCK_N": 0}}', b"[" * 99_999]
    )
    def test_one_error_then_the_defaults(
        self, root: Path, log: pytest.LogCaptureFixture, content: bytes
    ) -> None:
        path = spoil(root, content=content)
        for chunk_size in (16, 32, 64):
            assert shrink(chunk_size) == DEFAULT_SHRINK_CONFIG
        assert get_lora_configs("shrink", 1024, 64, 3, **HERE) is None
        (error,) = said(log, "ERROR")
        assert str(path) in error

    def test_one_error_then_the_next_version(
        self, root: Path, log: pytest.LogCaptureFixture
    ) -> None:
        bad = [spoil(root), spoil(root, "3.9.0")]
        third = put(root, "3.8.0", marked(32))
        assert shrink()["BLOCK_N"] == 32
        errors = said(log, "ERROR")
        assert [str(path) in error for path, error in zip(bad, errors, strict=True)] == [True, True]
        assert [str(third) in line for line in said(log, "WARNING")] == [True]

    @pytest.mark.parametrize("kind", ["folder", "pipe", "broken link", "loop"])
    def test_what_is_no_regular_file(
        self, root: Path, log: pytest.LogCaptureFixture, kind: str
    ) -> None:
        path = path_of(root)
        path.parent.mkdir(parents=True)
        make: dict[str, Callable[[], object]] = {
            "folder": path.mkdir,
            "pipe": lambda: os.mkfifo(path),
            "broken link": lambda: path.symlink_to("nowhere"),
            "loop": lambda: path.symlink_to(path),
        }
        make[kind]()
        assert shrink() == DEFAULT_SHRINK_CONFIG
        assert [str(path) in line for line in said(log, "ERROR")] == [True]

    def test_a_file_and_a_folder_that_may_not_be_read(
        self, root: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(path: object, *_: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        path = put(root)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            patch.setattr(os, "listdir", refuse)
            patch.setattr(os, "scandir", refuse)
            patch.setattr(Path, "iterdir", refuse)
            config = shrink()
        assert config == DEFAULT_SHRINK_CONFIG
        assert [str(path) in line for line in said(log, "ERROR")] == [True]
        assert [str(root) in line for line in said(log, "WARNING")] == [True]

    @pytest.mark.parametrize("device", ["../../x", "a/b", "n" * 400, "nul\0", "\udcff", "\n"])
    def test_an_odd_device_name(self, device: str) -> None:
        assert shrink(device_name=device, triton_version="3.6.0") == DEFAULT_SHRINK_CONFIG

    @pytest.mark.parametrize("version", ["main", "../..", "3.6.0/../../x", "nul\0", "3" * 400])
    def test_an_odd_version(self, root: Path, version: str) -> None:
        put(root)
        assert shrink(device_name=H200, triton_version=version) == TABLE[16]


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
