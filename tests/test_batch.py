from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_autotune.errors import UsageError
from lora_autotune.kernels.batch import Batch, make_batch, served_batch
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
@given(OWNERS, st.sampled_from([16, 32]), st.integers(0, 5))
def test_likely_segments_is_an_upper_bound(owners, chunk_size, surplus):
    batch = batch_of(owners, chunk_size, surplus)
    assert batch.num_segs <= batch.likely_segments or not owners


def test_a_short_buffer_is_refused():
    with pytest.raises(UsageError, match="do not fit"):
        make_batch([0] * 33, ranks=[4], scalings=[1.0], chunk_size=16, grid_segments=2)


def test_an_unknown_adapter_is_refused():
    with pytest.raises(UsageError, match="outside"):
        make_batch([0, 3], ranks=[4], scalings=[1.0], chunk_size=16)


def test_a_served_decode_batch_has_the_padded_grid():
    batch = served_batch(Instance(tokens=32, adapters=8), rank=64, chunk_size=16, device="cpu")
    assert (batch.num_segs, batch.grid_segments) == (8, 256)
    assert batch.lora_ranks.tolist() == [64] * 8


def test_a_served_prefill_batch_has_room_for_the_slots():
    batch = served_batch(Instance(tokens=30720), rank=64, chunk_size=64, device="cpu")
    assert (batch.num_segs, batch.grid_segments) == (480, 488)
    assert torch.equal(batch.lora_ranks, torch.tensor([64] + [0] * 7, dtype=torch.int32))
