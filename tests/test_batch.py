from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_autotune.errors import UsageError
from lora_autotune.kernels.batch import TALL_ROWS, Batch, make_batch, served_batch
from lora_autotune.task import Instance

OWNERS = st.lists(st.integers(0, 4), min_size=0, max_size=90)


def batch_of(owners: list[int], chunk_size: int, surplus: int = 0) -> Batch:
    exact = make_batch(owners, ranks=[8] * 5, scalings=[1.0] * 5, chunk_size=chunk_size)
    return make_batch(
        owners,
        ranks=[8] * 5,
        scalings=[1.0] * 5,
        chunk_size=chunk_size,
        grid_segments=exact.num_segs + surplus,
    )


@settings(deadline=None)
@given(OWNERS, st.sampled_from([16, 32]), st.integers(0, 5))
def test_segments_cover_every_row_once_with_its_own_adapter(owners, chunk_size, surplus):
    batch = batch_of(owners, chunk_size, surplus)
    starts = batch.seg_indptr.tolist()
    seen = []
    for segment in range(batch.num_segs):
        rows = batch.permutation[starts[segment] : starts[segment + 1]].tolist()
        assert 1 <= len(rows) <= chunk_size
        assert {owners[row] for row in rows} == {int(batch.weight_indices[segment])}
        seen += rows
    assert sorted(seen) == list(range(len(owners)))
    assert set(starts[batch.num_segs :]) == {len(owners)}


@settings(deadline=None)
@given(OWNERS, st.sampled_from([16, 32]))
def test_no_segment_could_be_saved(owners, chunk_size):
    needed = sum(-(-count // chunk_size) for count in Counter(owners).values())
    assert batch_of(owners, chunk_size).num_segs == needed


@settings(deadline=None)
@given(OWNERS, st.sampled_from([16, 32, 128]), st.integers(0, 5))
def test_likely_segments_and_pieces_are_upper_bounds(owners, chunk_size, surplus):
    batch = batch_of(owners, chunk_size, surplus)
    assert batch.num_segs <= batch.sizes.likely_segments or not owners
    lengths = batch.seg_indptr.diff().tolist()
    pieces = [-(-length // batch.sizes.piece_rows) for length in lengths]
    assert sum(pieces) <= batch.sizes.likely_pieces
    assert max(pieces, default=0) <= batch.sizes.pieces


def test_a_short_buffer_is_refused():
    with pytest.raises(UsageError, match="do not fit"):
        make_batch([0] * 33, ranks=[4], scalings=[1.0], chunk_size=16, grid_segments=2)


def test_an_unknown_adapter_is_refused():
    with pytest.raises(UsageError, match="outside"):
        make_batch([0, 3], ranks=[4], scalings=[1.0], chunk_size=16)


def test_a_served_decode_batch_has_the_padded_grid():
    batch = served_batch(Instance(tokens=32, adapters=8), rank=64, chunk_size=16, device="cpu")
    assert (batch.num_segs, batch.sizes.grid_segments) == (8, 256)
    assert batch.lora_ranks.tolist() == [64] * 8


def test_a_served_prefill_batch_has_room_for_the_slots():
    batch = served_batch(Instance(tokens=30720), rank=64, chunk_size=64, device="cpu")
    assert (batch.num_segs, batch.sizes.grid_segments) == (480, 488)
    assert torch.equal(batch.lora_ranks, torch.tensor([64] + [0] * 7, dtype=torch.int32))


def rows_of(batch: Batch) -> list[int]:
    starts = batch.seg_indptr.tolist()
    rows: Counter[int] = Counter()
    for segment in range(batch.num_segs):
        rows[int(batch.weight_indices[segment])] += starts[segment + 1] - starts[segment]
    return [rows[adapter] for adapter in range(batch.lora_ranks.shape[0])]


def served(chunk_size: int = 16, rank: int = 64, **values) -> Batch:
    return served_batch(Instance(**values), rank=rank, chunk_size=chunk_size, device="cpu")


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 40), st.sampled_from([16, 128]), st.data())
def test_every_adapter_of_a_served_batch_has_rows(tokens, adapters, chunk_size, data):
    adapters = min(adapters, tokens)
    spread, phase = (
        data.draw(st.sampled_from(["even", "zipf"])),
        data.draw(st.sampled_from(["decode", "prefill"])),
    )
    batch = served(chunk_size, tokens=tokens, adapters=adapters, spread=spread, phase=phase)
    rows = rows_of(batch)
    assert sum(rows) == tokens
    assert min(rows[:adapters]) >= 1
    assert rows[adapters:] == [0] * (len(rows) - adapters)
    assert len(rows) == max(8, adapters)
    assert batch.num_segs <= batch.sizes.likely_segments <= batch.sizes.grid_segments
    if spread == "even":  # to the row what it was before there was a choice
        owners = torch.arange(tokens) * adapters // tokens
        assert rows[:adapters] == torch.bincount(owners, minlength=adapters).tolist()
        assert max(rows[:adapters]) - min(rows[:adapters]) <= 1
    else:
        assert rows == sorted(rows, reverse=True)


def test_zipf_gives_the_ith_adapter_one_ith():
    rows = rows_of(served(tokens=30_720, adapters=8, spread="zipf"))
    assert [round(rows[0] / count) for count in rows] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("chunk_size", "fewer", "more"), [(16, 1, 6), (32, 1, 5), (64, 0, 0), (128, 2, 2)]
)
@pytest.mark.parametrize("adapters", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("tokens", [1024, 2048, 3000, 4096, 8192, 30_720])
def test_tiles_that_are_not_full_are_counted_by_the_segments_there_are(
    tokens, adapters, chunk_size, fewer, more
):
    batch = served(chunk_size, tokens=tokens, adapters=adapters, spread="zipf")
    group = max(1, TALL_ROWS // chunk_size)
    owners = batch.weight_indices[: batch.num_segs].split(group)
    tiles = sum(part.unique().numel() for part in owners)
    if group == 1:
        tiles = sum(-(-count // TALL_ROWS) for count in batch.seg_indptr.diff().tolist())
    if adapters == 1:
        fewer = more = 0
    assert tiles - fewer <= batch.sizes.likely_runs(group) <= tiles + more
    unknown = replace(batch, num_segs=batch.sizes.grid_segments).sizes
    assert unknown.likely_runs(group) == -(-tokens // TALL_ROWS) + unknown.adapters - 1


def test_one_adapter_per_token():
    batch = served(tokens=20, adapters=20)
    assert rows_of(batch) == [1] * 20
    assert (batch.num_segs, batch.sizes.grid_segments, batch.sizes.likely_segments) == (20, 256, 20)


def test_the_buffer_is_that_of_the_phase():
    assert served(tokens=32, adapters=8, phase="prefill").sizes.grid_segments == 16 + 8
    assert served(tokens=100, adapters=8, graph_batch=160).sizes.grid_segments == 160
    assert served(tokens=512, adapters=8, phase="decode").sizes.grid_segments == 512
    assert (
        served(tokens=512, adapters=8, phase="decode", graph_batch=768).sizes.grid_segments == 768
    )


def test_ranks_in_use_are_repeated_over_the_adapters():
    batch = served(tokens=30, adapters=5, ranks=(64, 8, 0))
    assert batch.lora_ranks.tolist() == [64, 8, 0, 64, 8, 0, 0, 0]
