"""Rows that several processes share, each with a stretch of their tokens.

Linear attention needs the states Σ φ(k)ᵀ[v, 1] of other processes, M × (E + 1) numbers per head: those of earlier processes
in a causal model, else those of all. The gradients of states come back from later processes, or from all. A short convolution
needs the few tokens next to its stretch. Nothing that is sent depends on the length of a row.

Every process calls the same operations in the same order on its own stretch. Each has the gradients of weights from its
stretch alone; their sum over the processes is the gradient of the sum of all losses.
"""

from typing import Any

import torch
import torch.distributed
from torch import Tensor

from protein_lm.attention.packing import Packing, PackingPart

Group = torch.distributed.ProcessGroup


def spans(length: int, group: Group) -> list[slice]:
    """Split a row of `length` tokens into one span per process of a group, in order and of about one length.

    Raises:
        ValueError: there are fewer tokens than processes.
    """
    count = group.size()
    if length < count:
        raise ValueError(f"a row of {length} tokens cannot be split over {count} processes: each needs at least one")
    return [slice(length * number // count, length * (number + 1) // count) for number in range(count)]


def own_span(length: int, group: Group) -> slice:
    """Return the tokens of a row of `length` that this process holds."""
    return spans(length, group)[group.rank()]


class Part:
    """The stretch of a batch's rows that this process holds, and its exchange with the processes that hold the others."""

    def __init__(self, group: Group, length: int, packing: Packing | None = None) -> None:
        """Split rows of `length` tokens, or one packed row, over a group that all its processes enter.

        Raises:
            ValueError: there are fewer tokens than processes.
        """
        self.group, self.rank = group, group.rank()
        self.spans = spans(length, group)
        self.span = self.spans[self.rank]
        self.packing = PackingPart(packing, self.span) if packing is not None else None
        """The sequences, or parts of sequences, of this stretch of a packed row."""
        # The first and the last sequence that each process has tokens of.
        first = [0 if packing is None else packing.sequences[span.start] for span in self.spans]
        last = [0 if packing is None else packing.sequences[span.stop - 1] for span in self.spans]
        processes = range(len(self.spans))
        self._earlier = [p for p in processes if p < self.rank and last[p] == first[self.rank]]
        self._later = [p for p in processes if p > self.rank and first[p] == last[self.rank]]

    def from_earlier(self, last: Tensor) -> Tensor:
        """Sum the states that earlier processes have of the first sequence here; give `last`, that of the last one."""
        return self._gather(last)[self._earlier].sum(0)

    def from_later(self, first: Tensor) -> Tensor:
        """Sum the states that later processes have of the last sequence here; give `first`, that of the first one."""
        return self._gather(first)[self._later].sum(0)

    def from_both(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return `from_earlier(last)` and `from_later(first)`, with one exchange."""
        if self.packing is None:  # first and last are the same sequence for all
            firsts = lasts = self._gather(first)
        else:
            firsts, lasts = self._gather(torch.stack((first, last))).unbind(1)
        return lasts[self._earlier].sum(0), firsts[self._later].sum(0)

    def with_neighbours(self, hidden: Tensor, before: int, after: int) -> Tensor:
        """Put the tokens next to this stretch around it: (B, S, D) -> (B, before + S + after, D), zeros beyond the row.

        Gradients go back to the processes that hold these tokens.
        """
        if not before + after:
            return hidden
        length = hidden.shape[1]
        # The last `before` and the first `after` tokens of each stretch, (processes, B, before + after, D).
        ends = _padded(hidden[:, max(0, length - before) :], front=max(0, before - length))
        starts = _padded(hidden[:, :after], back=max(0, after - length))
        edges = torch.cat((ends, starts), dim=1)
        exact = edges.to(torch.promote_types(edges.dtype, torch.float32))
        gathered = _Gather.apply(exact, self.group).to(edges.dtype)
        # All edges in order: even a process that needs none of them passes a gradient on, since others wait for it.
        num_tokens = [span.stop - span.start for span in self.spans]
        all_ends = [edge[:, max(0, before - n) : before] for edge, n in zip(gathered, num_tokens, strict=True)]
        all_starts = [edge[:, before : before + min(after, n)] for edge, n in zip(gathered, num_tokens, strict=True)]
        # Tokens of earlier ends, and of starts up to the own one: there the neighbours begin.
        left = sum(ends.shape[1] for ends in all_ends[: self.rank])
        right = sum(starts.shape[1] for starts in all_starts[: self.rank + 1])
        earlier = _padded(torch.cat(all_ends, dim=1), front=before)[:, left : left + before]
        later = _padded(torch.cat(all_starts, dim=1), back=after)[:, right : right + after]
        return torch.cat((earlier, hidden, later), dim=1)

    def _gather(self, tensor: Tensor) -> Tensor:
        return _gathered(tensor, self.group)


def _padded(tokens: Tensor, front: int = 0, back: int = 0) -> Tensor:
    return torch.nn.functional.pad(tokens, (0, 0, front, back))


def _gathered(tensor: Tensor, group: Group) -> Tensor:
    """Gather the tensors of all N processes, (N, ...)."""
    gathered = tensor.new_empty(group.size(), *tensor.shape)
    torch.distributed.all_gather(list(gathered), tensor.contiguous(), group=group)
    return gathered


class _Gather(torch.autograd.Function):
    """`_gathered` with a gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _gathered(tensor, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        total = grads[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=ctx.group)
        return total[ctx.group.rank()], None
