"""What is going to be tuned: chunk sizes and batches from the arguments, and ``--dry-run``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from lora_autotune import cli
from lora_autotune.cli import planning, tuning
from lora_autotune.cli.tasks import named_work
from lora_autotune.config_file import config_file_path, merge_config_file, read_config_file
from lora_autotune.evaluator import Platform
from lora_autotune.landscape import Landscape, read_landscape, write_landscape
from lora_autotune.space import DEFAULT_CONFIGS, Config, SearchSpace
from lora_autotune.task import Instance, Task
from lora_autotune.trial import Measurement, Trial
from tests.cli_runs import run

H200 = Platform(device="NVIDIA H200", triton="3.6.0")
HERE = ["--device", "NVIDIA H200", "--triton", "3.6.0"]
SHRINK = ["--kernel", "shrink", "-K", "1024", "-S", "3", "--rank", "64"]


def batches(*words: str) -> dict[int, str]:
    """Chunk size -> its batches, for a task by hand."""
    arguments = cli.make_parser().parse_args(["tune", *SHRINK, *words])
    work = named_work(arguments)
    return {task.chunk_size: " ".join(map(str, load)) for task, load in work.items()}


def tune_entry(out: Path, chunk_size: int, K: int = 1024) -> None:
    path = config_file_path(
        out, "shrink", K, 64, 3, device_name=H200.device, triton_version="3.6.0"
    )
    merge_config_file(path, {chunk_size: {"BLOCK_N": 32, "BLOCK_K": 64}})


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    assert run("tune", "--dry-run", "--json", *words) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run("tune", *words) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    return line


def test_a_workload_is_tuned_where_some_server_runs_it() -> None:
    assert batches("--workload", "decode") == {
        16: "1:1 32:8 128:8 256:8",
        32: "128:8 256:8",
        64: "256:8",
        128: "256:8",
    }


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("16", {16: "1:1 32:8 128:8 256:8"}),
        ("32", {16: "1:1 32:8", 32: "128:8 256:8"}),
        ("64", {16: "1:1 32:8", 32: "128:8", 64: "256:8"}),
        ("128", {16: "1:1 32:8", 32: "128:8", 128: "256:8"}),
    ],
)
def test_a_chunk_size_that_the_server_never_uses_is_not_tuned(
    limit: str, expected: dict[int, str]
) -> None:
    assert batches("--workload", "decode", "--max-lora-chunk-size", limit) == expected


def test_unless_it_is_asked_for() -> None:
    words = ["--workload", "decode", "--max-lora-chunk-size", "16", "--chunk-sizes", "64", "16"]
    assert batches(*words) == {16: "1:1 32:8 128:8 256:8", 64: "256:8"}


def test_a_servers_limit_alone_cuts_the_usual_batches() -> None:
    assert batches("--max-lora-chunk-size", "16") == {16: "32:8 30720:1"}
    assert batches("--max-lora-chunk-size", "128") == {16: "32:8", 32: "128:8", 128: "30720:1"}
    assert batches() == {16: "32:8 30720:1", 32: "128:8 30720:1", 64: "30720:1", 128: "30720:1"}


def test_tokens_are_timed_on_every_chunk_size_unless_the_server_is_known() -> None:
    tokens = ["--tokens", "32:8,ranks=8+64", "512"]
    assert set(batches(*tokens).values()) == {"32:8,ranks=8+64 512:1"}
    limited = batches(*tokens, "--max-lora-chunk-size", "64")
    assert limited == {16: "32:8,ranks=8+64", 64: "512:1"}


def test_traffic_is_condensed_for_each_chunk_size(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"decode {n} 1 {n}\n" for n in range(1, 500)))
    found = batches("--traffic", str(tmp_path / "log"), "--max-lora-chunk-size", "32")
    assert list(found) == [16, 32]
    assert [len(load.split()) for load in found.values()] == [6, 6]
    assert all(int(load.split(":")[0]) < 64 for load in found[16].split())


def test_several_ranks_and_short_dtypes() -> None:
    words = ["tune", "--model", "Qwen3-0.6B", "--rank", "8", "64", "256", "--dtype", "bf16"]
    work = named_work(cli.make_parser().parse_args([*words, "--lm-head"]))
    assert {task.R for task in work} == {8, 64, 256}
    assert {task.dtype for task in work} == {"bfloat16"}
    assert len(work) == 3 * (28 + 8)
    assert [task.K for task in work][-4:] == [151_936] * 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*SHRINK, "--tokens", "4", "--workload", "chat"], "--tokens and --workload both name"),
        ([*SHRINK, "--workload", "chatt"], "did you mean chat?"),
        ([*SHRINK, "--max-lora-chunk-size", "48"], "16, 32, 64, 128 is allowed, not '48'"),
        ([*SHRINK, "--tokens", "9,zipff"], "'zipff' says nothing about a batch"),
        ([*SHRINK, "--tokens", "9,ranks=128"], "adapter over the largest rank, 64"),
        ([*SHRINK, "--workload", "decode", "--chunk-sizes", "256"], "no batch reaches chunk size"),
        ([*SHRINK, "--device", "NVIDIA H200"], "--device belongs to --dry-run"),
        (["--max-regression", "2"], "0% to 100%, or 0.02 for 2%, is allowed, not '2'"),
        (["--max-regression=-1%"], "0% to 100%"),
        (["--max-regression", "nan"], "0% to 100%"),
        (["--max-regression", "much"], "not 'much'"),
    ],
)
def test_what_makes_no_sense_gets_one_line(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in error_of(capsys, *words)


def test_a_plan_says_what_is_ahead_and_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "compile_workers", lambda: 14)
    tune_entry(tmp_path, 16)
    words = [*SHRINK, *HERE, "--out", str(tmp_path), "--workload", "chat"]

    first, *rest = plan(capsys, *words)
    assert first == {
        "kernel": "shrink",
        "K": 1024,
        "R": 64,
        "S": 3,
        "chunk_size": 16,
        "dtype": "float16",
        "instances": [
            {"tokens": 32, "adapters": 8, "weight": 3.0},
            {"tokens": 128, "adapters": 8, "weight": 1.0, "spread": "zipf"},
            {"tokens": 512, "adapters": 1, "weight": 0.5},
            {"tokens": 8192, "adapters": 8, "weight": 0.5, "spread": "zipf"},
        ],
        "held_out": [],
        "configs": 400,
        "trials": 32,
        "tuned": True,
        "estimate_s": 3.6,
    }
    assert [(line["chunk_size"], line["tuned"]) for line in rest] == [
        (32, False),
        (64, False),
        (128, False),
    ]
    assert [line["chunk_size"] for line in plan(capsys, *words, "--only-missing")] == [32, 64, 128]
    assert list(tmp_path.iterdir()) == [tmp_path / "csgmv_configs"]  # nothing was written


@pytest.mark.parametrize(
    ("words", "trials"),
    [
        (["--strategy", "grid"], 401),
        (["--strategy", "grid", "--space", "reference"], 55),
        (["--trials", "9999", "--space", "reference"], 55),
        (["--trials", "7"], 7),
    ],
)
def test_a_plan_has_no_more_trials_than_there_are_configs(
    words: list[str], trials: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = plan(capsys, *SHRINK, *HERE, "--chunk-sizes", "16", *words)
    assert [line["trials"] for line in lines] == [trials]


def test_without_a_gpu_or_its_name_nobody_knows_what_is_tuned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(planning.importlib, "import_module", missing)
    tune_entry(tmp_path, 16)
    words = [*SHRINK, "--out", str(tmp_path), "--chunk-sizes", "16"]

    assert [line["tuned"] for line in plan(capsys, *words)] == [None]
    assert "--device NAME" in error_of(capsys, "--dry-run", "--only-missing", *words)


def test_a_plan_is_plain_lines_or_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "compile_workers", lambda: 14)
    words = ["tune", "--dry-run", *SHRINK, *HERE, "--chunk-sizes", "16", "32"]
    assert run(*words) == 0
    ahead = "400 configs, 32 trials, about 3.6 s; not tuned yet"
    assert capsys.readouterr().out.splitlines() == [
        f"shrink K=1024 R=64 S=3 chunk 16: 32:8 (50%) 30720:1 (50%); {ahead}",
        f"shrink K=1024 R=64 S=3 chunk 32: 128:8 (50%) 30720:1 (50%); {ahead}",
        "2 tasks, 64 trials, about 7 s with 14 compile workers; 0 tuned already",
        "winners must not lose on 512:1, 2048:1, 8192:8,zipf either, which are held out",
    ]

    def terminal(**options: object) -> Console:
        return Console(force_terminal=True, width=120, no_color=True, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(planning, "Console", terminal)
    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert "about s" in printed
    assert "128:8 (50%)" in printed


def test_more_compile_workers_take_less_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model", "Qwen3-0.6B", "--rank", "64", "--trials", "40", *HERE]
    for workers, seconds in [(30, 70), (14, 125), (7, 250)]:
        monkeypatch.setattr(planning, "compile_workers", lambda workers=workers: workers)
        assert run("tune", "--dry-run", *words) == 0
        assert f"28 tasks, 1120 trials, about {seconds} s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "trials"), [([], 584), (["--trials", "40"], 1120), (["--strategy", "random"], 992)]
)
def test_a_plan_knows_who_starts_from_anothers_best(
    words: list[str], trials: int, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = plan(capsys, "--model", "Qwen3-0.6B", "--rank", "64", *HERE, *words)
    assert sum(int(str(line["trials"])) for line in lines) == trials


def test_what_is_tuned_already_is_nobodys_scout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = ["--model", "Qwen3-0.6B", "--rank", "64", "--chunk-sizes", "64"]
    words = [*tasks, *HERE, "--out", str(tmp_path)]

    def trials(*more: str) -> dict[object, object]:
        lines = [line for line in plan(capsys, *words, *more) if line["kernel"] == "shrink"]
        return {(line["K"], line["S"]): line["trials"] for line in lines}

    assert trials() == {(1024, 3): 16, (2048, 1): 10, (1024, 2): 16, (3072, 1): 32}
    path = config_file_path(
        tmp_path, "shrink", 3072, 64, 1, device_name=H200.device, triton_version="3.6.0"
    )
    merge_config_file(path, {64: {"BLOCK_N": 32, "BLOCK_K": 64}})
    assert trials("--only-missing") == {(1024, 3): 32, (2048, 1): 16, (1024, 2): 16}


SPACE = SearchSpace({"BLOCK_N": (16, 32), "BLOCK_K": (64,)})
ON_TWO = (Instance(tokens=32, adapters=8), Instance(tokens=30_720))


def landscape_file(folder: Path, chunk_size: int) -> str:
    """The default takes (10, 10) us; one config is faster but for 3% on the first batch."""
    times = {
        DEFAULT_CONFIGS["shrink"]: (10.0, 10.0),
        Config(BLOCK_N=16, BLOCK_K=64): (10.3, 2.0),
        Config(BLOCK_N=32, BLOCK_K=64): (9.0, 9.0),
    }
    landscape = Landscape(
        task=Task(kernel="shrink", K=1024, R=64, S=3, chunk_size=chunk_size),
        workload=ON_TWO,
        platform=H200,
        space=SPACE,
        trials={c: Trial(config=c, outcome=Measurement(times_us=us)) for c, us in times.items()},
    )
    path = folder / f"{chunk_size}.jsonl"
    write_landscape(path, landscape)
    return str(path)


@pytest.mark.parametrize(("allowed", "winner"), [([], 32), (["5%"], 16), (["0.05"], 16)])
def test_how_much_a_winner_may_lose_is_the_users_choice(
    allowed: list[str], winner: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", "--json", "--out", str(tmp_path / "out")]
    words += ["--max-regression", *allowed] if allowed else []
    assert run(*words, "--replay", landscape_file(tmp_path, 16)) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["config"]["BLOCK_N"] == winner


def test_only_what_is_missing_is_tuned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    tune_entry(out, 16)
    files = [landscape_file(tmp_path, size) for size in (16, 64)]
    words = ["--replay", *files, "--out", str(out), "--only-missing"]

    assert [line["chunk_size"] for line in plan(capsys, *words)] == [64]
    assert run("tune", "--json", *words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["chunk_size"] for line in lines] == [64]
    assert set(read_config_file(Path(lines[0]["file"]))) == {16, 64}

    before = (out / "tune.journal").read_bytes()
    assert run("tune", *words) == 0
    assert f"Nothing is missing in {out}" in capsys.readouterr().err
    assert (out / "tune.journal").read_bytes() == before


def test_a_replay_takes_the_landscapes_of_the_workload(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [landscape_file(tmp_path, size) for size in (16, 64)]
    (tmp_path / "ours").write_text("32:8\n30720\n")
    (line,) = plan(capsys, "--replay", *files, "--workload", str(tmp_path / "ours"))
    assert (line["chunk_size"], line["estimate_s"], line["configs"]) == (16, None, 2)
    (line,) = plan(capsys, "--replay", *files, "--max-lora-chunk-size", "16")
    assert line["chunk_size"] == 16
    assert "no landscape" in error_of(capsys, "--replay", *files, "--workload", "chat")


def test_a_landscape_keeps_how_a_batch_was_served(tmp_path: Path) -> None:
    landscape = read_landscape(Path(landscape_file(tmp_path, 16)))
    served = (
        Instance(tokens=32, adapters=8, spread="zipf", phase="prefill", ranks=(8, 64)),
        Instance(tokens=100, adapters=8, graph_batch=160),
    )
    path = tmp_path / "served.jsonl"
    write_landscape(
        path,
        Landscape(
            task=landscape.task,
            workload=served,
            platform=H200,
            space=SPACE,
            trials=landscape.trials,
        ),
    )
    assert read_landscape(path).workload == served
    assert tuning.read_landscape(path).trials == landscape.trials
