"""Positions: rotary ones turn queries and keys, the others are vectors added to the embeddings.

The rotation comes before the feature map and keeps norms, so the kernel of the rotated queries and keys is what a feature
map estimates. Positions count from 0, the <cls> of each sequence.

Sources: Su et al. 2021 (arXiv 2104.09864) for rotary, half-split layout and base 10000 as in ESM-2; Vaswani et al. 2017 for
sinusoidal; Kitaev et al. 2020 (arXiv 2001.04451) for axial.
"""

import math

import torch
from torch import Tensor, nn

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
