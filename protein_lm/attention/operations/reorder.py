"""Rows put into another order and back, with a backward pass that reads instead of adding up."""

from typing import Any

import torch
from torch import Tensor


def reorder(rows: Tensor, source: Tensor | None, places: Tensor | None, counted: Tensor | None = None) -> Tensor:
    """Rows (G, P, ·) with row `source[p]` of (G, T, ·) in each place p; None leaves them as they are.

    Args:
        rows: (G, T, ·).
        source: (P,) or (G, P) row of each place; places that no row is counted in may hold any.
        places: (T,) or (G, T) the place in which each row is counted: gradients are read from there alone.
        counted: (T, 1) whether a row is counted anywhere; others get no gradient. None: all are.
    """
    return rows if source is None else _Reorder.apply(rows, source, places, counted)


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, places: Tensor, counted: Tensor | None) -> Tensor:
        ctx.save_for_backward(places, counted)
        return _take(rows, source)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        places, counted = ctx.saved_tensors
        gradient = _take(gradients[0], places)
        return gradient if counted is None else gradient.mul_(counted), None, None, None


def _take(rows: Tensor, index: Tensor) -> Tensor:
    if index.ndim == 1:
        return rows.index_select(1, index)
    starts = torch.arange(rows.shape[0], device=rows.device)[:, None] * rows.shape[1]
    flat = rows.reshape(-1, *rows.shape[2:]).index_select(0, (index + starts).flatten())
    return flat.view(*index.shape, *rows.shape[2:])
