"""The kernels against the reference, in a process of its own: TRITON_INTERPRET is read on import.

Prints nothing; exits with an assertion for the first case that differs.
"""

import sys

import torch

from lora_autotune.kernels.batch import make_batch
from lora_autotune.kernels.launch import expand_launch, shrink_launch
from lora_autotune.kernels.reference import expand_reference, shrink_reference

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def check(dtype, device, chunk_size, rank, ranks, block_n, block_k, offsets, walk, wider):
    """One case of each kernel."""
    generator = torch.Generator().manual_seed(chunk_size * 1000 + rank)
    rows, width, slices = 2 * chunk_size + 21, 72, len(offsets) - 1
    batch = make_batch(
        torch.randint(0, len(ranks), (rows,), generator=generator),
        ranks=ranks,
        scalings=[0.5, 1.0, 2.0, 1.5][: len(ranks)],
        chunk_size=chunk_size,
        grid_segments=12,
        device=device,
    )

    def fresh(*shape):
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    config = {"BLOCK_N": block_n, "BLOCK_K": block_k}
    x, weights = fresh(rows, width), fresh(len(ranks), slices * rank, width)
    output = torch.full((rows, slices * rank), torch.nan, dtype=dtype, device=device)
    shrink_launch(x, weights, output, batch, slices, config)()
    reference = shrink_reference(x, weights, batch, slices)
    owed = ~reference.isnan()
    assert owed.any()
    assert output[~owed.any(dim=1)].isnan().all(), "shrink wrote a row without an adapter"
    close(output[owed], reference[owed], dtype, "shrink", chunk_size, rank, block_n)

    x, weights = fresh(rows, slices * rank), fresh(len(ranks), offsets[-1], rank)
    output = fresh(rows, offsets[-1] + wider)
    boundaries = torch.tensor(offsets, dtype=torch.int64, device=device)
    reference = expand_reference(x, weights, batch, boundaries, output)
    expand_launch(x, weights, output, batch, boundaries, config, walk=walk)()
    close(output, reference, dtype, "expand", chunk_size, rank, block_n)


def close(output, reference, dtype, *case):
    error = (output.double() - reference).norm() / reference.norm()
    assert error <= TOLERANCE[dtype], (*case, float(error))


def main(device, dtype_name):
    dtype = getattr(torch, dtype_name)
    unequal = [0, 40, 56, 72]
    check(dtype, device, 16, 16, [16, 0, 7, 16], 16, 16, unequal, 1, 0)
    check(dtype, device, 16, 64, [64, 32, 48, 0], 32, 32, unequal, 4, 16)
    check(dtype, device, 32, 20, [20, 5, 0, 16], 64, 32, unequal, 2, 8)
    check(dtype, device, 16, 32, [32, 16, 0, 3], 16, 64, [0, 48], 2, 0)
    check(dtype, device, 64, 16, [16, 8, 0, 16], 128, 64, [0, 64, 128], 1, 0)


main(*sys.argv[1:])
