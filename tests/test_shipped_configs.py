"""What is claimed of the config trees that ship.

For each set of kernels there is the default tree, and one for each workload.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import lora_autotune
from lora_autotune.config_file import FOLDER, read_config_file, version_folder
from lora_autotune.config_tree import check_tree
from lora_autotune.evaluators.bounds import foretold_failure
from lora_autotune.finalist import MIN_GAIN
from lora_autotune.kernel_set import BUILTIN, has_one_binary, set_of
from lora_autotune.loader import ROOT_VARIABLE, clear_cache, explain_lookup, get_lora_configs
from lora_autotune.provenance import Provenance, find_provenance, is_provenance
from lora_autotune.space import DEFAULT_CONFIGS, Config
from lora_autotune.task import CHUNK_SIZES, Task, Workload, default_workload
from lora_autotune.trial import MAX_REGRESSION, relative_cost
from lora_autotune.workload import PRESETS, reaching, workload_lines
from tests.gpus import H200

CONFIGS = Path(lora_autotune.__file__).parent / "configs"
ROOTS = {BUILTIN: CONFIGS, "sglang": CONFIGS / "sglang"}
TREES = [
    tree for root in ROOTS.values() for tree in (root, *sorted((root / "workloads").iterdir()))
]
FILES = [
    file
    for tree in TREES
    for file in sorted((tree / FOLDER).rglob("*.json"))
    if not is_provenance(file)
]

each_tree = pytest.mark.parametrize("tree", TREES, ids=lambda tree: str(tree.relative_to(CONFIGS)))
each_file = pytest.mark.parametrize(
    "file", FILES, ids=lambda file: file.relative_to(CONFIGS).as_posix()
)


def tree_of(file: Path) -> Path:
    return file.parent.parent.parent


def gpu_of(file: Path) -> str:
    return file.stem.partition("device=")[2]


def kernels_of(tree: Path) -> str:
    return "sglang" if tree.is_relative_to(ROOTS["sglang"]) else BUILTIN


def workload_of(tree: Path, chunk: int) -> Workload:
    """What a tree was tuned on, at a chunk size."""
    usual = PRESETS.get(tree.name) or default_workload(
        chunk, between=has_one_binary(kernels_of(tree))
    )
    return reaching(usual, chunk) or usual


def origins(file: Path) -> dict[int, Provenance]:
    """Chunk size -> where its config is from."""
    table = read_config_file(file)
    found = {chunk: find_provenance(file, chunk, config) for chunk, config in table.items()}
    known = {chunk: entry for chunk, entry in found.items() if isinstance(entry, Provenance)}
    assert known == found
    return known


@each_tree
def test_a_tree_is_sound_and_holds_nothing_else(tree: Path) -> None:
    checked = dict(check_tree(tree / FOLDER))
    assert checked
    assert set(checked.values()) == {None}
    others = {path.name for path in tree.iterdir()} - {FOLDER}
    beside = {BUILTIN: {"landscapes", "workloads", "sglang"}, "sglang": {"workloads"}}
    assert others == (beside[kernels_of(tree)] if tree in ROOTS.values() else set())
    left = [path for path in (tree / FOLDER).rglob("*") if path.is_file()]
    assert all(path.suffix == ".json" for path in left)


@each_tree
def test_a_tree_is_of_a_preset_and_covers_what_the_default_tree_does(tree: Path) -> None:
    # As a root it stands alone: a shape that it lacks would get the defaults, as other GPUs do.
    root = ROOTS[kernels_of(tree)]
    assert tree == root or tree.name in PRESETS
    names = {file.relative_to(tree) for file in FILES if tree_of(file) == tree}
    gpus = {gpu_of(name) for name in names}
    wanted = {file.relative_to(root) for file in FILES if tree_of(file) == root}
    assert {name for name in wanted if gpu_of(name) in gpus} <= names


@each_file
def test_every_config_says_where_it_is_from(file: Path) -> None:
    tree = tree_of(file)
    for chunk, entry in origins(file).items():
        assert entry.workload == workload_lines(workload_of(tree, chunk))
        assert chunk in CHUNK_SIZES
        assert file.parent.name == version_folder(entry.triton)
        assert file.name.endswith(f"device={entry.gpu.replace(' ', '_')}.json")
        assert not entry.replayed
        assert set_of(entry.kernels) == kernels_of(tree)
        assert entry.kernels_version
        assert entry.driver
        assert entry.command


@each_file
def test_what_is_not_the_default_gains_something(file: Path) -> None:
    for chunk, entry in origins(file).items():
        if entry.times_us != entry.default_times_us:
            workload = workload_of(tree_of(file), chunk)
            cost = relative_cost(entry.times_us, entry.default_times_us, workload)
            assert cost <= 1 - MIN_GAIN


@each_file
def test_no_config_loses_on_any_batch_that_it_was_tuned_on(file: Path) -> None:
    for entry in origins(file).values():
        pairs = zip(entry.times_us, entry.default_times_us, strict=True)
        assert all(time <= (1 + MAX_REGRESSION) * default for time, default in pairs)
        kernel = "shrink" if file.name.startswith("lora_shrink") else "expand"
        if entry.config == DEFAULT_CONFIGS[kernel].as_dict():
            assert entry.times_us == entry.default_times_us


@pytest.mark.parametrize(
    "file",
    [f for f in FILES if f.name.startswith("lora_shrink") and kernels_of(f) == BUILTIN],
    ids=lambda file: file.relative_to(CONFIGS).as_posix(),
)
def test_no_batch_needs_more_shared_memory_than_there_is(file: Path) -> None:
    K, R, S = (int(word.partition("=")[2]) for word in file.name.split(",")[1:4])
    for chunk, config in read_config_file(file).items():
        task = Task(kernel="shrink", K=K, R=R, S=S, chunk_size=chunk)
        assert foretold_failure(task, Config.from_dict(config), H200) is None


@each_file
def test_a_server_that_is_given_the_tree_gets_the_configs(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tree_of(file)))
    clear_cache()
    kernel, *words = file.stem.removeprefix("lora_").split(",")
    *sizes, gpu = (word.partition("=")[2] for word in words)
    K, R, S = map(int, sizes)
    version = file.parent.name.removeprefix("triton_").replace("_", ".")
    here = {"device_name": gpu.replace("_", " "), "triton_version": version}
    table = read_config_file(file)
    assert get_lora_configs(kernel, K, R, S, **here) == table
    lookup = explain_lookup(kernel, K, R, S, 16, **here)
    assert lookup.path == file
    clear_cache()
