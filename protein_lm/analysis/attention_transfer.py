"""Fits one kind of attention to another by gradient descent, on queries, keys and values of a model.

Source: Zhang et al. 2024 (LoLCATs, arXiv 2410.10254), section 3.2: the squared error of the outputs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from protein_lm.attention.kinds.interface import AttentionOperation
from protein_lm.model.conversion import QueryKeyScales

LEARNING_RATE = 0.03


class Example(NamedTuple):
    """Inputs of the attention of a layer for one sequence."""

    query: Tensor
    """(1, H, L, E), positions applied."""
    key: Tensor
    """(1, H, L, E), positions applied."""
    value: Tensor
    """(1, H, L, E)."""
    teacher: AttentionOperation
    """The attention that is imitated."""


def fit(
    operation: AttentionOperation,
    scales: QueryKeyScales | None,
    examples: Sequence[Example],
    *,
    num_steps: int,
    seed: int,
) -> None:
    """Train the parameters of an operation and the scales of its queries and keys; one example per step, in seeded order."""
    parameters = [*operation.parameters(), *(scales.parameters() if scales is not None else ())]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(num_steps):
        order = order or torch.randperm(len(examples), generator=generator).tolist()
        query, key, value, teacher = examples[order.pop()]
        with torch.no_grad():
            wanted = teacher(query, key, value)
        found = operation(*((query, key) if scales is None else scales(query, key)), value)
        loss = (found - wanted).square().sum() / wanted.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
