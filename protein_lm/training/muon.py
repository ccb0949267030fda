"""Muon for matrices that processes hold shards of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from protein_lm.training.sharded import own_shard, whole


class Muon(torch.optim.Muon):
    """torch's Muon; of matrices in shards it keeps the momentum in shards, and each process makes whole updates.

    So they are the updates of whole matrices. torch's own, made from shards, are not: partial sums are rounded to bfloat16.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, as torch's."""
        matrices = [(group, matrix) for group in self.param_groups for matrix in group["params"]]
        if not any(isinstance(matrix, DTensor) for _, matrix in matrices):
            return super().step(closure)
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group, matrix in matrices:
            if matrix.grad is not None:
                matrix_step = own_shard(_step_from_zero(whole(self._direction(group, matrix)), group), matrix)
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(matrix_step)
        return loss

    def _direction(self, group: dict[str, Any], matrix: Tensor) -> Tensor:
        """The gradient with its momentum, which goes on."""
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum


def _step_from_zero(direction: Tensor, group: dict[str, Any]) -> Tensor:
    """What torch's Muon adds to a matrix for a gradient without momentum."""
    matrix = nn.Parameter(torch.zeros_like(direction))
    matrix.grad = direction
    same = {name: group[name] for name in ("lr", "ns_coefficients", "ns_steps", "eps", "adjust_lr_fn")}
    torch.optim.Muon([matrix], momentum=0.0, nesterov=False, weight_decay=0.0, **same).step()
    return matrix.detach()
