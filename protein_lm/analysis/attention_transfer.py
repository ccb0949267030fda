"""A trainable kernel fitted to the attention of another layer, by gradient descent on queries, keys and values.

Source: Zhang et al. 2024 (Hedgehog, arXiv 2402.04347), section 4.2: cross-entropy between the rows of the two matrices.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from protein_lm.attention.operations import AttentionOperation
from protein_lm.model.scales import QueryKeyScales

LEARNING_RATE = 0.01
LEAST_WEIGHT = 1e-12


class Example(NamedTuple):
    """What the attention of a layer receives for one sequence, and what it makes of it."""

    query: Tensor
    """(1, H, L, E), positions applied."""
    key: Tensor
    """(1, H, L, E), positions applied."""
    value: Tensor
    """(1, H, L, E)."""
    teacher: AttentionOperation

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """The attention (1, H, L, L) to imitate."""
        return self.teacher.matrix(self.query, self.key)


def fit(
    operation: AttentionOperation,
    scales: QueryKeyScales | None,
    examples: Sequence[Example],
    *,
    num_steps: int,
    seed: int,
) -> None:
    """Train the parameters of an operation, and the factors of its queries and keys; one example per step, in a seeded order.

    Weights that may be negative have no cross-entropy: there the squared error of the output is what falls.
    """
    parameters = [*operation.parameters(), *(scales.parameters() if scales is not None else ())]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(num_steps):
        order = order or torch.randperm(len(examples), generator=generator).tolist()
        example = examples[order.pop()]
        query, key = (example.query, example.key) if scales is None else scales(example.query, example.key)
        loss = _loss(operation, query, key, example)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()


def _loss(operation: AttentionOperation, query: Tensor, key: Tensor, example: Example) -> Tensor:
    wanted = example.matrix()
    if operation.weights_are_positive:
        found = operation.matrix(query, key)
        return -(wanted * found.clamp_min(LEAST_WEIGHT).log()).sum(-1).mean()
    exact = wanted @ example.value
    return (operation(query, key, example.value) - exact).square().sum() / exact.square().sum()
