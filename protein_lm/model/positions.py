"""Positions: rotary ones turn queries and keys, the others are vectors added to the embeddings.

The rotation comes before the feature map and keeps norms, so the kernel of the rotated queries and keys is what a feature
map estimates. Positions count from 0, the <cls> of each sequence.

Sources: Su et al. 2021 (arXiv 2104.09864) for rotary, half-split layout and base 10000 as in ESM-2; Vaswani et al. 2017 for
sinusoidal; Kitaev et al. 2020 (arXiv 2001.04451) for axial.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from protein_lm.attention.backends import native_rotary
from protein_lm.choices import PositionKind
from protein_lm.config import ModelConfig


class RotaryPositions(nn.Module):
    """Turns pairs (i, i + E/2) of each head by position × base^(-2i/E)."""

    inverse_frequencies: Tensor

    def __init__(self, head_width: int, *, base: float = 10000.0, stored: bool = False) -> None:
        """`stored`: the frequencies are saved with the weights."""
        super().__init__()
        exponents = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
        self.register_buffer("inverse_frequencies", base**-exponents, persistent=stored)

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (..., E / 2) in float32 for positions (...), shared by all layers of a pass."""
        angles = positions.to(self.inverse_frequencies).unsqueeze(-1) * self.inverse_frequencies
        return angles.cos(), angles.sin()


ROTATED_AT_ONCE = 512
"""Tokens turned at a time, so that what is between input and output stays in the cache."""


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Queries or keys (..., L, E) turned by their positions; computed in float32 or better, in the type of `heads`.

    Cosines and sines are (L, E / 2) or broadcast to (..., L, E / 2).
    """
    if not torch.is_grad_enabled():
        if native_rotary.takes(heads, cosines):
            return native_rotary.rotate(heads, cosines, sines)
        return _turn(heads, cosines, sines)
    return _Rotation.apply(heads, cosines, sines)


def rotate_parts(parts: Tensor, num_turned: int, cosines: Tensor, sines: Tensor) -> tuple[Tensor, ...]:
    """As `rotate`, of the first parts (N, B, H, L, E), the others unchanged; each for itself, (B, H, L, E).

    Their gradients come together in one tensor (B, L, N, H, E), without copies of them before.
    """
    if not torch.is_grad_enabled():
        return *rotate(parts[:num_turned], cosines, sines), *parts[num_turned:]
    return _RotationOfParts.apply(parts, num_turned, cosines, sines)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _turn(heads, cosines, sines)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        cosines, sines = ctx.saved_tensors
        return _turn(gradients[0], cosines, -sines), None, None


class _RotationOfParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, num_turned: int, cosines: Tensor, sines: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cosines, sines)
        ctx.num_turned = num_turned
        turned = torch.empty_like(parts[:num_turned])
        _turn_into(turned, parts[:num_turned], cosines, sines)
        return *turned.unbind(), *parts[num_turned:].unbind()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        cosines, sines = ctx.saved_tensors
        batch, heads, length, width = gradients[0].shape
        parts = gradients[0].new_empty(batch, length, len(gradients), heads, width).permute(2, 0, 3, 1, 4)
        for part, gradient in zip(parts[: ctx.num_turned], gradients, strict=False):
            _turn_into(part[None], gradient[None], cosines, -sines)
        for part, gradient in zip(parts[ctx.num_turned :], gradients[ctx.num_turned :], strict=True):
            part.copy_(gradient)
        return parts, None, None, None


def _turn_into(target: Tensor, heads: Tensor, cosines: Tensor, sines: Tensor) -> None:
    if native_rotary.takes(heads, cosines) and not torch.compiler.is_compiling():
        native_rotary.rotate_into(target, heads, cosines.contiguous(), sines.contiguous())
    else:
        _turn_by_torch(target, heads, cosines, sines)


def _turn(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    half = heads.shape[-1] // 2
    if heads.shape[-2] == 1 and heads.dtype == cosines.dtype:  # a token of decoding: fewer operations, same numbers
        first, second = heads[..., :half], heads[..., half:]
        left = (first * cosines).addcmul_(second, sines, value=-1)
        return torch.cat((left, (second * cosines).addcmul_(first, sines)), dim=-1)
    turned = torch.empty_like(heads, memory_format=torch.contiguous_format)
    _turn_by_torch(turned, heads, cosines, sines)
    return turned


def _turn_by_torch(turned: Tensor, heads: Tensor, cosines: Tensor, sines: Tensor) -> None:
    half = heads.shape[-1] // 2
    for start in range(0, heads.shape[-2], ROTATED_AT_ONCE):
        span = slice(start, start + ROTATED_AT_ONCE)
        rows = heads[..., span, :].to(torch.promote_types(heads.dtype, cosines.dtype))
        first, second = rows[..., :half], rows[..., half:]
        cosine, sine = cosines[..., span, :], sines[..., span, :]
        turned[..., span, :half] = (first * cosine).addcmul_(second, sine, value=-1)
        turned[..., span, half:] = (second * cosine).addcmul_(first, sine)


class SinusoidalPositions(nn.Module):
    """Fixed vectors: sines in the first half of the channels, cosines in the second, of falling frequencies.

    They are of length 1, as long as an embedding is at first.
    """

    inverse_frequencies: Tensor

    def __init__(self, width: int, *, base: float = 10000.0) -> None:
        super().__init__()
        self.width = width
        half = -(-width // 2)
        self.register_buffer("inverse_frequencies", base ** -(torch.arange(half) / half), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """(...) -> (..., D)."""
        angles = positions.to(self.inverse_frequencies).unsqueeze(-1) * self.inverse_frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)[..., : self.width] * math.sqrt(2 / self.width)


class LearnedPositions(nn.Module):
    """A vector per position."""

    def __init__(self, longest: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(longest, width)

    def forward(self, positions: Tensor) -> Tensor:
        """(...) -> (..., D)."""
        return self.table(positions.to(self.table.weight.device))


class AxialPositions(nn.Module):
    """Position p = row × columns + column: half of the channels from a table of rows, the other from one of columns."""

    def __init__(self, shape: tuple[int, int], width: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(shape[0], width - width // 2)
        self.columns = nn.Embedding(shape[1], width // 2)

    def forward(self, positions: Tensor) -> Tensor:
        """(...) -> (..., D)."""
        positions = positions.to(self.rows.weight.device)
        num_columns = self.columns.num_embeddings
        return torch.cat((self.rows(positions // num_columns), self.columns(positions % num_columns)), dim=-1)


def build_position_embedding(config: ModelConfig) -> nn.Module | None:
    """What is added to the embeddings; None for rotary positions or none."""
    if config.positions is PositionKind.SINUSOIDAL:
        return SinusoidalPositions(config.width)
    if config.positions is PositionKind.LEARNED:
        return LearnedPositions(config.max_length, config.width)
    if config.positions is PositionKind.AXIAL:
        return AxialPositions(config.axial_shape, config.width)
    return None
