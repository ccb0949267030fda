"""Data of the viewer for one protein: weights of every chosen head within a budget, encoded for JavaScript."""

import base64
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from protein_lm.analysis.attention.forms import BlockMeans, Region
from protein_lm.analysis.attention.maps import Form
from protein_lm.analysis.attention.tiles import ProminentTiles, StrongestLinks
from protein_lm.io.records import SequenceRecord
from protein_lm.io.structures.chains import Chain, read_text

EXACT_BYTES = 2**25
"""Largest size at which every weight is kept, in 16 bits."""
OVERVIEW_BYTES = 2**24
"""Size of the block means of longer proteins, all heads together, in 16 bits."""
TILE_BYTES = 2**24
"""Size of the exact tiles of longer proteins, all heads together, in 16 bits."""
MAX_PIXELS = 512
TILE_SIZE = 64
"""Residues on each side of an exact tile."""
NUM_LINKS = 1000
"""Number of links that are kept for each head."""
SEPARATION = 6
"""Least number of residues from one end of a link to the other, as for contacts."""


class Content:
    """Weights of one protein for the viewer: hand `forms` to `read_attention`, then call `data`."""

    def __init__(self, region: Region, layers: Sequence[int], heads: Sequence[int]) -> None:
        """Choose the forms for the residues of `region`; layers and heads are numbered from 1."""
        self.region, self.layers, self.heads = region, layers, heads
        shape, count = (len(layers), len(heads)), len(layers) * len(heads)
        rows, columns = region.shape
        self.is_exact = 2 * count * rows * columns <= EXACT_BYTES
        overview = math.isqrt(OVERVIEW_BYTES // (2 * count))
        pixels = max(rows, columns) if self.is_exact else min(MAX_PIXELS, max(overview, 1))
        self._overview = BlockMeans(region, pixels, *shape)
        self._links = StrongestLinks(region, NUM_LINKS, SEPARATION, *shape)
        self._tiles: ProminentTiles | None = None
        if not self.is_exact:
            num_tiles = max(1, TILE_BYTES // (2 * count * TILE_SIZE**2))
            self._tiles = ProminentTiles(region, TILE_SIZE, num_tiles, *shape)

    @property
    def forms(self) -> list[Form]:
        """The forms that need the rows of attention."""
        return [self._overview, self._links, *([self._tiles] if self._tiles else [])]

    def data(self, record: SequenceRecord, *, title: str, structure: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return everything that `viewer.js` needs, ready for JSON; `structure` comes from `structure_data`.

        Weights are stored as 16-bit floats, times `scale`: a power of two that puts the largest near the top of their range.
        Their relative error is under 0.05 %, down to about 1e-9 of the largest.
        """
        rows, columns = self.region
        largest = max(float(np.abs(self._overview.values).max()), self._largest_in_tiles(), 2.0**-100)
        scale = 2.0 ** math.floor(math.log2(2.0**15 / largest))
        return {
            "title": title,
            "sequence": record.sequence,
            "layers": list(self.layers),
            "heads": list(self.heads),
            "isExact": self.is_exact,
            "rowEdges": (self._overview.row_edges + rows.start).tolist(),
            "columnEdges": (self._overview.column_edges + columns.start).tolist(),
            "scale": scale,
            "tileSize": TILE_SIZE,
            "separation": SEPARATION,
            "palette": _encoded(_palette()),
            "maps": [
                [self._map(slot, head, scale) for head in range(len(self.heads))] for slot in range(len(self.layers))
            ],
            "structure": structure,
        }

    def _largest_in_tiles(self) -> float:
        kept = self._tiles.kept if self._tiles else []
        return max(
            (float(np.abs(tile.weights).max()) for layer in kept for head in layer for tile in head), default=0.0
        )

    def _map(self, slot: int, head: int, scale: float) -> dict[str, Any]:
        links = self._links.links(slot, head)
        tiles = sorted(self._tiles.kept[slot][head], key=lambda tile: (tile.row, tile.column)) if self._tiles else []
        weights = np.stack([tile.weights for tile in tiles]) if tiles else np.empty(0, dtype=np.float32)
        return {
            "overview": _encoded_weights(self._overview.values[slot, head], scale),
            "tileIndices": [[tile.row, tile.column] for tile in tiles],
            "tiles": _encoded_weights(weights, scale),
            "attending": _encoded(links.attending.astype("<u4")),
            "attended": _encoded(links.attended.astype("<u4")),
            "linkWeights": _encoded(links.weights.astype("<f4")),
        }


def structure_data(name: str, chain: Chain, record: SequenceRecord) -> dict[str, Any]:
    """Return the unchanged file of the structure `name`, and the number of each residue in it, empty if not seen.

    Raises:
        InputError: `chain`, read from `name`, is not in the record; the file cannot be read.
    """
    text, kind = read_text(name)
    return {
        "text": text,
        "format": {"PDB": "pdb", "mmCIF": "cif"}[kind],
        "name": chain.name,
        "chain": chain.name.rpartition(":")[2],
        "numbers": list(chain.placed_in(record).numbers),
    }


def _palette() -> NDArray[np.uint8]:
    """Return the colours (256, 3) of cividis, which looks the same to nearly everyone."""
    return (255 * matplotlib.colormaps["cividis"](np.arange(256))[:, :3]).round().astype(np.uint8)


def _encoded_weights(weights: NDArray[np.float32], scale: float) -> str:
    return _encoded((weights * np.float32(scale)).astype("<f2"))


def _encoded(values: NDArray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
