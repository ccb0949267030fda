"""Rotary positions, applied to queries and keys before the feature map.

The rotation keeps norms, so the kernel of the rotated queries and keys is what a feature map estimates.
Source: Su et al. 2021 (arXiv 2104.09864); half-split layout and base 10000 as in ESM-2; <cls> is position 0.
"""

import torch
from torch import Tensor, nn


class RotaryPositions(nn.Module):
    """Turns pairs (i, i + E/2) of each head by position × base^(-2i/E)."""

    inverse_frequencies: Tensor

    def __init__(self, head_width: int, *, base: float = 10000.0) -> None:
        super().__init__()
        exponents = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
        self.register_buffer("inverse_frequencies", base**-exponents, persistent=False)

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (L, E) in float32 for positions (L,), shared by all layers of a pass."""
        angles = torch.outer(positions.to(self.inverse_frequencies), self.inverse_frequencies).repeat(1, 2)
        return angles.cos(), angles.sin()


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Queries or keys (..., L, E) turned by their positions, in float32 or better."""
    heads = heads.to(torch.promote_types(heads.dtype, torch.float32))
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat((-second, first), dim=-1) * sines
