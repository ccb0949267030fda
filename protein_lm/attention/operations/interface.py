"""The operations that attention layers call: each kind of attention behind one interface.

An operation computes outputs, its own matrix, and goes on from a state. What it computes with are the functions of the other
files; what it owns belongs to the kernel alone: a feature map, a hash, a pattern.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from protein_lm.attention.checks import check_inputs
from protein_lm.attention.dispatch import exact_attention, linear_attention
from protein_lm.attention.feature_maps.cosformer import WeightedRows, weighted_by_position
from protein_lm.attention.feature_maps.performer import FeatureMap
from protein_lm.attention.feature_maps.trainable import TrainableFeatures
from protein_lm.attention.matrix_rows import exact_matrix_rows, linear_matrix_rows
from protein_lm.attention.operations.exact import KeyValueCache, extend_exact_attention
from protein_lm.attention.operations.low_rank import (
    LengthProjections,
    linformer_attention,
    linformer_factors,
    matrix_of,
    nystrom_attention,
    nystrom_factors,
)
from protein_lm.attention.operations.lsh import (
    Hash,
    LshCache,
    extend_lsh_attention,
    lsh_attention,
    lsh_attention_matrix,
    lsh_matrix_rows,
)
from protein_lm.attention.operations.patterns import Pattern
from protein_lm.attention.operations.recurrence import LinearState, extend_linear_attention
from protein_lm.attention.operations.sparse import (
    extend_sparse_attention,
    sparse_attention,
    sparse_attention_matrix,
    sparse_matrix_rows,
)
from protein_lm.attention.reference import exact_attention_matrix, linear_attention_matrix
from protein_lm.attention.rows import WHOLE, Rows


class AttentionOperation(nn.Module):
    """What an attention layer calls between its projections; owns what belongs to the kernel alone."""

    shares_query_and_key = False
    """Whether the key is the query and is not looked at."""
    heads_per_output = 1
    """Heads of query, key and value per head of the output. With 2, the second half is what global tokens use."""
    heads_are_alike = True
    """Whether a head is computed in the same way whatever its number, so that some can be had without the others."""
    rows_can_be_replaced = False
    """Whether the rows of a state may have read different numbers of tokens, so that one can begin anew."""
    can_be_split = False
    """Whether processes that hold a stretch of a row each can compute it together, see `parallel`."""
    reads_any_length = False
    """Whether its state and weights know of no longest sequence, so that a causal model can read on and on."""
    weights_are_positive = True
    """Whether rows of the matrix are non-negative weights that sum to 1."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        """Output (B, H, L, width of value) of queries and keys (B, H, L, E)."""
        raise NotImplementedError

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        """The attention matrix (B, H, L, L): `matrix(q, k) @ v` equals the output. O(L²) memory."""
        raise NotImplementedError

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        """The matrix of rows that are whole sequences, a few of its rows at a time.

        Returns:
            A function: span of S queries -> (B, H, S, T) with T = L, or the end of the span if causal, since later keys have
            no weight. Only these rows are formed. The tensor is the caller's to change.
        """
        raise NotImplementedError

    def new_state(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> Any:
        """What `extend` carries along, before the first token; for causal operations.

        `keep(rows)` leaves it the rows of these numbers (K,); `put(row, other)` makes a row go on from a state of one row,
        where `rows_can_be_replaced`.
        """
        raise NotImplementedError

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: Any) -> Tensor:
        """Output (B, H, S, E) of S tokens that follow those in `state`, which is updated in place."""
        raise NotImplementedError


class _CachedOperation(AttentionOperation):
    """An operation that decodes from a cache of keys and values, which grows with the length."""

    def new_state(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> KeyValueCache:
        """See `AttentionOperation`."""
        return KeyValueCache(batch_size, num_heads, head_width, device)


class ExactOperation(_CachedOperation):
    """Softmax attention."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        """See `AttentionOperation`."""
        return exact_attention(query, key, value, causal=self.causal, **rows.of_one_process())

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        """See `AttentionOperation`."""
        return exact_attention_matrix(query, key, causal=self.causal, **rows.of_one_process())

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        """See `AttentionOperation`."""
        return exact_matrix_rows(query, key, causal=self.causal)

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: KeyValueCache) -> Tensor:
        """See `AttentionOperation`."""
        return extend_exact_attention(query, key, value, state)


class LinearOperation(AttentionOperation):
    """Linear attention with a feature map."""

    can_be_split = True
    reads_any_length = True
    rows_can_be_replaced = True

    def __init__(self, feature_map: FeatureMap, *, causal: bool) -> None:
        super().__init__(causal=causal)
        self.feature_map = feature_map
        self.weights_are_positive = feature_map.is_positive
        self.heads_are_alike = not isinstance(feature_map, TrainableFeatures)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        """See `AttentionOperation`."""
        return linear_attention(query, key, value, self.feature_map, causal=self.causal, **rows._asdict())

    def key_features(self, key: Tensor) -> Tensor:
        """Features (B, H, L, M) of the keys (B, H, L, E) of rows that are whole sequences."""
        return self.feature_map.key_features(key)

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        """See `AttentionOperation`."""
        return linear_attention_matrix(query, key, self.feature_map, causal=self.causal, **rows.of_one_process())

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        """See `AttentionOperation`."""
        return linear_matrix_rows(query, key, self.feature_map, causal=self.causal)

    def new_state(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> Any:
        """See `AttentionOperation`; its size does not depend on the length."""
        return LinearState(batch_size, num_heads, self.feature_map, head_width, device)

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: Any) -> Tensor:
        """See `AttentionOperation`."""
        return extend_linear_attention(query, key, value, self.feature_map, state)


@dataclass
class _CosformerState:
    linear: LinearState
    num_tokens: Tensor
    """(B,) tokens that each row has read, on the CPU."""

    def put(self, row: int, other: "_CosformerState") -> None:
        """See `LinearState`."""
        self.linear.put(row, other.linear)
        self.num_tokens[row] = other.num_tokens[0]

    def keep(self, rows: Tensor) -> None:
        """See `LinearState`."""
        self.linear.keep(rows)
        self.num_tokens = self.num_tokens[rows]


class CosformerOperation(LinearOperation):
    """Linear attention with features weighted by position."""

    reads_any_length = False

    def __init__(self, head_width: int, longest: int, *, causal: bool) -> None:
        super().__init__(WeightedRows(head_width), causal=causal)
        self.longest = longest

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        """See `AttentionOperation`."""
        check_inputs(query, key, value, rows.valid_mask, rows.packing, empty_rows=rows.part is not None)
        query, key = self._weighted(query, key, rows)
        return super().forward(query, key, value, rows)

    def key_features(self, key: Tensor) -> Tensor:
        """See `LinearOperation`."""
        return super().key_features(self._weighted(key, key, WHOLE)[1])

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        """See `AttentionOperation`."""
        query, key = self._weighted(query, key, rows)
        return super().matrix(query, key, rows)

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        """See `AttentionOperation`."""
        return super().matrix_rows(*self._weighted(query, key, WHOLE))

    def new_state(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> _CosformerState:
        """See `LinearOperation`."""
        linear = super().new_state(batch_size, num_heads, head_width, device)
        return _CosformerState(linear, torch.zeros(batch_size, dtype=torch.int64))

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: _CosformerState) -> Tensor:
        """See `AttentionOperation`."""
        positions = state.num_tokens[:, None, None] + torch.arange(query.shape[2])
        query = weighted_by_position(query, positions, self.longest)
        key = weighted_by_position(key, positions, self.longest)
        output = super().extend(query, key, value, state.linear)
        state.num_tokens += query.shape[2]
        return output

    def _weighted(self, query: Tensor, key: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        positions = rows.positions(query.shape[2])
        return (
            weighted_by_position(query, positions, self.longest),
            weighted_by_position(key, positions, self.longest),
        )


class SparseOperation(_CachedOperation):
    """Softmax attention to the keys of a pattern."""

    def __init__(self, pattern: Pattern, *, causal: bool, own_global_projections: bool = False) -> None:
        super().__init__(causal=causal)
        self.pattern = pattern
        # Only in the bidirectional form do global tokens see more than others do.
        self.heads_per_output = 2 if own_global_projections and not causal else 1
        self.heads_are_alike = self.heads_per_output == 1

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        """See `AttentionOperation`."""
        (query, key, value), of_globals = self._halves(query, key, value)
        return sparse_attention(
            query,
            key,
            value,
            self.pattern,
            causal=self.causal,
            **rows.of_one_process(),
            global_inputs=of_globals,
        )

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        """See `AttentionOperation`; rows of global tokens weigh the second half of the values."""
        (query, key), of_globals = self._halves(query, key)
        return sparse_attention_matrix(
            query,
            key,
            self.pattern,
            causal=self.causal,
            **rows.of_one_process(),
            global_inputs=of_globals,
        )

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        """See `AttentionOperation`; rows of global tokens weigh the second half of the values."""
        (query, key), of_globals = self._halves(query, key)
        return sparse_matrix_rows(query, key, self.pattern, causal=self.causal, global_inputs=of_globals)

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: KeyValueCache) -> Tensor:
        """See `AttentionOperation`."""
        return extend_sparse_attention(query, key, value, self.pattern, state)

    def _halves(self, *tensors: Tensor) -> tuple[Any, Any]:
        if self.heads_per_output == 1:
            return tensors, None
        first, second = zip(*(tensor.chunk(2, dim=1) for tensor in tensors), strict=True)
        return first, second


class LshOperation(AttentionOperation):
    """Softmax attention within buckets of a hash."""

    shares_query_and_key = True
    heads_are_alike = False

    def __init__(self, hashing: Hash, window: int, *, causal: bool) -> None:
        super().__init__(causal=causal)
        self.hashing = hashing
        self.window = window

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        """See `AttentionOperation`."""
        return lsh_attention(
            query,
            value,
            self.hashing(query),
            window=self.window,
            block=Pattern.block,
            causal=self.causal,
            **rows.of_one_process(),
        )

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        """See `AttentionOperation`."""
        return lsh_attention_matrix(
            query,
            self.hashing(query),
            window=self.window,
            causal=self.causal,
            **rows.of_one_process(),
        )

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        """See `AttentionOperation`."""
        return lsh_matrix_rows(query, self.hashing(query), window=self.window, causal=self.causal)

    def new_state(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> LshCache:
        """See `AttentionOperation`; it grows with the length."""
        return LshCache(batch_size, num_heads, head_width, device)

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: LshCache) -> Tensor:
        """See `AttentionOperation`."""
        return extend_lsh_attention(query, value, self.hashing, self.window, state)


class LinformerOperation(AttentionOperation):
    """Softmax attention to learned mixtures of keys."""

    weights_are_positive = False

    def __init__(self, projections: LengthProjections) -> None:
        super().__init__(causal=False)
        self.projections = projections

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        """See `AttentionOperation`."""
        return linformer_attention(query, key, value, self.projections, **rows.of_one_process())

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        """See `AttentionOperation`."""
        return matrix_of(lambda value: self(query, key, value, rows), query)

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        """See `AttentionOperation`."""
        left, right = linformer_factors(query, key, self.projections)
        return lambda span: left[:, :, span] @ right


class NystromOperation(AttentionOperation):
    """Softmax attention through landmarks."""

    weights_are_positive = False

    def __init__(self, num_landmarks: int) -> None:
        super().__init__(causal=False)
        self.num_landmarks = num_landmarks

    def forward(self, query: Tensor, key: Tensor, value: Tensor, rows: Rows = WHOLE) -> Tensor:
        """See `AttentionOperation`."""
        return nystrom_attention(query, key, value, self.num_landmarks, **rows.of_one_process())

    def matrix(self, query: Tensor, key: Tensor, rows: Rows = WHOLE) -> Tensor:
        """See `AttentionOperation`."""
        return matrix_of(lambda value: self(query, key, value, rows), query)

    def matrix_rows(self, query: Tensor, key: Tensor) -> Callable[[slice], Tensor]:
        """See `AttentionOperation`."""
        left, right = nystrom_factors(query, key, self.num_landmarks)
        return lambda span: left[:, :, span] @ right
