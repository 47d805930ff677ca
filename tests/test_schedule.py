import pytest
from triton.backends.compiler import GPUTarget

from lora_autotune.evaluators.plan import empty_operands, task_launch, task_offsets
from lora_autotune.kernels.batch import Batch, served_batch
from lora_autotune.kernels.blank import NOWHERE
from lora_autotune.kernels.expand_schedule import expand_schedule
from lora_autotune.kernels.schedule import Schedule, Target
from lora_autotune.kernels.shrink_schedule import shrink_schedule
from lora_autotune.loader import DEFAULT_EXPAND_CONFIG, DEFAULT_SHRINK_CONFIG
from lora_autotune.task import Instance, Task
from tests.gpus import compile_for

HOPPER = Target(multiprocessors=132, capability=90)


def batch(tokens: int, adapters: int, chunk_size: int) -> Batch:
    instance = Instance(tokens=tokens, adapters=adapters)
    return served_batch(instance, rank=64, chunk_size=chunk_size, device="meta")


def shrink(
    served: Batch, columns: int = 192, width: int = 1024, block_n: int = 64, block_k: int = 64
) -> Schedule:
    config = {"BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": 4}
    return shrink_schedule(served.sizes, columns, width, config, HOPPER)


def expand(
    served: Batch, width: int = 4096, rank: int = 64, block_n: int = 128, block_k: int = 64
) -> Schedule:
    config = {"BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": 4}
    return expand_schedule(served.sizes, width, rank, config, HOPPER)


def shrink_untuned(served: Batch, columns: int = 192, width: int = 1024) -> Schedule:
    default = DEFAULT_SHRINK_CONFIG
    return shrink_schedule(served.sizes, columns, width, default, HOPPER)


def expand_untuned(served: Batch, width: int = 4096, rank: int = 64) -> Schedule:
    return expand_schedule(served.sizes, width, rank, DEFAULT_EXPAND_CONFIG, HOPPER)


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


def chosen(block_n: int, block_k: int, stages: int, **others: int) -> tuple[tuple[str, int], ...]:
    config = {"BLOCK_N": block_n, "BLOCK_K": block_k, "num_warps": 4, "num_stages": stages}
    return tuple({**config, **others}.items())


@pytest.mark.parametrize(
    ("columns", "width", "config", "parts"),
    [
        (48, 1024, chosen(8, 512, 3), 1),
        (128, 1024, chosen(16, 512, 3), 1),
        (192, 1024, chosen(32, 256, 3), 1),
        (64, 2048, chosen(8, 512, 3), 1),
        (64, 3072, chosen(8, 512, 4), 1),
        (16, 4096, chosen(8, 512, 4), 4),
        (48, 4096, chosen(8, 512, 4), 1),
        (192, 4096, chosen(8, 512, 4), 1),
        (16, 14_336, chosen(8, 512, 4), 7),
        (64, 14_336, chosen(32, 256, 4), 8),
    ],
)
def test_few_rows_of_shrink_have_a_config_of_their_own(columns, width, config, parts):
    shape = {"columns": columns, "width": width}
    for block_n, block_k in ((16, 256), (64, 64), (128, 32)):
        own = shape | {"block_n": block_n, "block_k": block_k}
        schedule = shrink(batch(32, 8, 16), **own)
        assert (schedule.config, schedule.parts) == (config, parts)
        assert (schedule.tile, schedule.group, schedule.spread) == (None, 1, True)


def test_low_tiles_are_narrow_for_longer_where_x_is_read_seldom():
    many = batch(64, 32, 16)
    assert shrink(many, columns=64, width=2048).config == chosen(16, 512, 3)
    assert shrink(many, columns=128).config == chosen(32, 256, 3)


def test_more_rows_have_room_for_fewer_stages_and_divide_their_sums_sooner():
    more = batch(128, 8, 32)
    assert shrink(more, columns=64, width=2048).config == chosen(8, 512, 3)
    assert shrink(more, columns=64, width=3072).config == chosen(32, 256, 4)
    assert shrink(more, columns=64, width=3072).parts == 4


@pytest.mark.parametrize("chunk_size", [16, 64, 128])
@pytest.mark.parametrize(
    ("columns", "width", "tokens", "config", "parts"),
    [
        (128, 1024, 1024, chosen(32, 128, 4), 1),
        (192, 1024, 1024, chosen(32, 128, 5), 1),  # one at a time: 96 for 132 multiprocessors
        (192, 1024, 2048, chosen(64, 128, 4), 1),
        (192, 1024, 4096, chosen(64, 128, 3), 1),
        (64, 2048, 1024, chosen(32, 128, 4), 4),
        (64, 2048, 2048, chosen(32, 128, 4), 2),
        (64, 2048, 3072, chosen(32, 128, 5), 1),
        (64, 4096, 3072, chosen(64, 128, 4), 2),
        (32, 4096, 5000, chosen(32, 128, 5), 1),  # there are no broader tiles
        (64, 2048, 4096, chosen(32, 128, 4), 1),
        (64, 2048, 8000, chosen(64, 128, 4), 1),
        (64, 2048, 8192, chosen(64, 128, 4), 1),
        (64, 2048, 16_384, chosen(64, 128, 3), 1),
        (64, 12_288, 1024, chosen(32, 128, 4), 4),
        (64, 12_288, 2048, chosen(64, 128, 4), 4),
        (16, 4096, 2048, chosen(16, 128, 4), 4),
        (48, 4096, 7000, chosen(64, 128, 4), 1),
    ],
)
def test_tall_tiles_that_are_not_many_keep_the_multiprocessors_busy(
    columns, width, tokens, config, parts, chunk_size
):
    schedule = shrink_untuned(batch(tokens, 8, chunk_size), columns, width)
    assert (schedule.config, schedule.parts, schedule.together) == (config, parts, 1)
    assert (schedule.tile, schedule.spread) == (None, False)


@pytest.mark.parametrize("chunk_size", [16, 64, 128])
@pytest.mark.parametrize("tokens", [1024, 4096])
def test_the_tile_of_a_config_is_as_wide_as_without_one(tokens, chunk_size):
    served = batch(tokens, 8, chunk_size)
    columns = dict(shrink_untuned(served, 128).config)["BLOCK_N"]
    assert columns == {1024: 32, 4096: 64}[tokens]
    narrow = shrink(served, 128, block_n=16, block_k=256).tile
    assert narrow == {32: (32, 128), 64: (64, 64)}[columns]
    assert shrink(served, 128, block_n=128, block_k=32).tile == (columns, 32)
    assert shrink(served, 128, block_n=columns, block_k=128).tile is None


def test_tall_tiles_with_few_rows_have_a_config_of_their_own():
    for chunk_size in (64, 128):
        for tokens in (32, 512):
            served = batch(tokens, 8, chunk_size)
            assert shrink(served).config == chosen(16, 256, 3)
            assert shrink(served, 64, 2048).config == chosen(16, 128, 4)
            assert shrink(served, 64, 2048).parts == 4
    assert shrink(batch(512, 8, 16)).spread


def test_a_config_is_widened_where_tall_tiles_are_many():
    broad = {"columns": 64, "block_n": 128, "block_k": 64}
    assert shrink(batch(16 * 1024, 1, 16), **broad).tile == (64, 64)
    assert shrink(batch(17 * 1024, 1, 16), **broad).tile is None
    wide = {"columns": 64, "block_n": 16, "block_k": 256}
    assert shrink(batch(17 * 1024, 1, 16), **wide).tile == (64, 64)
    # Few rows of each of many adapters: as many segments, none of which is whole.
    assert shrink(batch(1024, 128, 16), **wide).tile == (64, 64)
    assert shrink(batch(1024, 128, 16), **wide).group == 1


@pytest.mark.parametrize(
    ("columns", "config", "together"),
    [
        (8, chosen(16, 128, 4), 1),
        (48, chosen(64, 128, 3), 1),
        (64, chosen(64, 128, 3), 1),
        (128, chosen(64, 64, 4), 2),
        (192, chosen(64, 64, 3), 3),
        (384, chosen(128, 64, 4), 1),
    ],
)
def test_many_rows_without_a_config_fill_the_shared_memory_twice(columns, config, together):
    schedule = shrink_untuned(batch(30_720, 1, 16), columns)
    assert (schedule.config, schedule.together) == (config, together)
    assert schedule.tile is None


def test_tiles_that_hold_too_much_together_stay_apart():
    prefill = batch(30_720, 1, 64)
    assert shrink(prefill, columns=512).together == 1
    assert shrink(prefill, columns=256).together == 4
    assert shrink(prefill, block_k=128).together == 1


def test_a_long_sum_of_few_segments_is_divided():
    assert shrink(batch(32, 8, 64), columns=48, width=4096).parts == 8
    assert shrink(batch(32, 8, 16), columns=192, width=1024).parts == 1
    assert shrink(batch(1, 1, 16), columns=16, width=14_336).parts == 7
    assert shrink(batch(1, 1, 16), columns=16, width=16_384).parts == 16
    assert shrink(batch(30_720, 1, 16), width=14_336).parts == 1


def test_weights_are_fetched_ahead_where_each_program_has_a_multiprocessor():
    few, many = batch(32, 8, 16), batch(64, 32, 16)
    assert shrink(few).ahead
    assert shrink(few, columns=16, width=4096).ahead  # in four parts
    assert not shrink(few, columns=32, width=4096).ahead
    assert not shrink(many).ahead
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
    ("rank", "config"),
    [
        (8, chosen(128, 16, 1)),
        (16, chosen(128, 16, 1)),
        (20, chosen(128, 32, 1, maxnreg=128)),
        (64, chosen(128, 32, 3, maxnreg=128)),
        (256, chosen(128, 64, 3, maxnreg=128)),
        (100, chosen(128, 64, 3)),
    ],
)
def test_few_rows_of_expand_have_a_config_of_their_own(rank, config):
    for block_n, block_k in ((64, 16), (256, 64)):
        own = {"rank": rank, "block_n": block_n, "block_k": block_k}
        assert expand(batch(32, 8, 16), **own).config == config
        assert expand(batch(30_720, 1, 16), **own).config is None
        assert expand(batch(100, 8, 64), **own).config is None  # tiles of 64 rows are not low


def test_few_rows_of_each_of_many_adapters_are_many():
    crowd = batch(16_000, 128, 16)
    assert expand(crowd).config is None
    assert shrink(crowd).config is None


@pytest.mark.parametrize("tokens", [32, 512, 1024, 1056, 2048, 30_720])
@pytest.mark.parametrize("width", [1024, 4096])
def test_a_config_does_not_decide_whether_it_is_in_force(tokens, width):
    served = batch(tokens, 8, 16)
    tiles = [(16, 64), (64, 64), (128, 32), (256, 16)]
    for schedules in (
        [expand(served, width, 64, *own) for own in tiles],
        [shrink(served, 64, width, *own) for own in tiles],
    ):
        assert len({schedule.config for schedule in schedules}) == 1
        assert len({schedule.group for schedule in schedules}) == 1


@pytest.mark.parametrize(
    ("rank", "config"),
    [
        (8, chosen(128, 16, 1, maxnreg=168)),
        (32, chosen(128, 32, 1, maxnreg=168)),
        (60, chosen(64, 32, 1, maxnreg=128)),
        (64, chosen(64, 64, 1, maxnreg=128)),
        (128, chosen(64, 128, 1, maxnreg=128)),
        (256, chosen(128, 64, 3)),
    ],
)
def test_many_rows_of_expand_without_a_config_take_the_rank_in_one_step(rank, config):
    for tokens in (1024, 30_720):
        assert expand_untuned(batch(tokens, 8, 16), rank=rank).config == config
    unlimited = dict(expand_untuned(batch(30_720, 8, 16), width=4104, rank=rank).config)
    assert unlimited == {key: value for key, value in config if key != "maxnreg"}
    assert expand_untuned(batch(32, 8, 16), rank=rank) == expand(batch(32, 8, 16), rank=rank)


@pytest.mark.parametrize(
    ("tokens", "width", "rank", "config"),
    [
        (30_720, 4096, 16, chosen(128, 16, 1, maxnreg=168)),
        (30_720, 4096, 24, chosen(128, 32, 1, maxnreg=128)),
        (2048, 4096, 32, chosen(128, 32, 1, maxnreg=128)),
        (30_720, 4096, 20, chosen(128, 32, 1, maxnreg=168)),  # rank no multiple of 8
        (30_720, 1024, 64, chosen(128, 64, 1, maxnreg=128)),
        (6144, 4096, 64, chosen(64, 64, 1, maxnreg=128)),  # not so many
        (6400, 4096, 64, chosen(128, 64, 1, maxnreg=128)),
        (30_720, 4096, 60, chosen(64, 32, 1, maxnreg=128)),
        (30_720, 4104, 64, chosen(64, 64, 1)),
        (30_720, 4096, 128, chosen(64, 128, 1, maxnreg=128)),
        (30_720, 4096, 256, chosen(128, 64, 3)),
    ],
)
def test_tiles_of_one_segment_are_wider_where_they_are_many(tokens, width, rank, config):
    for chunk_size in (64, 128):
        assert expand_untuned(batch(tokens, 1, chunk_size), width, rank).config == config


CRAMPED = {32: chosen(128, 32, 1, maxnreg=168), 64: chosen(64, 64, 1, maxnreg=128)}
"""Rank -> what tall tiles have where a thread has no registers to spare."""


@pytest.mark.parametrize(
    ("capability", "has_room"),
    [(80, False), (89, False), (90, True), (100, True), (103, True), (120, False), (121, False)],
)
@pytest.mark.parametrize("rank", [32, 64])
def test_threads_without_warp_groups_have_more_registers_or_fewer_columns(
    rank, capability, has_room
):
    sizes = batch(30_720, 1, 64).sizes
    target = Target(multiprocessors=108, capability=capability)
    schedule = expand_schedule(sizes, 4096, rank, DEFAULT_EXPAND_CONFIG, target)
    roomy = chosen(128, rank, 1, maxnreg=128)
    assert schedule.config == (roomy if has_room else CRAMPED[rank])


@pytest.mark.parametrize("rank", [32, 64])
def test_threads_of_programs_that_go_on_in_rounds_are_as_cramped(rank):
    padded = batch(30_720, 1, 64).sizes._replace(grid_segments=1024)
    schedule = expand_schedule(padded, 4096, rank, DEFAULT_EXPAND_CONFIG, HOPPER)
    assert schedule.rounds
    assert schedule.config == CRAMPED[rank]


def test_many_segments_of_few_rows_have_broad_tiles():
    schedule = expand_untuned(batch(16_000, 128, 16))
    assert schedule.config == chosen(128, 64, 3)
    assert schedule.walk == 8  # of 128 columns each: only tall ones are walked less far


def test_the_next_of_several_tiles_is_loaded_ahead():
    walking = expand(batch(32, 8, 16), width=24_576, rank=16)
    assert walking.walk > 1
    assert walking.config == chosen(128, 16, 3)


@pytest.mark.parametrize(
    ("tokens", "width", "registers", "walk"),
    [
        (2048, 4096, 128, 4),  # four programs at a time: all at once
        (2048, 6144, 128, 6),
        (4096, 6144, 128, 6),  # in two rounds
        (4096, 4096, 168, 3),  # three at a time, of 128 columns
        (30_720, 1024, 128, 4),
        (6144, 1024, 128, 1),  # in three rounds, which are nearly full
        (30_720, 4096, 128, 6),  # no further than 384 columns
    ],
)
def test_expand_walks_as_far_as_all_programs_are_done_first(tokens, width, registers, walk):
    config = {"BLOCK_N": 64 if registers == 128 else 128, "BLOCK_K": 64, "num_warps": 4}
    sizes = batch(tokens, 1, 16).sizes
    limited = config | {"maxnreg": registers}
    assert expand_schedule(sizes, width, 64, limited, HOPPER).walk == walk


def test_few_rows_of_expand_are_walked_where_programs_are_plenty():
    assert expand(batch(32, 8, 16), width=6144).walk == 1
    assert expand(batch(32, 8, 16), width=24_576).walk == 2


def test_a_padded_buffer_is_not_covered_whole():
    assert expand(batch(32, 8, 16)).rounds
    assert not expand(batch(30_720, 1, 16)).rounds
    assert not shrink(batch(1000, 3, 32)).rounds


def test_a_launch_has_what_its_schedule_says(monkeypatch):
    compile_for(GPUTarget("cuda", 90, 32), monkeypatch)
    task = Task(kernel="expand", K=256, R=16, S=1, chunk_size=16)
    served = served_batch(Instance(tokens=8), rank=16, chunk_size=16, device=NOWHERE)
    operands = empty_operands(task, served, device=NOWHERE)
    offsets = task_offsets(task, device=NOWHERE)

    def launched(**schedule: object) -> list[int | None]:
        config = {"BLOCK_N": 64, "BLOCK_K": 16, "maxnreg": 96}
        launch = task_launch(task, operands, served, offsets, config, Schedule(**schedule))
        return [launch.variant.constants.get(name) for name in (*config, "num_stages")]

    assert launched() == [64, 16, 96, None]
    assert launched(tile=(128, 32)) == [128, 32, 96, None]
    assert launched(config=chosen(128, 32, 2)) == [128, 32, None, 2]
