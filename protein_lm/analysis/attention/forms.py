"""What attention matrices of any length are brought into: parts of them, block means, largest weights, rollout.

Each form takes the rows as `attention_maps.read_attention` walks over them; none holds (L, L) for all heads at once. Tokens
count from 0, with <cls> as token 0, so that token i is residue i.
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm.analysis.attention.maps import Form, LayerCall, visit_layers
from protein_lm.attention.feature_maps.performer import RandomFeatureMap
from protein_lm.attention.operations.lsh import Hash
from protein_lm.errors import ConfigError
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
        """Which rows of the region a block has, counted within the region, and (heads, rows, columns seen) of it."""
        first = min(max(self.rows.start, start), self.rows.stop)
        last = max(min(self.rows.stop, start + weights.shape[1]), first)
        part = weights[:, first - start : last - start, self.columns]
        return slice(first - self.rows.start, last - self.rows.start), part


class Picture(Form, Protocol):
    """A form that is a matrix for each head."""

    values: NDArray[np.float32]
    """(layers, heads, rows, columns)."""


class Matrices:
    """The weights of a region themselves."""

    def __init__(self, region: Region, num_layers: int, num_heads: int) -> None:
        self.region = region
        self.values = np.zeros((num_layers, num_heads, *region.shape), dtype=np.float32)

    def add(self, place: int, start: int, weights: Tensor) -> None:
        """See `Form`."""
        rows, part = self.region.cut(start, weights)
        self.values[place, :, rows, : part.shape[2]] = part.cpu().numpy()


class BlockMeans:
    """Means of the weights over the blocks that a region is cut into, of sizes that differ by one at most."""

    def __init__(self, region: Region, pixels: int, num_layers: int, num_heads: int) -> None:
        """Cut each side into `pixels` blocks, or as many as it has tokens."""
        self.region = region
        self.row_edges, self.column_edges = (edges(size, pixels) for size in region.shape)
        """(blocks + 1,) where each block begins, counted within the region."""
        shape = self.row_edges.size - 1, self.column_edges.size - 1
        self.values = np.zeros((num_layers, num_heads, *shape), dtype=np.float32)

    def add(self, place: int, start: int, weights: Tensor) -> None:
        """See `Form`."""
        rows, part = self.region.cut(start, weights)
        if 0 in part.shape:
            return
        blocks = np.searchsorted(self.row_edges, np.arange(rows.start, rows.stop), side="right") - 1
        first, last = blocks[0], blocks[-1] + 1
        index = torch.from_numpy(blocks - first).to(part.device)
        sums = part.new_zeros(part.shape[0], last - first, part.shape[2]).index_add_(1, index, part)
        begins = self.column_edges[:-1][self.column_edges[:-1] < part.shape[2]]
        sums = np.add.reduceat(sums.cpu().numpy(), begins, axis=2)
        sizes = np.diff(self.row_edges)[first:last, None] * np.diff(self.column_edges)[: begins.size]
        self.values[place, :, first:last, : begins.size] += sums / sizes


def edges(size: int, pixels: int) -> NDArray[np.int64]:
    """Edges (blocks + 1,) of `pixels` even blocks of `size` tokens, or of one block for each token if there are fewer.

    >>> edges(7, 3).tolist(), edges(2, 3).tolist()
    ([0, 2, 4, 7], [0, 1, 2])
    """
    blocks = min(size, pixels)
    return np.arange(blocks + 1) * size // blocks


class LargestWeights:
    """The tokens of a region that each of its rows attends to most."""

    def __init__(self, region: Region, count: int) -> None:
        self.region = region
        self.count = count
        self._parts: list[tuple[NDArray, ...]] = []

    def add(self, place: int, start: int, weights: Tensor) -> None:
        """See `Form`."""
        rows, part = self.region.cut(start, weights)
        if 0 in part.shape:
            return
        values, keys = part.topk(min(self.count, part.shape[2]), dim=2)
        values, keys = values.cpu().numpy(), keys.cpu().numpy()
        heads, queries, order = np.nonzero(values)  # keys out of sight have a weight of 0
        places = np.full(heads.size, place)
        attending = queries + rows.start + self.region.rows.start
        attended = keys[heads, queries, order] + self.region.columns.start
        self._parts.append((places, heads, attending, attended, values[heads, queries, order]))

    def table(self, layers: Sequence[int], heads: Sequence[int]) -> pd.DataFrame:
        """A row per weight, the largest of each attending residue first: layer, head, residue, attended, weight (1-based)."""
        nothing = (*(np.empty(0, dtype=np.int64) for _ in range(4)), np.empty(0, dtype=np.float32))
        parts = [nothing, *self._parts]
        places, columns, attending, attended, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.lexsort((attending, columns, places))
        return pd.DataFrame(
            {
                "layer": (np.array(layers, dtype=np.int32) + 1)[places],
                "head": (np.array(heads, dtype=np.int32) + 1)[columns],
                "residue": attending.astype(np.int32),
                "attended": attended.astype(np.int32),
                "weight": values,
            }
        ).iloc[order]


class Rollout:
    """Attention through all layers: the product of (mean over heads + identity) / 2, the last layer at the left.

    Walks on from layer to layer with (L, columns) instead of (L, L): the product is formed from the right with the blocks
    of columns that are asked for, which is exact. Needs all layers, all heads and all rows.

    Source: Abnar & Zuidema 2020 (arXiv 2005.00928), section 3.
    """

    def __init__(self, region: Region, pixels: int, length: int) -> None:
        """Cut the region as `BlockMeans` does; `length` in tokens."""
        self.region = region
        self.row_edges, self.column_edges = (edges(size, pixels) for size in region.shape)
        sizes = np.diff(self.column_edges)
        self._state = np.zeros((length, sizes.size), dtype=np.float32)
        columns = np.arange(region.columns.start, region.columns.stop)
        self._state[columns, np.repeat(np.arange(sizes.size), sizes)] = np.repeat(1 / sizes, sizes)
        self._next = np.empty_like(self._state)

    def add(self, place: int, start: int, weights: Tensor) -> None:
        """See `Form`."""
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


class Draws(NamedTuple):
    """How a picture varies with the random features, on the queries and keys of the model as it is."""

    mean: NDArray[np.float32]
    """Over draws, of the shape of the picture."""
    standard_error: NDArray[np.float32]
    """Of that mean: standard deviation over draws / √draws."""


def check_draws(model: ProteinLM, layers: Sequence[int]) -> None:
    """Refuse layers (0-based) that have neither random features nor hashes.

    Raises:
        ConfigError: naming the layer and its kind of attention.
    """
    operations = model.operations()
    for layer in layers:
        if not _drawn_modules(operations[layer]):
            kind = model.config.attention_kinds[layer]
            raise ConfigError(
                f"layer {layer + 1} has {kind} attention, which draws nothing at random; leave out --draws, or choose "
                "other layers with --layer"
            )


def draw_features(
    model: ProteinLM,
    record: SequenceRecord,
    picture: Callable[[], Picture],
    *,
    region: Region,
    num_draws: int,
    layers: Sequence[int],
    heads: Sequence[int],
) -> Draws:
    """Form a picture of each layer anew with other random features, seeded 0, 1, ...; the model stays as it is.

    Args:
        model: one that `check_draws` accepts.
        record: the protein.
        picture: makes an empty form for one layer.
        region: what the form needs.
        num_draws: 2 or more.
        layers: 0-based.
        heads: 0-based.

    Raises:
        InputError: the protein is longer than the model's window.
    """
    means, errors = [], []

    def visit(place: int, call: LayerCall) -> None:
        operation = copy.deepcopy(call.operation)
        mean = squares = np.zeros(())
        for draw in range(num_draws):
            for module in _drawn_modules(operation):
                module.redraw(torch.Generator().manual_seed(draw))
            form = picture()
            for start, weights in call._replace(operation=operation).blocks(heads, region.rows):
                form.add(0, start, weights)
            difference = form.values[0] - mean
            mean = mean + difference / (draw + 1)
            squares = squares + difference * (form.values[0] - mean)
        means.append(mean)
        errors.append(np.sqrt(squares / ((num_draws - 1) * num_draws)))

    visit_layers(model, record, visit, layers=layers)
    return Draws(np.stack(means).astype(np.float32), np.stack(errors).astype(np.float32))


def _drawn_modules(operation: torch.nn.Module) -> list[RandomFeatureMap | Hash]:
    found = [module for module in operation.modules() if isinstance(module, RandomFeatureMap | Hash)]
    return [module for module in found if not (isinstance(module, RandomFeatureMap) and module.is_unprojected)]
