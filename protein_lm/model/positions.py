"""Rotary positions, applied to queries and keys before the feature map.

The rotation keeps norms, so the kernel of the rotated queries and keys is what a feature map estimates.
Source: Su et al. 2021 (arXiv 2104.09864); half-split layout and base 10000 as in ESM-2; <cls> is position 0.
"""

from typing import Any

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
        """Cosines and sines (L, E / 2) in float32 for positions (L,), shared by all layers of a pass."""
        angles = torch.outer(positions.to(self.inverse_frequencies), self.inverse_frequencies)
        return angles.cos(), angles.sin()


ROTATED_AT_ONCE = 512
"""Tokens turned at a time, so that what is between input and output stays in the cache."""


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Queries or keys (..., L, E) turned by their positions; computed in float32 or better, in the type of `heads`."""
    return _Rotation.apply(heads, cosines, sines)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _turn(heads, cosines, sines)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        cosines, sines = ctx.saved_tensors
        return _turn(gradients[0], cosines, -sines), None, None


def _turn(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    turned = torch.empty_like(heads, memory_format=torch.contiguous_format)
    half = heads.shape[-1] // 2
    for start in range(0, heads.shape[-2], ROTATED_AT_ONCE):
        span = slice(start, start + ROTATED_AT_ONCE)
        rows = heads[..., span, :].to(torch.promote_types(heads.dtype, cosines.dtype))
        first, second = rows[..., :half], rows[..., half:]
        turned[..., span, :half] = (first * cosines[span]).addcmul_(second, sines[span], value=-1)
        turned[..., span, half:] = (second * cosines[span]).addcmul_(first, sines[span])
    return turned
