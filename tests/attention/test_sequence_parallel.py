"""Rows that several processes hold together: equal to one process, whatever the kind, the rows and the pieces."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed

from protein_lm.attention import sequence_parallel as parallel
from protein_lm.attention.kinds.table import ATTENTION_KINDS, kinds_that_can_be_split
from protein_lm.attention.operations import linear
from protein_lm.attention.packing import Packing
from protein_lm.attention.rows import Rows
from tests.attention.test_contract import FORMS, HEAD_WIDTH, HEADS, LENGTHS, NUM_FEATURES, SIGNED, STREAMED, build, draw

SPLIT_FORMS = [form for form in FORMS if form[0] in kinds_that_can_be_split()]
ROWS = ["whole", "padded", "packed"]
FORMS_AND_ROWS = [(*form, rows) for form in SPLIT_FORMS for rows in ROWS if form[0] in STREAMED or rows == "whole"]
LENGTH = sum(LENGTHS)
CASES = {True: [(2, 2**21), (2, 20_000), (4, 2**21), (4, 5_000)], False: [(4, 2**21)]}
"""Number of processes and size of pieces in bytes, for kinds in `STREAMED` and others."""


def rows_of(name: str) -> tuple[Rows, int]:
    """Rows of each sort, and how many of them."""
    if name == "packed":
        return Rows(packing=Packing.of_lengths(LENGTHS)), 1
    if name == "padded":  # one row ends in the first of four parts
        return Rows(torch.arange(LENGTH) < torch.tensor([[LENGTH], [30]])), 2
    return Rows(), 2


def results_of(operation, tensors, rows: Rows, span: slice) -> list:
    """Output, gradients of inputs and of parameters for a part of the rows, as arrays."""
    tensors = [tensor[:, :, span].clone().requires_grad_() for tensor in tensors]
    output = operation(*tensors, rows)
    weight = torch.randn(1, 1, LENGTH, HEAD_WIDTH, generator=torch.Generator().manual_seed(1))[:, :, span]
    if rows.valid_mask is not None:
        weight = weight * rows.valid_mask[:, None, :, None]
    gradients = torch.autograd.grad((output * weight).sum(), [*tensors, *operation.parameters()])
    return [tensor.detach().numpy() for tensor in (output * (weight != 0), *gradients)]


def of_part(groups, kind: str, causal: bool, name: str) -> list:
    """Results of this process's part, by two and by four processes, in large pieces and in small ones."""
    operation = build(kind, causal)
    rows, batch = rows_of(name)
    tensors = draw(operation, LENGTH, batch=batch)
    results = []
    for size, segment_bytes in CASES[kind in STREAMED]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linear, "SEGMENT_BYTES", segment_bytes)
            own = rows.split((batch, LENGTH), groups[size])
            results.append(results_of(operation, tensors, own, own.part.span))
    return results


@pytest.mark.parametrize(("kind", "causal", "name"), FORMS_AND_ROWS)
def test_equals_one_process(processes, kind, causal, name) -> None:
    operation = build(kind, causal)
    rows, batch = rows_of(name)
    whole = [
        torch.from_numpy(each)
        for each in results_of(operation, draw(operation, LENGTH, batch=batch), rows, slice(None))
    ]
    tolerance = 1e-9 if kind in SIGNED else 1e-5
    by_case = zip(*processes.run(of_part, kind, causal, name), strict=True)
    for case, parts in zip(CASES[kind in STREAMED], by_case, strict=True):
        for number, (expected, *own) in enumerate(zip(whole, *parts[: case[0]], strict=True)):
            own = [torch.from_numpy(each) for each in own]
            together = torch.cat(own, dim=2) if number < 4 else torch.stack(own).sum(0)
            assert (together - expected).abs().max() <= tolerance * expected.abs().max(), (case, number)


class Counting:
    """Counts the bytes that each process sends."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.originals = torch.distributed.all_gather, torch.distributed.all_reduce

    def __enter__(self):
        gather, reduce = self.originals

        def counted_gather(output, tensor, **options):
            self.sent.append(tensor.numel() * tensor.itemsize)
            return gather(output, tensor, **options)

        def counted_reduce(tensor, **options):
            self.sent.append(tensor.numel() * tensor.itemsize)
            return reduce(tensor, **options)

        torch.distributed.all_gather, torch.distributed.all_reduce = counted_gather, counted_reduce
        return self.sent

    def __exit__(self, *_) -> None:
        torch.distributed.all_gather, torch.distributed.all_reduce = self.originals


def bytes_sent(groups, causal: bool, length: int, dtype: torch.dtype) -> list[int]:
    operation = build("performer-relu", causal)
    tensors = [tensor[:, :, : length // 4].requires_grad_() for tensor in draw(operation, length, dtype)]
    with Counting() as sent:
        operation(*tensors, Rows().split((2, length), groups[4])).sum().backward()
    return sent


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_sent_does_not_depend_on_the_length(processes, causal, dtype) -> None:
    state = 2 * HEADS * NUM_FEATURES * (HEAD_WIDTH + 1) * 4  # float32 whatever the products are
    for length in (16, 8192):
        assert processes.run(bytes_sent, causal, length, dtype) == [[state, state]] * 4


def of_neighbours(groups, length: int, before: int, after: int) -> list:
    part = parallel.Part(groups[4], length)
    own = torch.arange(1.0, length + 1).view(1, length, 1)[:, part.span].requires_grad_()
    extended = part.with_neighbours(own, before, after)
    # The gradient of a token is the sum of what all who see it weigh it with: 1, 10, 100 or 1000 by process.
    (gradient,) = torch.autograd.grad(extended.sum() * 10**part.rank, own)
    return [extended.flatten().tolist(), gradient.flatten().tolist()]


@pytest.mark.parametrize(("length", "before", "after"), [(12, 2, 0), (12, 1, 2), (6, 3, 3), (4, 0, 2)])
def test_neighbours_come_from_as_many_processes_as_hold_them(processes, length, before, after) -> None:
    row = [0.0] * before + list(range(1, length + 1)) + [0.0] * after
    expected_gradient = [0.0] * len(row)
    results = processes.run(of_neighbours, length, before, after)
    for rank, (extended, _) in enumerate(results):
        seen = slice(length * rank // 4, length * (rank + 1) // 4 + before + after)
        assert extended == row[seen]
        for place in range(seen.start, seen.stop):
            expected_gradient[place] += 10**rank
    gradient = [each for _, own in results for each in own]
    assert gradient == expected_gradient[before : before + length]


def group_of(size: int, rank: int = 0):
    return SimpleNamespace(size=lambda: size, rank=lambda: rank)


def test_rows_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(ValueError, match="a row of 3 tokens cannot be split over 4 processes: each needs at least one"):
        parallel.own_span(3, group_of(4))
    with pytest.raises(ValueError, match="row 1 of valid_mask has no real token"):
        Rows(torch.tensor([[True] * 8, [False] * 8])).split((2, 8), group_of(2))
    with pytest.raises(ValueError, match=r"the packing of 9 tokens fits one row without mask, not rows \(1, 8\)"):
        Rows(packing=Packing.of_lengths([9])).split((1, 8), group_of(2))


@pytest.mark.parametrize("kind", sorted(set(ATTENTION_KINDS) - set(kinds_that_can_be_split())))
def test_kinds_that_are_not_linear_are_refused(kind) -> None:
    operation = build(kind, causal=False)
    tensors = [tensor[:, :, :5] for tensor in draw(operation, 10)]
    with pytest.raises(
        ValueError, match="this attention needs whole rows; only linear kinds of attention can be split"
    ):
        operation(*tensors, Rows().split((2, 10), group_of(2)))


def test_the_matrix_of_a_part_is_refused() -> None:
    operation = build("cosformer", causal=False)
    query, key, _ = draw(operation, 5)
    with pytest.raises(ValueError, match="this attention needs whole rows"):
        operation.matrix(query, key, Rows().split((2, 10), group_of(2)))
