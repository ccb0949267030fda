"""Muon: the update of a weight matrix is its momentum, made orthogonal."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from protein_lm.training.processes import own_shard, whole

_COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Coefficients of the polynomial that each Newton-Schulz iteration applies to the singular values."""
_NUM_ITERATIONS = 5
_SMALLEST_NORM = 1e-7
_MOST_NUMBERS = 1 << 25
"""Numbers in the matrices that are made orthogonal in one batch: few compared with the weights."""


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, for matrices that a process holds whole or in shards.

    Momentum is sharded like the matrices; updates are computed from whole ones. Matrices of one shape are made orthogonal
    together. Sources: Jordan et al. 2024; updates as large as AdamW's: Liu et al. 2025 (arXiv 2502.16982).
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Set up.

        Args:
            matrices: weights of two axes each.
            learning_rate: that of AdamW.
            weight_decay: decoupled; multiplied by the learning rate.
            momentum: decay rate.
            dtype: type of the products of the Newton-Schulz iteration.
        """
        super().__init__(matrices, {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(tuple(matrix.shape), []).append(matrix)
            for shape, matrices in by_shape.items():
                most = max(1, _MOST_NUMBERS // (shape[0] * shape[1]))
                for first in range(0, len(matrices), most):
                    self._update(matrices[first : first + most], group)

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices of one shape."""
        rate = group["lr"]
        directions = torch.stack([whole(self._direction(matrix, group["momentum"])) for matrix in matrices])
        size = 0.2 * max(matrices[0].shape) ** 0.5  # the root mean square of AdamW's updates
        updates = orthogonal(directions, self.dtype).float() * (-rate * size)
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.mul_(1 - rate * group["weight_decay"]).add_(own_shard(update, matrix))

    def _direction(self, matrix: Tensor, momentum: float) -> Tensor:
        """The gradient with its momentum, which is updated."""
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        return gradient.lerp(state["momentum_buffer"].lerp_(gradient, 1 - momentum), momentum)


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices (N, rows, columns) with their singular values brought near 1, by products in `dtype`."""
    first, second, third = _COEFFICIENTS
    result = matrices.to(dtype)
    is_tall = result.shape[1] > result.shape[2]
    if is_tall:
        result = result.mT  # (N, R, C) with R ≤ C, so that `gram` is small
    result = result / result.norm(dim=(1, 2), keepdim=True).clamp(min=_SMALLEST_NORM)
    for _ in range(_NUM_ITERATIONS):  # X becomes (a + b G + c G²) X with G = XXᵀ
        gram = result @ result.mT  # (N, R, R)
        polynomial = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
        result = torch.baddbmm(result, polynomial, result, beta=first)
    return result.mT if is_tall else result
