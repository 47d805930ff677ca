"""The float64 reference against its definition, written as loops over rows and nothing else."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_autotune.kernels.batch import Batch, make_batch
from lora_autotune.kernels.reference import expand_reference, shrink_reference

QUICK = settings(deadline=None, derandomize=True, max_examples=60)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A batch, as plain numbers; its matrices follow from the seed.

    Attributes:
        owners: each row's adapter.
        ranks: each adapter's rank, at most R.
        scalings: each adapter's; the batch holds them as float32.
        R: the largest rank that the server allows.
        K: columns of shrink's x.
        widths: of the slices in the output.
        wider: columns of the output beyond the last slice.
        surplus: segments of the buffer that the batch doesn't use.
    """

    owners: list[int]
    ranks: list[int]
    scalings: list[float]
    R: int
    K: int
    widths: list[int]
    wider: int
    surplus: int
    chunk_size: int
    dtype: torch.dtype
    seed: int

    @property
    def S(self) -> int:
        return len(self.widths)

    @property
    def offsets(self) -> list[int]:
        return list(itertools.accumulate(self.widths, initial=0))

    def batch(self, **changes: int) -> Batch:
        case = replace(self, **changes)

        def made(grid_segments: int | None) -> Batch:
            return make_batch(
                case.owners,
                ranks=case.ranks,
                scalings=case.scalings,
                chunk_size=case.chunk_size,
                grid_segments=grid_segments,
            )

        return made(made(None).num_segs + case.surplus)

    def random(self, name: str, *shape: int) -> Tensor:
        """The matrix of a name, always the same one."""
        number = ("x", "other", "a", "b", "y").index(name)
        generator = torch.Generator().manual_seed(self.seed * 8 + number)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)

    def shrink(self, name: str = "x") -> tuple[Tensor, Tensor]:
        """x and the weights, NaN in the weights beyond each adapter's rank."""
        x = self.random(name, len(self.owners), self.K)
        weights = self.random("a", len(self.ranks), self.S * self.R, self.K)
        for adapter, rank in enumerate(self.ranks):
            weights[adapter, self.S * rank :] = torch.nan
        return x, weights

    def expand(self, name: str = "x") -> tuple[Tensor, Tensor, Tensor]:
        """x, the weights and the output, NaN in x and the weights beyond each row's rank."""
        x = self.random(name, len(self.owners), self.S * self.R)
        weights = self.random("b", len(self.ranks), self.offsets[-1], self.R)
        for adapter, rank in enumerate(self.ranks):
            weights[adapter, :, rank:] = torch.nan
        for row, owner in enumerate(self.owners):
            x[row, self.S * self.ranks[owner] :] = torch.nan
        return x, weights, self.random("y", len(self.owners), self.offsets[-1] + self.wider)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    R = draw(st.integers(1, 5))
    ranks = draw(st.lists(st.integers(0, R), min_size=1, max_size=4))
    return Case(
        owners=draw(st.lists(st.integers(0, len(ranks) - 1), max_size=24)),
        ranks=ranks,
        scalings=draw(
            st.lists(
                st.sampled_from([0.0, 0.5, 1.0, -2.0, 0.1]),
                min_size=len(ranks),
                max_size=len(ranks),
            )
        ),
        R=R,
        K=draw(st.integers(1, 7)),
        widths=draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)),
        wider=draw(st.sampled_from([0, 0, 1, 5])),
        surplus=draw(st.integers(0, 3)),
        chunk_size=draw(st.integers(1, 8)),
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 1000)),
    )


def shrink_by_rows(case: Case, x: Tensor, weights: Tensor) -> list[list[float]]:
    """What shrink owes: y[row, :S * r] = x[row] @ W[adapter, :S * r].T."""
    rows = []
    for owner, x_row in zip(case.owners, x.tolist(), strict=True):
        y = [float("nan")] * (case.S * case.R)
        for column in range(case.S * case.ranks[owner]):
            y[column] = sum(
                a * b for a, b in zip(x_row, weights[owner, column].tolist(), strict=True)
            )
        rows.append(y)
    return rows


def expand_by_rows(case: Case, x: Tensor, weights: Tensor, output: Tensor) -> list[list[float]]:
    """What expand owes: y[row, slice i] += scaling * x[row, i*r : (i+1)*r] @ W[slice i, :r].T."""
    rows = output.tolist()
    x_rows = x.tolist()
    for row, owner in enumerate(case.owners):
        rank = case.ranks[owner]
        scaling = torch.tensor(case.scalings[owner], dtype=torch.float32).item()
        for i in range(case.S if rank else 0):
            for column in range(case.offsets[i], case.offsets[i + 1]):
                total = 0.0
                for k in range(rank):
                    total += x_rows[row][i * rank + k] * weights[owner, column, k].item()
                rows[row][column] += scaling * total
    return rows


def assert_same(
    actual: Tensor, expected: Tensor | list[list[float]], *, shape: tuple[int, int]
) -> None:
    """Equal up to the order of a float64 sum, and NaN in the same places."""
    assert actual.dtype == torch.float64
    assert actual.shape == shape
    wanted = torch.as_tensor(expected, dtype=torch.float64).reshape(shape)
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10, equal_nan=True)


def shrunk(case: Case, batch: Batch | None = None, name: str = "x") -> Tensor:
    x, weights = case.shrink(name)
    return shrink_reference(x, weights, batch or case.batch(), case.S)


def expanded(case: Case, batch: Batch | None = None) -> Tensor:
    x, weights, output = case.expand()
    return expand_reference(x, weights, batch or case.batch(), torch.tensor(case.offsets), output)


@QUICK
@given(cases())
def test_shrink_is_its_definition(case: Case) -> None:
    x, weights = case.shrink()
    shape = (len(case.owners), case.S * case.R)
    assert_same(shrunk(case), shrink_by_rows(case, x, weights), shape=shape)


@QUICK
@given(cases())
def test_expand_is_its_definition(case: Case) -> None:
    x, weights, output = case.expand()
    expected = expand_by_rows(case, x, weights, output)
    assert_same(expanded(case), expected, shape=tuple(output.shape))


@QUICK
@given(cases())
def test_what_is_owed_is_a_number_and_nothing_else_is(case: Case) -> None:
    owed = ~shrunk(case).isnan()
    for row, owner in enumerate(case.owners):
        filled = case.S * case.ranks[owner]
        assert owed[row].tolist() == [True] * filled + [False] * (case.S * case.R - filled)
    assert not expanded(case).isnan().any()  # though x and the weights have NaN beyond the rank


@QUICK
@given(cases())
def test_expand_leaves_the_columns_beyond_and_rows_without_an_adapter_alone(case: Case) -> None:
    result, output = expanded(case), case.expand()[2].double()
    assert torch.equal(result[:, case.offsets[-1] :], output[:, case.offsets[-1] :])
    idle = [row for row, owner in enumerate(case.owners) if case.ranks[owner] == 0]
    assert torch.equal(result[idle], output[idle])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_arguments_are_not_changed(dtype: torch.dtype) -> None:
    batch = make_batch([0, 1, 0], ranks=[2, 1], scalings=[1.0, 2.0], chunk_size=16)
    x, weights, output = torch.ones(3, 2, dtype=dtype), torch.ones(2, 4, 2), torch.ones(3, 4)
    matrices = (x, weights.to(dtype), output.to(dtype))
    before = [matrix.clone() for matrix in matrices]
    shrink_reference(x, matrices[1], batch, 2)
    expand_reference(*matrices[:2], batch, torch.tensor([0, 4]), matrices[2])
    assert all(map(torch.equal, matrices, before))


@QUICK
@given(cases(), st.floats(-3, 3))
def test_both_are_linear_in_x(case: Case, factor: float) -> None:
    case = replace(case, dtype=torch.float64)
    (x, weights), (other, _) = case.shrink(), case.shrink("other")
    both = shrink_reference(factor * x + other, weights, case.batch(), case.S)
    parts = factor * shrunk(case) + shrunk(case, name="other")
    assert_same(both, parts, shape=tuple(parts.shape))

    (x, weights, output), (other, *_) = case.expand(), case.expand("other")
    offsets, zero = torch.tensor(case.offsets), torch.zeros_like(output)

    def product(of: Tensor, onto: Tensor) -> Tensor:
        return expand_reference(of, weights, case.batch(), offsets, onto.clone())

    parts = output + factor * product(x, zero) + product(other, zero)
    assert_same(product(factor * x + other, output), parts, shape=tuple(parts.shape))


@QUICK
@given(cases(), st.integers(1, 30), st.integers(0, 5))
def test_how_the_rows_are_cut_does_not_matter(case: Case, chunk_size: int, surplus: int) -> None:
    other = case.batch(chunk_size=chunk_size, surplus=surplus)
    first = shrunk(case)
    assert_same(shrunk(case, other), first, shape=tuple(first.shape))
    first = expanded(case)
    assert_same(expanded(case, other), first, shape=tuple(first.shape))


@QUICK
@given(cases(), st.integers(0, 10_000))
def test_empty_segments_and_the_order_of_segments_and_rows_do_not_matter(
    case: Case, seed: int
) -> None:
    batch = shuffled(case, random.Random(seed))
    first = shrunk(case)
    assert_same(shrunk(case, batch), first, shape=tuple(first.shape))
    first = expanded(case)
    assert_same(expanded(case, batch), first, shape=tuple(first.shape))


def shuffled(case: Case, chance: random.Random) -> Batch:
    """The case's rows in segments of any length, 0 included, in any order."""
    segments: list[tuple[int, list[int]]] = []
    for adapter in range(len(case.ranks)):
        rows = [row for row, owner in enumerate(case.owners) if owner == adapter]
        chance.shuffle(rows)
        while rows:
            length = chance.randint(0, len(rows))
            segments.append((adapter, rows[:length]))
            rows = rows[length:]
    chance.shuffle(segments)
    lengths = [len(rows) for _, rows in segments]
    total = len(case.owners)
    starts = [*itertools.accumulate(lengths, initial=0), *[total] * case.surplus]
    adapters = [adapter for adapter, _ in segments] + [0] * case.surplus
    return replace(
        case.batch(),
        seg_indptr=torch.tensor(starts, dtype=torch.int32),
        weight_indices=torch.tensor(adapters, dtype=torch.int32),
        permutation=torch.tensor([row for _, rows in segments for row in rows], dtype=torch.int32),
        num_segs=len(segments),
    )


@QUICK
@given(cases(), st.integers(0, 10_000))
def test_a_row_knows_only_itself(case: Case, seed: int) -> None:
    """The rows of a batch in another order give the same rows in that order."""
    order = list(range(len(case.owners)))
    random.Random(seed).shuffle(order)
    moved = replace(case, owners=[case.owners[row] for row in order])
    x, weights = case.shrink()
    result = shrink_reference(x[order], weights, moved.batch(), case.S)
    assert_same(result, shrunk(case)[order], shape=tuple(result.shape))
    x, weights, output = case.expand()
    offsets = torch.tensor(case.offsets)
    result = expand_reference(x[order], weights, moved.batch(), offsets, output[order])
    assert_same(result, expanded(case)[order], shape=tuple(result.shape))


@pytest.mark.parametrize("num_segs", [0, 1, 2])
def test_segments_past_the_count_do_nothing(num_segs: int) -> None:
    batch = make_batch([0, 1, 1], ranks=[1, 1], scalings=[1.0, 1.0], chunk_size=16)
    x, weights = torch.ones(3, 2), torch.ones(2, 1, 2)
    result = shrink_reference(x, weights, replace(batch, num_segs=num_segs), 1)
    rows = [0, 1, 3][num_segs]
    assert (~result.isnan()).flatten().tolist() == [True] * rows + [False] * (3 - rows)
    output = torch.zeros(3, 2)
    few = replace(batch, num_segs=num_segs)
    result = expand_reference(x[:, :1], weights.mT, few, torch.tensor([0, 2]), output)
    assert result.sum(dim=1).tolist() == [2.0] * rows + [0.0] * (3 - rows)
