"""cosFormer: relu features weighted by position, so that near keys count more: the kernel relu(q)·relu(k) cos(π(i - j) / 2M).

The cosine of a difference is a sum of products. Queries and keys of twice the width, weighted before the operation, give this
kernel: the weighted rows are the features. The small constant in them is ours: without it a row of negative channels has no
weights at all.

Source: Qin et al. 2022 (arXiv 2202.08791), section 3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from protein_lm.attention.feature_maps.performer import FeatureMap
from protein_lm.attention.input_checks import check_inputs
from protein_lm.attention.kinds.interface import AttentionOptions, LayerShape
from protein_lm.attention.kinds.linear import LinearOperation
from protein_lm.attention.operations.linear_recurrence import LinearState
from protein_lm.attention.rows import WHOLE, Rows

EPSILON = 1e-3


class WeightedRows(FeatureMap):
    """The map of rows that `weighted_by_position` made: they are the features."""

    has_gradients = True

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.num_features = 2 * head_width

    def query_features(self, query: Tensor) -> Tensor:
        return query

    def query_gradient(self, query: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
        return gradient

    def key_gradient(self, key: Tensor, features: Tensor, gradient: Tensor) -> Tensor:
        return gradient


def weighted_by_position(rows: Tensor, positions: Tensor, longest: int) -> Tensor:
    """(relu(x) + epsilon) times [cos, sin] of π position / 2 M: (B, H, L, E) -> (B, H, L, 2 E), float32 or better.

    Args:
        rows: queries or keys (B, H, L, E).
        positions: (L,) of each in its sequence, or (B, 1, L) where rows differ.
        longest: M, tokens of the longest sequence.

    Raises:
        ValueError: a position beyond the longest sequence.
    """
    if positions.device.type == "cpu" and int(positions.max()) >= longest:
        raise ValueError(f"{int(positions.max()) + 1:,} tokens; this operation is for {longest:,}")
    dtype = torch.promote_types(rows.dtype, torch.float32)
    angles = (positions.to(dtype) * (math.pi / (2 * longest))).unsqueeze(-1).to(rows.device)
    positive = torch.relu(rows.to(dtype)) + EPSILON
    return torch.cat((positive * angles.cos(), positive * angles.sin()), dim=-1)


@dataclass
class CosformerState:
    """The state of linear attention, and the number of tokens read so far."""

    linear: LinearState
    num_tokens: Tensor
    """(B,) tokens that each row has read, on the CPU."""

    def put(self, row: int, other: "CosformerState") -> None:
        """Make a row resume from a state of one row."""
        self.linear.put(row, other.linear)
        self.num_tokens[row] = other.num_tokens[0]

    def keep(self, rows: Tensor) -> None:
        """Keep the rows of these numbers (K,)."""
        self.linear.keep(rows)
        self.num_tokens = self.num_tokens[rows]


class CosformerOperation(LinearOperation):
    """Linear attention with features weighted by position."""

    reads_any_length = False

    def __init__(self, head_width: int, longest: int, *, causal: bool) -> None:
        super().__init__(WeightedRows(head_width), causal=causal)
        self.longest = longest

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        check_inputs(query, key, value, rows.valid_mask, rows.packing, empty_rows=rows.part is not None)
        return super().forward(*self._weighted(query, key, rows.positions(query.shape[2])), value, rows)

    def key_features(self, key: Tensor) -> Tensor:
        return super().key_features(weighted_by_position(key, WHOLE.positions(key.shape[2]), self.longest))

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        return super().matrix(*self._weighted(query, key, rows.positions(query.shape[2])), rows)

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        return super().matrix_rows(*self._weighted(query, key, WHOLE.positions(query.shape[2])))

    def new_state(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> CosformerState:
        linear = super().new_state(batch_size, num_heads, head_width, device)
        return CosformerState(linear, torch.zeros(batch_size, dtype=torch.int64))

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: CosformerState) -> Tensor:
        positions = state.num_tokens[:, None, None] + torch.arange(query.shape[2])
        output = super().extend(*self._weighted(query, key, positions), value, state.linear)
        state.num_tokens += query.shape[2]
        return output

    def _weighted(self, query: Tensor, key: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return (
            weighted_by_position(query, positions, self.longest),
            weighted_by_position(key, positions, self.longest),
        )


class CosformerOptions(AttentionOptions):
    """The kind cosformer has no options."""

    def build(self, layer: LayerShape) -> CosformerOperation:
        return CosformerOperation(layer.head_width, layer.max_length, causal=layer.causal)
