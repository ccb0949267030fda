"""cosFormer: relu features weighted by position, so that near keys count more: the kernel relu(q)·relu(k) cos(π(i - j) / 2M).

The cosine of a difference is a sum of products, so queries and keys of twice the width, weighted before the operation,
give this kernel with features that are the rows themselves. epsilon is ours: without it a row of negative channels has no
weights at all.

Source: Qin et al. 2022 (arXiv 2202.08791), section 3.
"""

import math

import torch
from torch import Tensor

from protein_lm.attention.feature_maps.performer import FeatureMap

EPSILON = 1e-3


class WeightedRows(FeatureMap):
    """The map of rows that `weighted_by_position` made: they are the features."""

    has_gradients = True

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.num_features = 2 * head_width

    def query_features(self, query: Tensor) -> Tensor:
        """See `FeatureMap`."""
        return query

    def key_features(self, key: Tensor) -> Tensor:
        """See `FeatureMap`."""
        return key

    def query_gradient(self, query: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
        """See `FeatureMap`."""
        return gradient

    def key_gradient(self, key: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
        """See `FeatureMap`."""
        return gradient


def weighted_by_position(rows: Tensor, positions: Tensor, longest: int) -> Tensor:
    """(relu(x) + epsilon) times [cos, sin] of π position / 2 M: (B, H, L, E) -> (B, H, L, 2 E), float32 or better.

    Args:
        rows: queries or keys (B, H, L, E).
        positions: (L,) of each in its sequence, or (B, 1, L) where rows differ.
        longest: M, tokens of the longest sequence.

    Raises:
        ValueError: a position beyond the longest sequence.
    """
    if positions.device.type == "cpu" and int(positions.max()) >= longest:
        raise ValueError(f"{int(positions.max()) + 1:,} tokens; this operation is for {longest:,}")
    dtype = torch.promote_types(rows.dtype, torch.float32)
    angles = (positions.to(dtype) * (math.pi / (2 * longest))).unsqueeze(-1).to(rows.device)
    positive = torch.relu(rows.to(dtype)) + EPSILON
    return torch.cat((positive * angles.cos(), positive * angles.sin()), dim=-1)
