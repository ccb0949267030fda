"""Forms of attention matrices of any length: parts of them, block means, largest weights, rollout.

Each form takes the rows that `maps.read_attention` hands it. Only `Matrices` keeps all weights of its region. Tokens are
indexed from 0 and <cls> is token 0, so token i is the residue at position i.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm import alphabet
from protein_lm.analysis.attention.maps import Form, chosen_heads, chosen_layers, read_attention
from protein_lm.inference.score import check_length
from protein_lm.io.records import SequenceRecord
from protein_lm.model.language_model import ProteinLM


class Region(NamedTuple):
    """A part of a matrix."""

    rows: slice
    """Tokens that attend."""
    columns: slice
    """Tokens that are attended."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def cut(self, start: int, weights: Tensor) -> tuple[slice, Tensor]:
        """Cut the region out of a block of rows from token `start` on, (heads, S, T).

        Returns:
            The rows, counted within the region, and their weights (heads, rows, columns seen).
        """
        first = min(max(self.rows.start, start), self.rows.stop)
        last = max(min(self.rows.stop, start + weights.shape[1]), first)
        part = weights[:, first - start : last - start, self.columns]
        return slice(first - self.rows.start, last - self.rows.start), part


class Picture(Form, Protocol):
    """A form that is a matrix for each head."""

    values: NDArray[np.float32]
    """(layers, heads, rows, columns)."""


class Matrices:
    """All weights of a region."""

    def __init__(self, region: Region, num_layers: int, num_heads: int) -> None:
        self.region = region
        self.values = np.zeros((num_layers, num_heads, *region.shape), dtype=np.float32)

    def add(self, slot: int, start: int, weights: Tensor) -> None:
        rows, part = self.region.cut(start, weights)
        self.values[slot, :, rows, : part.shape[2]] = part.cpu().numpy()


class BlockMeans:
    """Means of the weights over blocks of a region, whose sizes differ by one at most."""

    def __init__(self, region: Region, pixels: int, num_layers: int, num_heads: int) -> None:
        """Cut each side into `pixels` blocks, or as many as it has tokens."""
        self.region = region
        self.row_edges, self.column_edges = (edges(size, pixels) for size in region.shape)
        """(blocks + 1,) first token of each block, counted within the region."""
        shape = self.row_edges.size - 1, self.column_edges.size - 1
        self.values = np.zeros((num_layers, num_heads, *shape), dtype=np.float32)

    def add(self, slot: int, start: int, weights: Tensor) -> None:
        rows, part = self.region.cut(start, weights)
        if 0 in part.shape:
            return
        # Block of each row, then sums over the rows of each block (heads, blocks, columns seen).
        blocks = np.searchsorted(self.row_edges, np.arange(rows.start, rows.stop), side="right") - 1
        first, last = blocks[0], blocks[-1] + 1
        index = torch.from_numpy(blocks - first).to(part.device)
        sums = part.new_zeros(part.shape[0], last - first, part.shape[2]).index_add_(1, index, part)
        # Sums over the columns of each block as well (heads, blocks, blocks), then shares of the means.
        begins = self.column_edges[:-1][self.column_edges[:-1] < part.shape[2]]
        sums = np.add.reduceat(sums.cpu().numpy(), begins, axis=2)
        sizes = np.diff(self.row_edges)[first:last, None] * np.diff(self.column_edges)[: begins.size]
        self.values[slot, :, first:last, : begins.size] += sums / sizes


def edges(size: int, pixels: int) -> NDArray[np.int64]:
    """Return the edges (blocks + 1,) of `pixels` even blocks of `size` tokens; one block for each token if there are fewer.

    >>> edges(7, 3).tolist(), edges(2, 3).tolist()
    ([0, 2, 4, 7], [0, 1, 2])
    """
    blocks = min(size, pixels)
    return np.arange(blocks + 1) * size // blocks


def attention_matrices(
    model: ProteinLM,
    record: SequenceRecord,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """Return the attention of one protein, (layers, heads, L + 2, L + 2); <cls> is the first token, <eos> the last.

    Rows sum to 1, except with the kinds whose weights may be negative (docs/kinds_of_attention.md lists them). For a linear
    kind this is the matrix φ(q)·φ(k) / normalizer that the layer applies without ever forming it. Memory grows with the
    square of the length; use the other forms for long proteins.

    Args:
        model: any model.
        record: the protein.
        layers: layers to keep, from 1, in that order; None for all.
        heads: heads to keep, from 1, in that order; None for all.

    Raises:
        InputError: the protein is longer than the model's window.
        ConfigError: a layer or head that the model does not have.
    """
    check_length(record, model)  # before there is memory for it
    numbers, chosen = chosen_layers(model, layers), chosen_heads(model, heads)
    tokens = slice(0, len(record) + alphabet.NUM_SPECIAL_TOKENS)
    matrices = Matrices(Region(tokens, tokens), len(numbers), len(chosen))
    read_attention(model, record, [matrices], layers=numbers, heads=chosen)
    return matrices.values


class LargestWeights:
    """The tokens of a region that each of its rows attends to most."""

    def __init__(self, region: Region, count: int) -> None:
        self.region = region
        self.count = count
        self._parts: list[tuple[NDArray, ...]] = []

    def add(self, slot: int, start: int, weights: Tensor) -> None:
        rows, part = self.region.cut(start, weights)
        if 0 in part.shape:
            return
        values, keys = part.topk(min(self.count, part.shape[2]), dim=2)
        values, keys = values.cpu().numpy(), keys.cpu().numpy()
        heads, queries, order = np.nonzero(values)  # keys out of sight have a weight of 0
        slots = np.full(heads.size, slot)
        attending = queries + rows.start + self.region.rows.start
        attended = keys[heads, queries, order] + self.region.columns.start
        self._parts.append((slots, heads, attending, attended, values[heads, queries, order]))

    def table(self, layers: Sequence[int], heads: Sequence[int]) -> pd.DataFrame:
        """Return a row for each weight, the largest of each attending residue first.

        Columns: layer, head, residue, attended (all from 1), weight.
        """
        nothing = (*(np.empty(0, dtype=np.int64) for _ in range(4)), np.empty(0, dtype=np.float32))
        parts = [nothing, *self._parts]
        slots, columns, attending, attended, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.lexsort((attending, columns, slots))
        return pd.DataFrame(
            {
                "layer": np.array(layers, dtype=np.int32)[slots],
                "head": np.array(heads, dtype=np.int32)[columns],
                "residue": attending.astype(np.int32),
                "attended": attended.astype(np.int32),
                "weight": values,
            }
        ).iloc[order]


class Rollout:
    """Attention through all layers: the product of (mean over heads + identity) / 2, the last layer at the left.

    The product is formed from the right, layer by layer, with (L, columns) instead of (L, L): only the blocks of columns that
    are asked for. This is exact. It needs all layers, all heads and all rows.

    Source: Abnar & Zuidema 2020 (arXiv 2005.00928), section 3.
    """

    def __init__(self, region: Region, pixels: int, length: int) -> None:
        """Cut the region as `BlockMeans` does; `length` is that of the protein in tokens."""
        self.region = region
        self.row_edges, self.column_edges = (edges(size, pixels) for size in region.shape)
        sizes = np.diff(self.column_edges)
        self._state = np.zeros((length, sizes.size), dtype=np.float32)
        columns = np.arange(region.columns.start, region.columns.stop)
        self._state[columns, np.repeat(np.arange(sizes.size), sizes)] = np.repeat(1 / sizes, sizes)
        self._next = np.empty_like(self._state)

    def add(self, slot: int, start: int, weights: Tensor) -> None:
        _, num_rows, seen = weights.shape
        rows = slice(start, start + num_rows)
        mean = weights.mean(0)
        state = torch.from_numpy(self._state).to(weights.device)
        self._next[rows] = ((mean @ state[:seen] + state[rows]) / 2).cpu().numpy()
        if rows.stop == len(self._state):
            self._state, self._next = self._next, self._state

    @property
    def values(self) -> NDArray[np.float32]:
        """(rows, columns): means over the blocks of the region."""
        sums = np.add.reduceat(self._state[self.region.rows], self.row_edges[:-1], axis=0)
        return (sums / np.diff(self.row_edges)[:, None]).astype(np.float32)
