"""Statistics of attention heads, and one word for each head, from sums over the rows of its matrix.

The word is the first of these classes that fits:

- `signed`: the kind's weights may be negative, so they are no shares.
- `vertical`: half of all attention goes to the 2 % of the tokens (at least one) that get most.
- `diffuse`: rows have 95 % or more of the entropy of uniform attention.
- `local`: half of all attention stays within 3 tokens.
- `block`: the mean distance is less than half of that of uniform attention.
- `distant`: the mean distance is more than that of uniform attention.
- `mixed`: none of these.

Uniform attention goes to all tokens equally, in a causal model to all up to the query.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm.model.language_model import ProteinLM

LOCAL_REACH = 3
"""Tokens on either side that count as local."""
VERTICAL_FRACTION = 0.02
"""Share of the tokens, those that get most attention, for the class `vertical`."""


class HeadSums:
    """Sums over all rows of the matrices of one protein; a `maps.Form`."""

    def __init__(self, num_layers: int, num_heads: int, length: int) -> None:
        self.length = length
        shape = num_layers, num_heads
        self.received = np.zeros((*shape, length))
        """(layers, heads, L) attention that each token gets from all; 1 on average."""
        self.by_offset = np.zeros((*shape, 2 * length - 1))
        """(layers, heads, 2 L - 1) sums over the pairs with key - query = -(L - 1) ... L - 1."""
        self.entropy_nats = np.zeros(shape)
        """(layers, heads) sum over rows."""

    def add(self, slot: int, start: int, weights: Tensor) -> None:
        _, num_rows, seen = weights.shape
        first = self.length - num_rows - start  # offset of the last row to the first key
        self.received[slot, :, :seen] += weights.sum(1).double().cpu().numpy()
        self.by_offset[slot, :, first : first + num_rows + seen - 1] += _diagonal_sums(weights).double().cpu().numpy()
        logarithms = weights.clamp_min(1e-30).log_()
        self.entropy_nats[slot] -= logarithms.mul_(weights).sum(2).sum(1).double().cpu().numpy()

    def table(self, model: ProteinLM, *, layers: Sequence[int], heads: Sequence[int]) -> pd.DataFrame:
        """Return a row for each head of the model that was read.

        Columns:
            layer, head: numbers from 1.
            head_class: one word, as the module's docstring defines it.
            mean_entropy_nats: mean entropy of the rows; empty if signed.
            mean_distance: tokens between query and key, weighted by attention.
            max_column_share: largest share of all attention that one token receives.
            local_share: share of attention within 3 tokens on either side.
            vertical_share: share of attention to the 2 % of the tokens that receive most.
            even_entropy_nats, even_distance: the same of uniform attention.
        """
        length = self.length
        distance = np.abs(np.arange(1 - length, length))
        even_entropy, even_distance = _even(length, model.is_causal)
        operations = model.operations()
        num_most = max(1, round(VERTICAL_FRACTION * length))
        most = np.sort(self.received, axis=-1)[..., -num_most:].sum(-1) / length
        rows = []
        for i, layer in enumerate(layers):
            for j, head in enumerate(heads):
                signed = not operations[layer - 1].weights_are_positive
                facts = {
                    "mean_entropy_nats": np.nan if signed else self.entropy_nats[i, j] / length,
                    "mean_distance": (self.by_offset[i, j] * distance).sum() / length,
                    "max_column_share": self.received[i, j].max() / length,
                    "local_share": self.by_offset[i, j, distance <= LOCAL_REACH].sum() / length,
                    "vertical_share": most[i, j],
                    "even_entropy_nats": even_entropy,
                    "even_distance": even_distance,
                }
                name = "signed" if signed else _head_class(**facts)
                rows.append({"layer": layer, "head": head, "head_class": name} | facts)
        return pd.DataFrame(rows)

    def received_table(self, tokens: Sequence[str], *, layers: Sequence[int], heads: Sequence[int]) -> pd.DataFrame:
        """Return layer, head, residue (from 1; 0 is <cls>, L + 1 <eos>), token, received; `tokens` are names (L + 2,)."""
        return self._long(self.received, {"residue": np.arange(self.length), "token": np.array(tokens)}, layers, heads)

    def offset_table(self, *, layers: Sequence[int], heads: Sequence[int]) -> pd.DataFrame:
        """Return layer, head, offset (attended - attending, in residues), mean_weight over all pairs with this offset."""
        offsets = np.arange(1 - self.length, self.length)
        means = self.by_offset / (self.length - np.abs(offsets))
        return self._long(means, {"offset": offsets}, layers, heads, name="mean_weight")

    @staticmethod
    def _long(
        values: NDArray[np.float64],
        keys: dict[str, NDArray],
        layers: Sequence[int],
        heads: Sequence[int],
        name: str = "received",
    ) -> pd.DataFrame:
        """Return (layers, heads, N) values as a table, with the (N,) keys of each head."""
        num_layers, num_heads, size = values.shape
        columns = {
            "layer": np.repeat(np.array(layers, dtype=np.int32), num_heads * size),
            "head": np.tile(np.repeat(np.array(heads, dtype=np.int32), size), num_layers),
        }
        columns |= {key: np.tile(array, num_layers * num_heads) for key, array in keys.items()}
        return pd.DataFrame(columns | {name: values.ravel().astype(np.float32)})


def _head_class(
    *,
    mean_entropy_nats: float,
    mean_distance: float,
    local_share: float,
    vertical_share: float,
    even_entropy_nats: float,
    even_distance: float,
    **_: float,
) -> str:
    if vertical_share >= 0.5:
        return "vertical"
    if mean_entropy_nats >= 0.95 * even_entropy_nats:
        return "diffuse"
    if local_share >= 0.5:
        return "local"
    if mean_distance < 0.5 * even_distance:
        return "block"
    return "distant" if mean_distance > even_distance else "mixed"


def _even(length: int, causal: bool) -> tuple[float, float]:
    """Return the mean entropy in nats and the mean distance in tokens of uniform attention."""
    if causal:
        return float(np.log(np.arange(1, length + 1)).mean()), (length - 1) / 4
    return float(np.log(length)), (length**2 - 1) / (3 * length)


def _diagonal_sums(weights: Tensor) -> Tensor:
    """Return the sums (heads, S + T - 1) over the diagonals of (heads, S, T), from the lower left to the upper right corner.

    Rows are written into a buffer of zeros, each shifted by one against the row above. A diagonal is then a column.
    """
    heads, num_rows, seen = weights.shape
    width = num_rows + seen - 1
    buffer = weights.new_zeros(heads, num_rows * width + num_rows)
    buffer[:, : num_rows * width].view(heads, num_rows, width)[:, :, num_rows - 1 :] = weights
    return torch.as_strided(buffer, (heads, num_rows, width), (buffer.shape[1], width + 1, 1)).sum(1)
