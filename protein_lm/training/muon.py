"""Muon: momentum, made orthogonal, as the update of a weight matrix."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from protein_lm.training.sharded import own_shard, whole

_COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the polynomial that each iteration applies to the singular values."""
_NUM_ITERATIONS = 5
_SMALLEST_NORM = 1e-7
_MOST_NUMBERS = 1 << 25
"""Of matrices that are made orthogonal in one batch, so that it stays small beside the weights."""


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, for matrices that a process holds whole or in shards.

    Momentum is kept as the matrices are; updates are those of whole matrices. Matrices of one shape are made orthogonal
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
            matrices: two axes each.
            learning_rate: as AdamW's.
            weight_decay: decoupled; times the learning rate.
            momentum: decay rate.
            dtype: of the products of the Newton-Schulz iteration.
        """
        super().__init__(matrices, {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over all matrices that have a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike.setdefault(tuple(matrix.shape), []).append(matrix)
            for shape, matrices in alike.items():
                most = max(1, _MOST_NUMBERS // (shape[0] * shape[1]))
                for first in range(0, len(matrices), most):
                    self._step_of(matrices[first : first + most], group)
        return loss

    def _step_of(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Of matrices of one shape."""
        rate = group["lr"]
        directions = torch.stack([whole(self._direction(matrix, group["momentum"])) for matrix in matrices])
        size = 0.2 * max(matrices[0].shape) ** 0.5  # the root mean square of AdamW's updates
        updates = orthogonal(directions, self.dtype).float() * (-rate * size)
        for matrix, update in zip(matrices, updates, strict=True):
            matrix.mul_(1 - rate * group["weight_decay"]).add_(own_shard(update, matrix))

    def _direction(self, matrix: Tensor, momentum: float) -> Tensor:
        """The gradient with its momentum, which goes on."""
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        return gradient.lerp(state["momentum_buffer"].lerp_(gradient, 1 - momentum), momentum)


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices (N, rows, columns) with their singular values brought near 1, by products in `dtype`."""
    first, second, third = _COEFFICIENTS
    found = matrices.to(dtype)
    is_tall = found.shape[1] > found.shape[2]
    if is_tall:
        found = found.mT
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=_SMALLEST_NORM)
    for _ in range(_NUM_ITERATIONS):
        gram = found @ found.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
        found = torch.baddbmm(found, polynomial, found, beta=first)
    return found.mT if is_tall else found
