"""Softmax attention of blocks of queries to chosen blocks of keys; all sparse kinds use it.

Tokens lie on a grid of N blocks of C slots. A plan says which K blocks of keys each block of queries sees, and a mask which
tokens of these. Scores and weights exist for a few blocks at a time, and are formed again in the backward pass, so memory is
that of the inputs. torch's FlexAttention does the same on a GPU, but has no backward pass on a CPU.

Letters: G groups (heads, or heads × rows), N blocks, C slots of a block, K blocks of keys per block of queries.

Source of the backward pass through a logarithm of sums: Dao et al. 2022 (arXiv 2205.14135), appendix B.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protein_lm.attention.backends import native_blocks
from protein_lm.attention.operations.linear_stream import product_dtype, without_autocast

SCORES_BYTES = 2**21
"""Scores that are formed at a time: they stay in the cache."""
HIDDEN = -1e30
"""Score of a hidden key: finite, so that a row without any key is finite too."""
LEAST_EXPONENT = -80.0
LEAST_WEIGHT = 1.9e-35
"""A little over exp(LEAST_EXPONENT)."""
SELF_SCORE = -1e5
"""Score of a token for itself where it should see itself only if it sees no other."""


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """The keys that blocks of queries see."""

    block: int
    """C, slots of a block."""
    key_blocks: Tensor
    """(N, K) numbers of blocks; any number where there are fewer than K, since the mask hides it."""
    hidden: Callable[[slice], Tensor]
    """Blocks of queries -> boolean (G or 1, blocks, C, K·C): True where a key is hidden."""
    avoid_self: bool = False
    """Whether a token sees itself only if it sees no other."""


def block_attention(query: Tensor, key: Tensor, value: Tensor, plan: BlockPlan, scale: float) -> tuple[Tensor, Tensor]:
    """Attention on a grid, with scores q·k times `scale`.

    Args:
        query: (G, N·C, E).
        key: (G, N·C, E).
        value: (G, N·C, any).
        plan: which keys are seen.
        scale: factor of the scores.

    Returns:
        Output (G, N·C, width of value) in the type of `value`, and the logarithm of the sum of exp(score) over the keys
        seen (G, N·C) in float32 or better. Both have gradients.
    """
    product = product_dtype(query)
    with without_autocast(query.device):
        # Whole blocks are gathered, which takes four times as long from rows that lie apart, as heads of a projection do.
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        if not plan.avoid_self and native_blocks.takes(query, value, product, plan.block):
            hidden = plan.hidden(slice(0, len(plan.key_blocks)))
            return native_blocks.native_block_attention(query, key, value, plan.key_blocks, hidden, scale)
        return _BlockAttention.apply(query, key, value, plan, scale, product)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, value, plan, scale, product):
        grid = _Grid(query, key, plan, scale)
        values = grid.by_block(value.to(product))
        output = torch.empty_like(value, memory_format=torch.contiguous_format)
        logsumexp = torch.empty(value.shape[:2], dtype=grid.dtype, device=value.device)
        for span in grid.spans():  # of n blocks of queries
            # Softmax of the scores (G·n, C, K·C), with its sums kept apart.
            scores = grid.scores(span)[0]
            largest = scores.amax(-1, keepdim=True)
            weights = _exponentials(scores.sub_(largest))
            sums = weights.sum(-1, keepdim=True)
            result = torch.bmm(weights.to(product), grid.gather(values, span)).to(grid.dtype) / sums
            grid.by_block(output)[:, span] = result.view(grid.groups, -1, plan.block, value.shape[-1]).to(value.dtype)
            grid.by_block(logsumexp)[:, span] = (largest + sums.log()).view(grid.groups, -1, plan.block)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.plan, ctx.scale, ctx.product = plan, scale, product
        return output, logsumexp

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        query, key, value, output, logsumexp = ctx.saved_tensors
        grad_output, grad_logsumexp = gradients
        plan, product = ctx.plan, ctx.product
        grid = _Grid(query, key, plan, ctx.scale)
        values, keys = grid.by_block(value.to(product)), grid.by_block(key.to(product))
        queries = grid.by_block(query.to(product))
        grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        grad_keys, grad_values = (torch.zeros_like(x, dtype=grid.dtype) for x in (keys, values))
        # d score = weight · (d weight - Σ d weight · weight + d logsumexp); the last two terms are `shift` (G, N·C).
        shift = grad_logsumexp - (grad_output.to(grid.dtype) * output.to(grid.dtype)).sum(-1)
        for span in grid.spans():
            # The weights again (G·n, C, K·C), out of the saved logarithms of their sums.
            scores, constant = grid.scores(span)
            weights = _exponentials(scores.sub_(grid.rows(logsumexp[..., None], span)))
            grads = grid.rows(grad_output.to(product), span)
            index = plan.key_blocks[span].flatten()
            grid.scatter(grad_values, index, torch.bmm(weights.to(product).mT, grads))
            # Gradients of scores (G·n, C, K·C), then of queries (G·n, C, E) and of the keys they saw (G·n, K·C, E).
            grad_scores = torch.bmm(grads, grid.gather(values, span).mT).to(grid.dtype)
            grad_scores = grad_scores.add_(grid.rows(shift[..., None], span)).mul_(weights).mul_(ctx.scale)
            if constant is not None:
                grad_scores.masked_fill_(constant, 0)
            grad_scores = grad_scores.to(product)
            of_query = torch.bmm(grad_scores, grid.gather(keys, span)).view(grid.groups, -1, plan.block, key.shape[-1])
            grid.by_block(grad_query)[:, span] = of_query.to(query.dtype)
            grid.scatter(
                grad_keys, index, torch.bmm(grad_scores.mT, queries[:, span].reshape(-1, plan.block, key.shape[-1]))
            )
        return (
            grad_query,
            grad_keys.view(key.shape).to(key.dtype),
            grad_values.view(value.shape).to(value.dtype),
            *[None] * 3,
        )


def _exponentials(exponents: Tensor) -> Tensor:
    """Take exponentials in place, of numbers up to 0.

    Below -80 they are 0: vector units take ten times as long over denormal results.
    """
    weights = exponents.clamp_min_(LEAST_EXPONENT).exp_()
    return torch.threshold_(weights, LEAST_WEIGHT, 0.0)


class _Grid:
    """Queries and keys of one call, span of blocks by span."""

    def __init__(self, query: Tensor, key: Tensor, plan: BlockPlan, scale: float) -> None:
        self.plan = plan
        self.groups = query.shape[0]
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self._queries, self._keys = self.by_block(query.to(self.dtype) * scale), self.by_block(key.to(self.dtype))

    def by_block(self, rows: Tensor) -> Tensor:
        """View (G, N·C, ...) as (G, N, C, ...)."""
        return rows.view(self.groups, -1, self.plan.block, *rows.shape[2:])

    def rows(self, rows: Tensor, span: slice) -> Tensor:
        """Take the blocks `span` of (G, N·C, ·) as (G·blocks, C, ·)."""
        return self.by_block(rows)[:, span].reshape(-1, self.plan.block, rows.shape[-1])

    def spans(self) -> list[slice]:
        """Group the blocks of queries that are worked on together."""
        num_blocks, num_keys = self.plan.key_blocks.shape
        size = self.groups * self.plan.block**2 * num_keys * self.dtype.itemsize
        step = max(1, SCORES_BYTES // size)
        return [slice(start, min(start + step, num_blocks)) for start in range(0, num_blocks, step)]

    def gather(self, blocks: Tensor, span: slice) -> Tensor:
        """Gather the blocks of keys (or values) that a span of queries sees: (G, N, C, ·) -> (G·blocks, K·C, ·)."""
        index = self.plan.key_blocks[span]
        return blocks.index_select(1, index.flatten()).view(self.groups * len(index), -1, blocks.shape[-1])

    def scatter(self, target: Tensor, index: Tensor, parts: Tensor) -> None:
        """Add (G·blocks, K·C, ·) to the blocks of `target` (G, N, C, ·) that `gather` reads."""
        target.index_add_(1, index, parts.view(self.groups, -1, *target.shape[2:]).to(target.dtype))

    def scores(self, span: slice) -> tuple[Tensor, Tensor | None]:
        """Form scores (G·blocks, C, K·C) in the computing type, and tell where they are constants, if anywhere."""
        queries = self._queries[:, span].reshape(-1, *self._queries.shape[2:])
        scores = torch.bmm(queries, self.gather(self._keys, span).mT)
        by_group = scores.view(self.groups, -1, *scores.shape[1:])
        own = self._own_slots(span) if self.plan.avoid_self else None
        if own is not None:
            by_group.masked_fill_(own, SELF_SCORE)
        by_group.masked_fill_(self.plan.hidden(span), HIDDEN)
        return scores, None if own is None else own.expand(self.groups, -1, -1, -1).reshape(scores.shape)

    def _own_slots(self, span: slice) -> Tensor:
        """Tell where a key is the query itself: boolean (blocks, C, K·C)."""
        index, block = self.plan.key_blocks[span], self.plan.block
        numbers = torch.arange(span.start, span.stop, device=index.device)
        same_block = (index == numbers[:, None])[:, None, :, None]  # (blocks, 1, K, 1)
        same_slot = torch.eye(block, dtype=torch.bool, device=index.device)[:, None, :]  # (C, 1, C)
        return (same_block & same_slot).flatten(2)
