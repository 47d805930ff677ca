"""What a server runs: presets, files, traffic, and which chunk size runs what."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_autotune.errors import UsageError
from lora_autotune.task import CHUNK_SIZES, MAX_RANK, PHASES, SPREADS, Instance
from lora_autotune.workload import (
    MOST_INSTANCES,
    PRESETS,
    chunk_size_for,
    condensed,
    named_workload,
    parse_instance,
    reaching,
    read_traffic,
    read_workload,
    relative_step_time,
    workload_lines,
    workload_name,
)


def written(folder, text):
    path = folder / "it.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("tokens", "by_limit"),
    [
        (1, (16, 16, 16, 16)),
        (63, (16, 16, 16, 16)),
        (64, (16, 32, 32, 32)),
        (255, (16, 32, 32, 32)),
        (256, (16, 32, 64, 128)),
        (30_720, (16, 32, 64, 128)),
    ],
)
def test_the_chunk_size_is_the_servers_own_rule(tokens, by_limit):
    assert tuple(chunk_size_for(tokens, limit) for limit in CHUNK_SIZES) == by_limit
    assert chunk_size_for(tokens) == 16


@given(st.lists(st.integers(1, 40_000), max_size=9), st.sampled_from(CHUNK_SIZES))
def test_on_one_server_every_batch_reaches_one_chunk_size(tokens, limit):
    workload = tuple(Instance(tokens=count) for count in tokens)
    reached = [reaching(workload, size, limit) for size in CHUNK_SIZES]
    assert sorted(i.tokens for some in reached for i in some) == sorted(tokens)
    # Without a limit: whatever some server runs at that size.
    for size in CHUNK_SIZES:
        somewhere = {i for other in CHUNK_SIZES for i in reaching(workload, size, other)}
        assert set(reaching(workload, size)) == somewhere


def test_a_default_server_runs_everything_at_16():
    chat = PRESETS["chat"]
    assert reaching(chat, 16, 16) == chat
    assert [reaching(chat, size, 16) for size in (32, 64, 128)] == [(), (), ()]
    assert [str(i) for i in reaching(chat, 32, 128)] == ["128:8,zipf"]
    assert reaching(chat, 64, 128) == ()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_few_distinct_batches(name):
    preset = named_workload(name)
    assert 1 <= len({str(instance) for instance in preset}) == len(preset) <= 4
    phases = {instance.phase for instance in preset}
    assert phases == {"decode": {"decode"}, "chat": set(PHASES)}.get(name, {"prefill"})


def test_chat_is_decoding_for_four_parts_of_five():
    shares = dict.fromkeys(PHASES, 0.0)
    for instance in PRESETS["chat"]:
        shares[instance.phase] += instance.weight
    assert shares == {"decode": 4.0, "prefill": 1.0}
    # The figures that the comment there gives.
    decode = 480 * relative_step_time(32)
    assert 60 * relative_step_time(512) == pytest.approx(162, abs=1)
    assert 3 < decode / (60 * relative_step_time(512)) < 4 < decode / relative_step_time(30_720) < 6


def test_a_name_that_is_no_workload(tmp_path):
    with pytest.raises(UsageError, match=r"no workload 'embeding' \(did you mean embedding\?\)"):
        named_workload("embeding")
    with pytest.raises(UsageError, match="allowed: decode, prefill, embedding, chat, a file"):
        named_workload(str(tmp_path / "gone"))


def test_a_file_that_is_there_is_read(tmp_path):
    path = written(
        tmp_path,
        "# ours\n\n32:8 3  # a step\n512:4,prefill\t0.5\n64:each\n8192:8,zipf,ranks=16+64\n",
    )
    assert named_workload(str(path)) == (
        Instance(tokens=32, adapters=8, weight=3.0),
        Instance(tokens=512, adapters=4, weight=0.5),
        Instance(tokens=64, adapters=64),
        Instance(tokens=8192, adapters=8, spread="zipf", ranks=(16, 64)),
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("32:8 many", "weight must be a number, not 'many'"),
        ("32:8 -1", "weight must be positive and finite"),
        ("32:8 nan", "weight must be positive and finite"),
        ("32:8 1 2", "TOKENS.* and a weight belong here, not '32:8 1 2'"),
        ("x:8", "tokens must be an integer from 1 on, not 'x'"),
        ("32:", "adapters must be an integer from 1 on, not ''"),
        ("32:0", "adapters must be an integer from 1 on"),
        ("\u0664:1", "tokens must be an integer"),
        ("4:8", "4 tokens cannot be spread over 8 adapters"),
        ("32:8,zpif", "'zpif' says nothing about a batch .*even.zipf"),
        ("32:8,zipf,even", "'32:8,zipf,even' says spread twice"),
        ("32:8,ranks=", "ranks must be an integer from 0 on, not ''"),
        ("32:8,ranks=0", "0 .no adapter. to 512, one of them over 0"),
        ("32:8,graph=x", "graph must be an integer"),
        ("512,graph=64", "only a decode batch runs in a CUDA graph"),
        ("1:1", "1:1 is there twice"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(line, says, tmp_path):
    path = written(tmp_path, f"# ours\n1:1\n{line}\n")
    with pytest.raises(UsageError, match=rf"it\.txt:3: .*{says}") as caught:
        read_workload(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_workload, read_traffic])
def test_a_file_that_holds_nothing_or_cannot_be_read(read, tmp_path):
    with pytest.raises(UsageError, match=r"it\.txt holds no batch"):
        read(written(tmp_path, "# nothing\n\n"))
    (tmp_path / "it.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"it\.txt cannot be read: it is not UTF-8 text"):
        read(tmp_path / "it.txt")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read(tmp_path)


ONE = st.just(1.0)


@st.composite
def instances(draw, weights=ONE):
    tokens = draw(st.integers(1, 60_000))
    adapters = draw(st.integers(1, min(tokens, 300)))
    phase = draw(st.sampled_from((None, *PHASES)))
    decoding = phase == "decode" or (phase is None and tokens <= 256)
    ranks = st.lists(st.integers(1, MAX_RANK), min_size=1, max_size=3).map(tuple)
    return Instance(
        tokens=tokens,
        adapters=adapters,
        weight=draw(weights),
        spread=draw(st.sampled_from(SPREADS)),
        phase=phase,
        graph_batch=draw(st.integers(1, 999)) if decoding else 256,
        ranks=draw(st.none() | ranks),
    )


@given(instances())
def test_what_is_printed_is_typed(instance):
    assert parse_instance(str(instance)) == instance


def test_traffic_is_weighted_with_how_often_and_how_long(tmp_path):
    log = written(tmp_path, "decode 32 8\n# later\nprefill 30720 4 2\ndecode 32 8 479\ndecode 9\n")
    decode, prefill, lone = read_traffic(log)
    assert (str(decode), str(prefill), str(lone)) == ("32:8", "30720:4", "9:1")
    assert decode.weight == pytest.approx(480 * (1 + 32 / 300))
    assert prefill.weight == pytest.approx(2 * (1 + 30_720 / 300))
    assert lone.weight == pytest.approx(1 + 9 / 300)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("32 8", "no step of a server: '32 8' .PHASE TOKENS .ADAPTERS .COUNT.., PHASE decode or"),
        ("decode", "no step of a server: 'decode'"),
        ("decode 1 1 1 1", "no step of a server"),
        ("decode 32 8,zipf", "no step of a server"),
        ("decode 32 8 0", "count must be an integer from 1 on, not '0'"),
        ("decode 32 8 1.5", "count must be an integer"),
        ("prefill -5", "tokens must be an integer from 1 on, not '-5'"),
        ("prefill 5 6", "5 tokens cannot be spread over 6 adapters"),
    ],
)
def test_a_line_that_is_no_step_is_refused_with_its_line(line, says, tmp_path):
    with pytest.raises(UsageError, match=rf"it\.txt:2: {says}"):
        read_traffic(written(tmp_path, f"decode 32\n{line}\n"))


@given(st.lists(instances(st.floats(0.001, 1e6)), min_size=1, max_size=40), st.integers(2, 8))
def test_few_batches_stand_for_many(workload, most):
    chosen = condensed(tuple(workload), most)
    assert 1 <= len(chosen) <= most
    assert {i.phase for i in chosen} == {i.phase for i in workload}
    assert {str(i) for i in chosen} <= {str(i) for i in workload}
    assert sum(i.weight for i in chosen) == pytest.approx(1, abs=1e-3)
    if len({(i.tokens, i.adapters, i.phase) for i in workload}) >= most:
        assert len(chosen) == most


def test_few_batches_stay_what_they_are():
    workload = (Instance(tokens=8), Instance(tokens=32, adapters=8, weight=3.0))
    assert [(str(i), i.weight) for i in condensed(workload)] == [("8:1", 0.25), ("32:8", 0.75)]


def test_sizes_that_lie_together_are_one_batch():
    clumps = [tokens + i for tokens in (8, 64, 2000, 30_000) for i in range(3)]
    workload = tuple(Instance(tokens=tokens) for tokens in clumps)
    chosen = condensed(workload, 4)
    assert [i.tokens for i in chosen] == [9, 65, 2001, 30_001]
    assert {i.weight for i in chosen} == {0.25}


def test_thousands_of_sizes_are_condensed_at_once(tmp_path):
    lines = [f"decode {n} {1 + n % 8 if n > 8 else 1} {9 + n}" for n in range(1, 257)]
    lines += [f"prefill {n} {1 + n % 8} 1" for n in range(300, 9000)]
    traffic = read_traffic(written(tmp_path, "\n".join(lines)))
    started_s = time.monotonic()
    for size in CHUNK_SIZES:
        assert len(condensed(reaching(traffic, size))) == MOST_INSTANCES
    assert time.monotonic() - started_s < 10


@pytest.mark.parametrize(
    ("chunk_size", "batches", "name"),
    [
        (16, "32:8 30720:1", "tokens32-30720"),  # as tuned by default
        (32, "128:8 30720:1", "tokens128-30720"),
        (128, "30720", "tokens30720"),
        (16, "32", "tokens32x1"),
        (16, "1 512:4", "tokens1x1-512x4"),
        (16, "1:1 32:8 128:8 256:8", "decode"),
        (64, "256:8", "decode"),
        (16, "128:8 256:8", "tokens128-256x8"),
    ],
)
def test_the_name_of_batches_is_short(chunk_size, batches, name):
    workload = tuple(parse_instance(word) for word in batches.split())
    assert workload_name(workload, chunk_size) == name
    heavier = tuple(replace(one, weight=7.0) for one in workload)
    assert workload_name(heavier, chunk_size) == name  # weights are relative


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_a_preset_gives_its_name_to_the_batches_that_reach_a_chunk_size(chunk_size):
    for name, batches in PRESETS.items():
        if reached := reaching(batches, chunk_size):
            assert workload_name(reached, chunk_size) == name


def test_no_two_workloads_share_a_name():
    texts = ["32:8", "32:4", "32:8,zipf", "32:8,prefill", "32:8,graph=32", "32:8,ranks=16+64"]
    alone = [(parse_instance(text),) for text in texts]
    pairs = [
        (replace(first, weight=weight), Instance(tokens=512))
        for (first,) in alone
        for weight in (1.0, 3.0)
    ]
    many = [tuple(Instance(tokens=n) for n in range(1, last)) for last in (9, 10)]
    for chunk_size in CHUNK_SIZES:
        named = [*alone, *pairs, *many]
        named += [reached for one in PRESETS.values() if (reached := reaching(one, chunk_size))]
        names = [workload_name(workload, chunk_size) for workload in named]
        distinct = {repr(workload) for workload in named}
        assert len(set(names)) == len(distinct)
        assert all(re.fullmatch(r"[a-z0-9-]{1,70}", name) for name in names)


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_of_a_workload_is_read_again(tmp_path, name):
    lines = workload_lines(PRESETS[name])
    assert read_workload(written(tmp_path, "\n".join(lines))) == PRESETS[name]
