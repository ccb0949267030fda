"""Embeddings of positions and of k-mers, which are added to those of tokens; and rotary positions.

Rotary positions turn queries and keys. The rotation comes before the feature map and keeps norms: a feature map estimates the
kernel of the rotated queries and keys. Positions count from 0, the <cls> of each sequence.

Sources. Rotary: Su et al. 2021 (arXiv 2104.09864), with half-split layout and base 10000 as in ESM-2. Sinusoidal: Vaswani et
al. 2017. Axial: Kitaev et al. 2020 (arXiv 2001.04451). k-mers: Huang et al. 2025 (Over-Tokenized Transformer, arXiv
2501.16975).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from protein_lm import alphabet
from protein_lm.attention.packing import Packing
from protein_lm.choices import PositionKind
from protein_lm.config import ModelConfig


class RotaryPositions(nn.Module):
    """Turns pairs (i, i + E/2) of each head by position × base^(-2i/E)."""

    inverse_frequencies: Tensor

    def __init__(self, head_width: int, *, base: float = 10000.0, stored: bool = False) -> None:
        """Make the frequencies; with `stored`, they are saved with the weights."""
        super().__init__()
        exponents = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
        self.register_buffer("inverse_frequencies", base**-exponents, persistent=stored)

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (..., E / 2) in float32 for positions (...), shared by all layers of a pass."""
        angles = positions.to(self.inverse_frequencies).unsqueeze(-1) * self.inverse_frequencies
        return angles.cos(), angles.sin()


class SinusoidalPositions(nn.Module):
    """Fixed vectors of length 1: sines in the first half of the channels, cosines in the second, of falling frequencies."""

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
    """Position p = row × columns + column: half of the channels come from a table of rows, half from one of columns."""

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
    """Return the embedding of positions that is added to that of tokens; None for rotary positions or none."""
    if config.positions is PositionKind.SINUSOIDAL:
        return SinusoidalPositions(config.width)
    if config.positions is PositionKind.LEARNED:
        return LearnedPositions(config.max_length, config.width)
    if config.positions is PositionKind.AXIAL:
        return AxialPositions(config.axial_shape, config.width)
    return None


MULTIPLIER, PRIME = 2654435761, 4294967291
"""Constants of a multiplicative hash: Knuth's multiplier, and the largest prime below 2³²."""


class KeptGradient:
    """The gradient of a table in one tensor that is kept from step to step, with the bits of torch's own.

    A step touches few rows of a large table. Only these are set to zero again, where torch would write a new tensor of zeros
    each time. A gradient is overwritten by the next one: this suits a training loop, which is done with it by then. The table
    is used once in each backward pass.
    """

    def __init__(self) -> None:
        self._gradient: Tensor | None = None
        self._touched: list[Tensor] = []

    def of(self, table: Tensor, rows: Tensor, gradients: Tensor) -> Tensor:
        """Return the gradient (N, D) of a table (N, D), given the rows (T,) looked up and their gradients (T, D)."""
        if table.grad is not None:  # of an earlier batch of this step, to which torch adds
            self._touched.append(rows)
            return torch.zeros_like(table).index_add_(0, rows, gradients)
        if self._gradient is None:
            self._gradient = torch.zeros_like(table)
        for touched in self._touched:
            self._gradient.index_fill_(0, touched, 0.0)
        self._touched = [rows]
        self._gradient.index_add_(0, rows, gradients)
        return self._gradient.view_as(table)  # a tensor of its own, or torch would copy it

    def forget(self) -> None:
        """Start from zeros again: clipping by a norm that is NaN made all rows NaN."""
        self._gradient, self._touched = None, []


class _TableRows(torch.autograd.Function):
    """Rows (B, L, D) of a table whose gradient is kept."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, kept: KeptGradient) -> Tensor:
        ctx.save_for_backward(table, rows)
        ctx.kept = kept
        return functional.embedding(rows, table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        table, rows = ctx.saved_tensors
        return ctx.kept.of(table, rows.flatten(), gradients[0].flatten(0, 1)), None, None


class KmerEmbedding(nn.Module):
    """The sum over k of the table row chosen by the k tokens that end with a token; later tokens have no influence.

    The tables hold statistics of short motifs without any matrix product. A small model would otherwise spend most of a small
    budget to discover these. Before the start of a sequence, <pad> stands. Different k-mers may share a row: tables have a
    fixed number of buckets.
    """

    def __init__(self, sizes: Sequence[int], buckets: int, width: int) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.buckets = buckets
        self.tables = nn.ModuleList(nn.Embedding(buckets, width) for _ in self.sizes)
        self.kept_gradients: list[KeptGradient] | None = None
        """For each table, if its gradient is kept from step to step. For training loops on a CPU in one process."""

    def keep_gradients(self) -> None:
        """Keep the gradients of the tables from step to step from now on."""
        self.kept_gradients = [KeptGradient() for _ in self.tables]

    def forget_gradients(self) -> None:
        """Start kept gradients from zeros again, for example after a step whose gradient was not finite."""
        for kept in self.kept_gradients or ():
            kept.forget()

    @property
    def context(self) -> int:
        """Number of tokens before the first new one that `forward` needs to resume a sequence."""
        return max(self.sizes) - 1

    def forward(self, tokens: Tensor, *, packing: Packing | None = None, before: Tensor | None = None) -> Tensor:
        """Embeddings (B, L, D) of token ids (B, L), which follow the tokens `before` (B, context) if these are given."""
        kept = self.kept_gradients if torch.is_grad_enabled() else None
        rows = []
        for number, (size, table) in enumerate(zip(self.sizes, self.tables, strict=True)):
            buckets = self.bucket(tokens, size, packing=packing, before=before)
            rows.append(table(buckets) if kept is None else _TableRows.apply(table.weight, buckets, kept[number]))
        return torch.stack(rows).sum(0) if len(rows) > 1 else rows[0]

    def bucket(
        self, tokens: Tensor, size: int, *, packing: Packing | None = None, before: Tensor | None = None
    ) -> Tensor:
        """Return the table row (B, L) of the k-mer that ends at each of the tokens (B, L)."""
        length = tokens.shape[1]
        if before is None:
            padded = nn.functional.pad(tokens, (size - 1, 0), value=alphabet.PAD)
        else:
            padded = torch.cat((before[:, before.shape[1] - (size - 1) :], tokens), dim=1)
        code = torch.zeros_like(tokens)
        for index in range(size):  # the tokens of the k-mers, the first one first: (B, L)
            neighbours = padded[:, index : index + length]
            if packing is not None and (offset := index - (size - 1)):
                neighbours = neighbours.where(packing.has_neighbour(offset, tokens.device), alphabet.PAD)
            code = code * alphabet.VOCABULARY_SIZE + neighbours
        return (code * MULTIPLIER % PRIME) % self.buckets
