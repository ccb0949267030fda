"""Forms that keep exact weights of long matrices: tiles that stand out, and the strongest links of each head."""

import heapq
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm.analysis.attention.forms import Region


class Tile(NamedTuple):
    """A square of a region with its exact weights; tiles compare by how much they stand out."""

    prominence: float
    """The largest weight above the mean of its column within the tile."""
    row: int
    """Row of the tile, counted in tiles from the top of the region."""
    column: int
    """Column of the tile, counted in tiles from the left of the region."""
    weights: NDArray[np.float32]
    """(size, size); 0 beyond the region."""


class ProminentTiles:
    """Tiles of a region in which a weight stands out most from its column, a number of them for each head.

    A column that all residues attend to equally does not stand out, since block means show it as well.
    """

    def __init__(self, region: Region, size: int, count: int, num_layers: int, num_heads: int) -> None:
        """Keep `count` tiles (1 or more) of `size` tokens on each side for each head."""
        self.region, self.size, self.count = region, size, count
        self.kept: list[list[list[Tile]]] = [[[] for _ in range(num_heads)] for _ in range(num_layers)]
        """(layers, heads) of up to `count` tiles, unordered."""
        self._num_columns = -(-region.shape[1] // size)
        self._band = torch.zeros(num_heads, size, self._num_columns * size)

    def add(self, slot: int, start: int, weights: Tensor) -> None:
        rows, part = self.region.cut(start, weights)
        part = part.cpu()
        # A band is the row of tiles that is being filled, (heads, size, columns); a block may end within it or span several.
        first = rows.start
        while first < rows.stop:
            band = first // self.size
            end = min((band + 1) * self.size, self.region.shape[0])
            last = min(end, rows.stop)
            inside = slice(first - band * self.size, last - band * self.size)
            self._band[:, inside, : part.shape[2]] = part[:, first - rows.start : last - rows.start]
            if last == end:
                self._keep(slot, band, end - band * self.size)
                self._band.zero_()
            first = last

    def _keep(self, slot: int, band: int, num_rows: int) -> None:
        """Keep those tiles of a full band that stand out more than the ones kept so far; heaps have the least in front."""
        tiles = self._band.unflatten(2, (self._num_columns, self.size)).transpose(1, 2)
        seen = tiles[:, :, :num_rows]
        prominences = (seen - seen.mean(2, keepdim=True)).amax((2, 3))
        values, columns = prominences.topk(min(self.count, self._num_columns), dim=1)
        for head, kept in enumerate(self.kept[slot]):
            for prominence, column in zip(values[head].tolist(), columns[head].tolist(), strict=True):
                if len(kept) == self.count and prominence <= kept[0].prominence:
                    break
                tile = Tile(prominence, band, column, tiles[head, column].numpy().copy())
                (heapq.heappush if len(kept) < self.count else heapq.heapreplace)(kept, tile)


class Links(NamedTuple):
    """Weights between two tokens, the strongest first."""

    attending: NDArray[np.int64]
    """(K,) tokens."""
    attended: NDArray[np.int64]
    """(K,) tokens."""
    weights: NDArray[np.float32]
    """(K,), positive."""


class StrongestLinks:
    """The largest weights of each head between tokens of a region, at a least distance."""

    def __init__(self, region: Region, count: int, separation: int, num_layers: int, num_heads: int) -> None:
        """Keep `count` links for each head, of tokens `separation` or more apart."""
        self.region, self.count, self.separation = region, count, separation
        nothing = torch.empty(0), torch.empty(0, dtype=torch.long)
        self._kept = [[nothing for _ in range(num_heads)] for _ in range(num_layers)]

    def add(self, slot: int, start: int, weights: Tensor) -> None:
        rows, part = self.region.cut(start, weights)
        if 0 in part.shape:
            return
        attending = torch.arange(rows.start, rows.stop)[:, None] + self.region.rows.start
        attended = torch.arange(part.shape[2]) + self.region.columns.start
        part = part.cpu().masked_fill((attending - attended).abs() < self.separation, 0)
        for head, (values, positions) in enumerate(self._kept[slot]):
            # Add the block's links over the least one kept; a position is row × columns + column within the region.
            least = values[-1].item() if values.numel() == self.count else 0.0
            row, column = torch.nonzero(part[head] > least, as_tuple=True)
            values = torch.cat([values, part[head, row, column]])
            positions = torch.cat([positions, (row + rows.start) * self.region.shape[1] + column])
            values, order = values.sort(descending=True, stable=True)
            self._kept[slot][head] = values[: self.count], positions[order[: self.count]]

    def links(self, slot: int, head: int) -> Links:
        """Return the links of a layer and a head, by their indices among the chosen ones."""
        values, positions = self._kept[slot][head]
        rows, columns = np.divmod(positions.numpy(), self.region.shape[1])
        return Links(rows + self.region.rows.start, columns + self.region.columns.start, values.numpy())
