"""The kernels against the reference, in a process of its own: TRITON_INTERPRET is read on import.

Prints nothing; exits with an assertion for the first case that differs.
"""

import itertools
import sys
from dataclasses import replace

import torch
import triton
import triton.language as tl

from lora_autotune.kernels import prefetch
from lora_autotune.kernels.batch import Batch, make_batch
from lora_autotune.kernels.launch import expand_launch, shrink_launch
from lora_autotune.kernels.linear_launch import linear_launches
from lora_autotune.kernels.reference import expand_reference, shrink_reference
from lora_autotune.kernels.schedule import Schedule
from lora_autotune.kernels.segments import inner_run

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def check(
    dtype, device, chunk_size, rank, ranks, block_n, block_k, offsets, schedule, wider, cut=None,
    width=72,
):  # fmt: skip
    """One case of each kernel; ``cut``: rows of a segment, if fewer than its chunk may have."""
    generator = torch.Generator().manual_seed(chunk_size * 1000 + rank)
    rows, slices = 6 * chunk_size + 21, len(offsets) - 1
    schedule = Schedule(**schedule)
    owners = torch.randint(0, len(ranks), (rows,), generator=generator)
    owners[: rows // 2] = 0  # enough of one adapter to fill a group
    batch = make_batch(
        owners,
        ranks=ranks,
        scalings=[0.5, 1.0, 2.0, 1.5][: len(ranks)],
        chunk_size=cut or chunk_size,
        grid_segments=22 if cut is None else None,
        device=device,
    )
    batch = replace(batch, chunk_size=chunk_size)
    batch.weight_indices[batch.num_segs :] = 2**30  # is not read
    assert cut is None or batch.sizes.likely_segments < batch.num_segs

    def fresh(*shape):
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    config = {"BLOCK_N": block_n, "BLOCK_K": block_k}
    x, weights = fresh(rows, width), fresh(len(ranks), slices * rank, width)
    output = torch.full((rows, slices * rank), torch.nan, dtype=dtype, device=device)
    shrink_launch(x, weights, output, batch, slices, config, schedule=schedule)()
    again = torch.full_like(output, torch.nan)
    shrink_launch(x, weights, again, batch, slices, config, schedule=schedule)()
    reference = shrink_reference(x, weights, batch, slices)
    owed = ~reference.isnan()
    assert owed.any()
    assert torch.equal(output[owed], again[owed]), "shrink is not deterministic"
    assert output[~owed.any(dim=1)].isnan().all(), "shrink wrote a row without an adapter"
    close(output[owed], reference[owed], dtype, "shrink", chunk_size, rank, block_n)

    x, weights = fresh(rows, slices * rank), fresh(len(ranks), offsets[-1], rank)
    output = fresh(rows, offsets[-1] + wider)
    boundaries = torch.tensor(offsets, dtype=torch.int64, device=device)
    reference = expand_reference(x, weights, batch, boundaries, output)
    if slices == 1:
        boundaries.fill_(-1)  # are not read
    expand_launch(x, weights, output, batch, boundaries, config, schedule=schedule)()
    close(output, reference, dtype, "expand", chunk_size, rank, block_n)


def close(output, reference, dtype, *case):
    error = (output.double() - reference).norm() / reference.norm()
    assert error <= TOLERANCE[dtype], (*case, float(error))


def main(device, dtype_name):
    dtype = getattr(torch, dtype_name)
    unequal = [0, 40, 56, 72]
    plain, rounds = {"ahead": True}, {"rounds": True, "ahead": True}
    split = rounds | {"parts": 4, "walk": 4}
    group = {"group": 4, "walk": 2}
    check(dtype, device, 16, 16, [16, 0, 7, 16], 16, 16, unequal, plain, 0)
    check(dtype, device, 16, 64, [64, 32, 48, 0], 32, 32, unequal, split, 16)
    check(dtype, device, 32, 20, [20, 5, 0, 16], 64, 32, unequal, group, 8)
    check(dtype, device, 16, 48, [48, 5, 0, 48], 32, 32, unequal, group | {"together": 3}, 8)
    check(dtype, device, 16, 16, [16, 16, 16, 16], 32, 32, [0, 48], {"together": 2}, 0)
    check(dtype, device, 16, 48, [48, 5, 0, 48], 16, 32, unequal, group | {"tile": (32, 16)}, 8)
    check(dtype, device, 16, 32, [32, 16, 0, 3], 16, 64, [0, 48], group | {"parts": 2}, 0)
    check(dtype, device, 16, 16, [16, 16, 0, 16], 32, 16, unequal, rounds | {"parts": 3}, 0)
    check(dtype, device, 64, 16, [16, 8, 0, 16], 128, 64, [0, 64, 128], plain, 0)
    check(dtype, device, 128, 16, [16, 7, 0, 16], 32, 32, unequal, plain | {"parts": 2}, 0)
    check(dtype, device, 128, 16, [16, 16, 0, 16], 64, 64, [0, 64], rounds, 0, cut=70)
    check(dtype, device, 128, 16, [16, 9, 0, 16], 16, 16, unequal, rounds | {"parts": 3}, 0, cut=70)
    check(dtype, device, 32, 16, [16, 16, 16, 0], 32, 32, [0, 48], rounds, 0, cut=5)
    check(dtype, device, 32, 16, [16, 8, 0, 16], 32, 32, [0, 48], rounds | group, 0, cut=3)
    low = {"config": (("BLOCK_N", 16), ("BLOCK_K", 64)), "spread": True, "ahead": True}
    check(dtype, device, 16, 16, [16, 0, 7, 16], 64, 16, unequal, low, 0)
    check(dtype, device, 32, 16, [16, 9, 0, 3], 16, 16, [0, 48], rounds | low, 0, 5, width=128)
    low = rounds | {"config": (("BLOCK_N", 8), ("BLOCK_K", 64)), "spread": True, "parts": 2}
    check(dtype, device, 16, 20, [20, 5, 0, 20], 64, 16, [0, 48], low, 0, width=128)
    low = {"config": (("BLOCK_N", 32), ("BLOCK_K", 64)), "spread": True, "walk": 2}
    for rank in (72, 68):  # ragged ones in two steps, by eights and not
        check(dtype, device, 16, rank, [rank, rank - 3, 0, 36], 64, 16, [0, 40, 72], low, 0)
    for schedule in (group, rounds | group, group | {"parts": 2}):
        scattered(dtype, device, schedule)
    nothing(dtype, device)
    kinds(dtype, device)
    if device == "cpu":
        for parts, width in itertools.product((1, 2, 5), (72, 328, 1000)):
            fetches(dtype, parts, width)
        output_fetches(dtype, 64, [0, 200, 328], {"walk": 2})
        output_fetches(dtype, 128, [0, 328], {"walk": 3})
        output_fetches(dtype, 16, [0, 256], {"group": 4})
    inner_runs(device)
    if device == "cpu" or torch.cuda.get_device_capability() == (9, 0):
        linear(dtype, device, 391, 200, 24, [24, 8, 0, 16, 20], [0, 256, 512, 600])
        linear(dtype, device, 391, 64, 72, [72, 64, 0, 7, 72], [0, 328])
        linear(dtype, device, 70, 72, 64, [64] * 5, [0, 512, 768], chunk_size=128)
        linear(dtype, device, 2469, 8, 8, [8, 3, 0, 8, 1] * 4, [0, 264])


def linear(dtype, device, rows, depth, rank, ranks, boundaries, chunk_size=16):
    """A layer's product and its LoRA in one: tiles of one adapter, of none, of several."""
    generator = torch.Generator().manual_seed(rows + depth)
    owners = torch.randint(0, len(ranks), (rows,), generator=generator)
    owners[: rows // 3], owners[2 * rows // 3 : rows - 9] = 1, 2
    batch = make_batch(
        owners,
        ranks=ranks,
        scalings=[0.5 + slot / 8 for slot in range(len(ranks))],
        chunk_size=chunk_size,
        grid_segments=rows // chunk_size + 30,
        device=device,
    )
    slices, width = len(boundaries) - 1, boundaries[-1]

    def fresh(*shape):
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    x, weight = fresh(rows, depth), fresh(width, depth) / 8
    middle, lora_b = fresh(rows, slices * rank), fresh(len(ranks), width, rank) / 4
    offsets = torch.tensor(boundaries, dtype=torch.int32, device=device)
    product = x.double() @ weight.double().T
    reference = expand_reference(middle, lora_b, batch, offsets, product)
    for row, owner in enumerate(owners.tolist()):  # what shrink does not write
        middle[row, slices * ranks[owner] :] = torch.nan
    for slot, its_rank in enumerate(ranks):
        lora_b[slot, :, its_rank:] = torch.nan  # what an adapter leaves behind
    buffer = batch.weight_indices.clone()
    captured = replace(batch, weight_indices=buffer, num_segs=len(buffer))  # a graph's, whole
    batch.weight_indices[batch.num_segs :] = 2**30  # is not read

    def made(programs, segments=batch):
        output = torch.full((rows, width), torch.nan, dtype=dtype, device=device)
        for launch in linear_launches(
            x, weight, middle, lora_b, output, segments, offsets, programs
        ):
            launch()
        return output

    output = made(5)
    close(output, reference, dtype, "linear", rows, depth, rank)
    close(output - product, reference - product, torch.bfloat16, "linear's LoRA", rows, rank)
    assert torch.equal(output, made(3)), "linear is not deterministic"
    assert torch.equal(output, made(5, captured)), "linear of a graph's buffer differs"
    nobody = replace(batch, num_segs=0)
    close(made(5, nobody), product, dtype, "linear without LoRA", rows, depth)
    lora_b[4, width // 2, 0] = torch.inf  # is of nobody else's concern
    broken = owners == 4
    assert torch.equal(made(5)[~broken], output[~broken]), "an adapter reaches others' rows"
    assert made(5)[broken].isnan().all(), "a broken adapter looks sound"


def scattered(dtype, device, schedule):
    """Adapters change from segment to segment, more often than there are programs for that."""
    generator = torch.Generator().manual_seed(1)
    segments, buffer = 37, 50
    adapters = torch.randint(0, 3, (segments,), generator=generator)
    ends = torch.randint(0, 17, (segments,), generator=generator).cumsum(0)
    rows, surplus = int(ends[-1]), buffer - segments
    batch = Batch(
        seg_indptr=torch.cat([torch.zeros(1), ends, ends[-1:].expand(surplus)]).int().to(device),
        weight_indices=torch.cat([adapters, torch.zeros(surplus)]).int().to(device),
        lora_ranks=torch.tensor([16, 8, 7]).int().to(device),
        scalings=torch.tensor([1.0, 0.5, 2.0]).to(device),
        permutation=torch.randperm(rows, generator=generator).int().to(device),
        num_segs=segments,
        chunk_size=16,
    )

    def fresh(*shape):
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    config, schedule = {"BLOCK_N": 16, "BLOCK_K": 16}, Schedule(**schedule)
    x, weights = fresh(rows, 48), fresh(3, 32, 48)
    output = torch.full((rows, 32), torch.nan, dtype=dtype, device=device)
    shrink_launch(x, weights, output, batch, 2, config, schedule=schedule)()
    reference = shrink_reference(x, weights, batch, 2)
    owed = ~reference.isnan()
    close(output[owed], reference[owed], dtype, "scattered shrink")
    x, weights, output = fresh(rows, 32), fresh(3, 48, 16), fresh(rows, 48)
    boundaries = torch.tensor([0, 16, 48], dtype=torch.int64, device=device)
    reference = expand_reference(x, weights, batch, boundaries, output)
    expand_launch(x, weights, output, batch, boundaries, config, schedule=schedule)()
    close(output, reference, dtype, "scattered expand")


def kinds(dtype, device):
    """One shape with outputs of several strides and boundaries of both dtypes, in turns."""
    generator = torch.Generator().manual_seed(2)
    owners, ranks = [0] * 40 + [1] * 9, [16, 16]
    batch = make_batch(owners, ranks=ranks, scalings=[0.5, 2.0], chunk_size=16, device=device)

    def fresh(*shape):
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    x, weights = fresh(len(owners), 32), fresh(2, 48, 16)
    for stride in (48, 57, 64, 48, 57):
        for index in (torch.int64, torch.int32, torch.int64):
            output = fresh(len(owners), stride)
            boundaries = torch.tensor([0, 16, 48], dtype=index, device=device)
            reference = expand_reference(x, weights, batch, boundaries, output)
            config = {"BLOCK_N": 16, "BLOCK_K": 16}
            expand_launch(x, weights, output, batch, boundaries, config)()
            close(output, reference, dtype, "kinds", stride, index)


@triton.jit
def _inner_runs(weight_indices, found, num_segs, GROUP: tl.constexpr):
    place = tl.program_id(0)
    segment, runs = inner_run(weight_indices, num_segs, place, GROUP)
    tl.store(found + 2 * place, segment)
    tl.store(found + 2 * place + 1, runs)


def inner_runs(device):
    """Where they begin, in more segments than are looked at at once."""
    segments, group = 2100, 4
    adapters = [(i // 7) % 5 for i in range(segments)]
    begins = [i for i in range(1, segments) if i % group and adapters[i] != adapters[i - 1]]
    places = len(begins) + 2
    found = torch.zeros(2 * places, dtype=torch.int32, device=device)
    indices = torch.tensor(adapters, dtype=torch.int32, device=device)
    _inner_runs[(places,)](indices, found, segments, group)
    starts, runs = found.cpu().view(places, 2).T.tolist()
    assert starts == [*begins, segments, segments]
    assert set(runs) == {len(begins)}


def fetched_places(launch, tensor):
    """The elements of a tensor, or beyond it, at which lines begin that a launch fetches ahead."""
    fetched = []
    fetch, prefetch._fetch = prefetch._fetch, lambda lines: fetched.append(lines.handle.data.copy())
    launch()
    prefetch._fetch = fetch
    first, size = tensor.data_ptr(), tensor.element_size()
    return {(int(line) - first) // size for lines in fetched for line in lines.ravel()}


def fetches(dtype, parts, width):
    """What shrink fetches ahead of the last adapter lies within the weights, and is all of them."""
    batch = make_batch([2] * 9, ranks=[20] * 3, scalings=[1.0] * 3, chunk_size=16)
    low = (("BLOCK_N", 8), ("BLOCK_K", 128), ("AHEAD", 1))
    x, weights = torch.zeros(9, width, dtype=dtype), torch.zeros(3, 60, width, dtype=dtype)
    schedule = Schedule(config=low, spread=True, parts=parts)
    config = {"BLOCK_N": 16, "BLOCK_K": 16}
    launch = shrink_launch(x, weights, x.new_empty(9, 60), batch, 3, config, schedule=schedule)
    places = fetched_places(launch, weights)
    own = 2 * 60 * width
    assert min(places) >= own
    assert max(places) < weights.numel()
    rows = {place // width for place in places}
    assert rows == set(range(120, 180))
    for row in rows:
        inside = {place % width for place in places if place // width == row}
        assert inside >= set(range(0, width, 64))


def output_fetches(dtype, chunk_size, boundaries, schedule):
    """What expand fetches ahead lies within the output, and is all of it that has an adapter."""
    ranks = [16, 8, 0, 7]
    owners = [0] * 3 * chunk_size + [3, 1, 2] * chunk_size
    batch = make_batch(owners, ranks=ranks, scalings=[1.0] * 4, chunk_size=chunk_size)
    rows, slices, width = len(owners), len(boundaries) - 1, boundaries[-1]
    x, weights = torch.ones(rows, slices * 16, dtype=dtype), torch.ones(4, width, 16, dtype=dtype)
    output = torch.zeros(rows, width + 8, dtype=dtype)
    config, offsets = {"BLOCK_N": 128, "BLOCK_K": 16, "PREFETCH": True}, torch.tensor(boundaries)
    schedule = Schedule(**schedule)
    launch = expand_launch(x, weights, output, batch, offsets, config, schedule=schedule)
    places = {divmod(place, width + 8) for place in fetched_places(launch, output)}
    assert {row for row, _ in places} == {row for row in range(rows) if ranks[owners[row]]}
    assert max(column for _, column in places) < width
    assert places >= {(row, column) for row, _ in places for column in range(0, width, 64)}


def nothing(dtype, device):
    """A batch without a segment is launched, and does nothing."""
    batch = make_batch([], ranks=[16, 0], scalings=[1.0, 1.0], chunk_size=16, device=device)
    config = {"BLOCK_N": 16, "BLOCK_K": 16}
    x, weights = (
        torch.zeros(shape, dtype=dtype, device=device) for shape in ((0, 16), (2, 16, 16))
    )
    shrink_launch(x, weights, x.clone(), batch, 1, config)()
    boundaries = torch.tensor([0, 16], dtype=torch.int64, device=device)
    expand_launch(x, weights, x.clone(), batch, boundaries, config)()


main(*sys.argv[1:])
