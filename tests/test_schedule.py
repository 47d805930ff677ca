import pytest
from triton.backends.compiler import GPUTarget

from lora_autotune.evaluators.plan import empty_operands, task_launch, task_offsets
from lora_autotune.kernels.batch import Batch, served_batch
from lora_autotune.kernels.blank import NOWHERE
from lora_autotune.kernels.schedule import Schedule, expand_schedule, shrink_schedule
from lora_autotune.task import Instance, Task
from tests.gpus import compile_for

MULTIPROCESSORS = 132


def batch(tokens: int, adapters: int, chunk_size: int) -> Batch:
    instance = Instance(tokens=tokens, adapters=adapters)
    return served_batch(instance, rank=64, chunk_size=chunk_size, device="meta")


def shrink(
    served: Batch, columns: int = 192, width: int = 1024, block_n: int = 64, block_k: int = 64
) -> Schedule:
    config = {"BLOCK_N": block_n, "BLOCK_K": block_k}
    return shrink_schedule(served.sizes, columns, width, config, MULTIPROCESSORS)


def expand(
    served: Batch, width: int = 4096, rank: int = 64, block_n: int = 128, block_k: int = 64
) -> Schedule:
    config = {"BLOCK_N": block_n, "BLOCK_K": block_k}
    return expand_schedule(served.sizes, width, rank, config, MULTIPROCESSORS)


@pytest.mark.parametrize("chunk_size", [16, 32, 64, 128])
def test_a_large_prefill_has_tall_tiles_and_reads_x_once(chunk_size):
    schedule = shrink(batch(30_720, 1, chunk_size))
    assert schedule == Schedule(group={16: 4, 32: 2}.get(chunk_size, 1), together=3)


def test_a_narrow_deep_tile_is_wide_and_shallow_where_rows_are_many():
    prefill = batch(30_720, 1, 16)
    wide = Schedule(group=4, tile=(64, 64), together=3)
    assert shrink(prefill, block_n=16, block_k=256) == wide
    assert shrink(prefill, columns=16, block_n=16, block_k=256).tile is None
    assert shrink(prefill, block_n=16, block_k=64).tile == (32, 32)


@pytest.mark.parametrize(
    ("columns", "width", "tile", "parts"),
    [
        (128, 1024, None, 1),
        (192, 1024, (32, 256), 1),
        (32, 2048, None, 4),
        (64, 2048, (32, 256), 4),
        (16, 3072, None, 6),
        (48, 4096, (32, 256), 8),
        (192, 4096, (32, 256), 4),
    ],
)
def test_a_low_tile_is_broad_where_narrow_ones_would_crowd(columns, width, tile, parts):
    shape = {"columns": columns, "width": width, "block_n": 16, "block_k": 256}
    schedule = shrink(batch(32, 8, 16), **shape)
    assert (schedule.tile, schedule.parts, schedule.group) == (tile, parts, 1)
    assert shrink(batch(32, 8, 64), **shape).tile is None
    assert shrink(batch(32, 8, 16), **{**shape, "block_n": 32}).tile is None


@pytest.mark.parametrize("chunk_size", [16, 64, 128])
@pytest.mark.parametrize(
    ("tokens", "tile"), [(1024, (32, 128)), (2048, (32, 128)), (4096, (64, 64))]
)
def test_in_between_tiles_are_of_middle_width(tokens, tile, chunk_size):
    assert shrink(batch(tokens, 8, chunk_size), block_n=16, block_k=256).tile == tile


@pytest.mark.parametrize(("chunk_size", "tile"), [(16, (32, 256)), (64, None), (128, None)])
def test_a_few_hundred_rows_have_no_tall_tiles(chunk_size, tile):
    assert shrink(batch(512, 8, chunk_size), block_n=16, block_k=256).tile == tile


def test_tiles_are_wide_once_there_are_many_for_each_multiprocessor():
    wide = {"columns": 64, "block_n": 16, "block_k": 256}
    assert shrink(batch(9 * 1024, 1, 16), **wide).tile == (32, 128)
    assert shrink(batch(12 * 1024, 1, 16), **wide).tile == (64, 64)
    # Few rows of each of many adapters: as many segments, none of which is whole.
    assert shrink(batch(1024, 128, 16), **wide).tile == (64, 64)
    assert shrink(batch(1024, 128, 16), **wide).group == 1


def test_a_wide_tile_is_made_narrower_where_there_would_be_few():
    assert shrink(batch(2048, 8, 128), block_n=64, block_k=64).tile == (32, 64)
    assert shrink(batch(4096, 8, 128), block_n=64, block_k=64).tile is None


@pytest.mark.parametrize(("tokens", "parts"), [(1024, 4), (2048, 2), (4096, 1), (30_720, 1)])
def test_parts_of_the_sum_keep_the_multiprocessors_busy_in_between(tokens, parts):
    schedule = shrink(batch(tokens, 1, 16), columns=64, width=2048, block_n=16, block_k=256)
    assert schedule.parts == parts
    assert schedule.together == 1


def test_tiles_that_hold_too_much_together_stay_apart():
    prefill = batch(30_720, 1, 64)
    assert shrink(prefill, columns=512).together == 1
    assert shrink(prefill, columns=256).together == 4
    assert shrink(prefill, block_k=128).together == 1


def test_a_long_sum_of_few_segments_is_divided():
    assert shrink(batch(32, 8, 16), columns=48, width=4096, block_n=32).parts == 8
    assert shrink(batch(32, 8, 16), columns=192, width=1024, block_n=16).parts == 1
    assert shrink(batch(1, 1, 16), columns=16, width=14_336, block_n=16).parts == 16
    assert shrink(batch(30_720, 1, 16), width=14_336).parts == 1


def test_weights_are_fetched_ahead_where_rows_are_few_and_sums_whole():
    few, many = batch(32, 8, 16), batch(64, 32, 16)
    assert shrink(few, block_n=16, block_k=256).ahead
    assert not shrink(few, width=4096, block_n=16, block_k=256).ahead
    assert not shrink(many, block_n=16, block_k=256).ahead  # more programs than multiprocessors
    assert not shrink(batch(30_720, 1, 16)).ahead
    assert expand(many).ahead
    for tokens in (512, 30_720):
        assert not expand(batch(tokens, 1, 16)).ahead


def test_a_long_segment_is_as_many_tall_tiles_as_it_has():
    for tokens in (512, 2048, 8192, 30_720):
        long, short = batch(tokens, 1, 128), batch(tokens, 1, 64)
        assert shrink(long) == shrink(short)
        assert expand(long) == expand(short)


def test_segments_are_not_grouped_where_adapters_change_from_one_to_the_next():
    assert expand(batch(512, 8, 16)).group == 1
    assert expand(batch(4096, 8, 16)).group == 4


@pytest.mark.parametrize(
    ("rank", "tile"), [(8, (128, 16)), (16, (128, 16)), (20, (128, 32)), (64, (128, 32))]
)
def test_few_rows_have_the_same_tile_of_expand_whatever_the_config(rank, tile):
    for own in ((64, 16), (256, 64)):
        found = expand(batch(32, 8, 16), rank=rank, block_n=own[0], block_k=own[1])
        assert (found.tile, found.maxnreg) == (tile, 0 if rank <= 16 else 128)
        many = expand(batch(30_720, 1, 16), rank=rank, block_n=own[0], block_k=own[1])
        assert (many.tile, many.maxnreg) == (None, None)
    assert expand(batch(32, 8, 16), block_n=128, block_k=32).tile is None
    large = expand(batch(32, 8, 16), rank=72)
    assert (large.tile, large.maxnreg) == (None, None)
    assert expand(batch(100, 8, 64)).tile is None  # tiles of 64 rows are not low


def test_expand_walks_where_programs_are_plenty():
    assert expand(batch(32, 8, 16), width=6144).walk == 1
    assert expand(batch(30_720, 1, 64)).walk == 8


def test_a_padded_buffer_is_not_covered_whole():
    assert expand(batch(32, 8, 16)).rounds
    assert not expand(batch(30_720, 1, 16)).rounds
    assert not shrink(batch(1000, 3, 32)).rounds


@pytest.mark.parametrize(("maxnreg", "expected"), [(None, 96), (0, None), (128, 128)])
def test_a_launch_has_what_its_schedule_says(monkeypatch, maxnreg, expected):
    compile_for(GPUTarget("cuda", 90, 32), monkeypatch)
    task = Task(kernel="expand", K=256, R=16, S=1, chunk_size=16)
    served = served_batch(Instance(tokens=8), rank=16, chunk_size=16, device=NOWHERE)
    operands = empty_operands(task, served, device=NOWHERE)
    config = {"BLOCK_N": 64, "BLOCK_K": 16, "maxnreg": 96}
    schedule = Schedule(tile=(128, 32), maxnreg=maxnreg)
    offsets = task_offsets(task, device=NOWHERE)
    found = task_launch(task, operands, served, offsets, config, schedule).variant.constants
    assert (found["BLOCK_N"], found["BLOCK_K"], found.get("maxnreg")) == (128, 32, expected)
