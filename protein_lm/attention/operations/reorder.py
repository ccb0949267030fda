"""Rows put into another order and back, with a backward pass that reads instead of adding up."""

from typing import Any

import torch
from torch import Tensor


def reorder(rows: Tensor, source: Tensor | None, slots: Tensor | None, counted: Tensor | None = None) -> Tensor:
    """Put row `source[s]` of (G, T, ·) into each slot s of (G, S, ·); with None the rows stay as they are.

    Args:
        rows: (G, T, ·).
        source: (S,) or (G, S) row of each slot; any row for slots in which no row counts.
        slots: (T,) or (G, T) slot in which each row counts; its gradient is read from there.
        counted: (T, 1) whether a row counts anywhere; others get no gradient. None: all do.
    """
    return rows if source is None else _Reorder.apply(rows, source, slots, counted)


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, slots: Tensor, counted: Tensor | None) -> Tensor:
        ctx.save_for_backward(slots, counted)
        return _take(rows, source)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        slots, counted = ctx.saved_tensors
        gradient = _take(gradients[0], slots)
        return gradient if counted is None else gradient.mul_(counted), None, None, None


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """Take the rows of (G, T, ·) with these numbers, (S,) or (G, S)."""
    if index.ndim == 1:
        return rows.index_select(1, index)
    # All groups as one list of rows: faster than `gather` with an index for each number.
    starts = torch.arange(rows.shape[0], device=rows.device)[:, None] * rows.shape[1]
    flat = rows.reshape(-1, *rows.shape[2:]).index_select(0, (index + starts).flatten())
    return flat.view(*index.shape, *rows.shape[2:])
