"""The table of attention kinds: a name in a recipe -> an operation.

A new kind is one file with its operation, one entry in `ATTENTION_KINDS`, and one line in the shared contract test.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from protein_lm.attention.exact import KeyValueCache, exact_attention, extend_exact_attention
from protein_lm.attention.feature_maps import FeatureMap, RandomFeatureMap, ReLUFeatures, SoftmaxFeatures
from protein_lm.attention.linear import linear_attention
from protein_lm.attention.packing import Packing
from protein_lm.attention.recurrence import LinearState, extend_linear_attention
from protein_lm.attention.reference import exact_attention_matrix, linear_attention_matrix


class AttentionOperation(nn.Module):
    """What an attention layer calls between its projections; owns nothing but a feature map, if it has one."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        valid_mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Output (B, H, L, width of value) of queries and keys (B, H, L, E).

        Tokens that are False in valid_mask (B, L) are seen by none; the sequences of a packing do not see each other.
        """
        raise NotImplementedError

    def matrix(
        self, query: Tensor, key: Tensor, valid_mask: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        """The attention matrix (B, H, L, L), rows sum to 1; `matrix(q, k) @ v` equals the output. O(L²) memory."""
        raise NotImplementedError

    def new_state(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> Any:
        """What `extend` carries along, before the first token; for causal operations."""
        raise NotImplementedError

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: Any) -> Tensor:
        """Output (B, H, S, E) of S tokens that follow those in `state`, which is updated in place."""
        raise NotImplementedError


class ExactOperation(AttentionOperation):
    """Softmax attention."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        valid_mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """See `AttentionOperation`."""
        return exact_attention(query, key, value, causal=self.causal, valid_mask=valid_mask, packing=packing)

    def matrix(
        self, query: Tensor, key: Tensor, valid_mask: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        """See `AttentionOperation`."""
        return exact_attention_matrix(query, key, causal=self.causal, valid_mask=valid_mask, packing=packing)

    def new_state(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> KeyValueCache:
        """See `AttentionOperation`; the cache grows with the length."""
        return KeyValueCache(batch_size, num_heads, head_width, device)

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: KeyValueCache) -> Tensor:
        """See `AttentionOperation`."""
        return extend_exact_attention(query, key, value, state)


class LinearOperation(AttentionOperation):
    """Linear attention with a feature map."""

    def __init__(self, feature_map: FeatureMap, *, causal: bool) -> None:
        super().__init__(causal=causal)
        self.feature_map = feature_map

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        valid_mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """See `AttentionOperation`."""
        return linear_attention(
            query, key, value, self.feature_map, causal=self.causal, valid_mask=valid_mask, packing=packing
        )

    def matrix(
        self, query: Tensor, key: Tensor, valid_mask: Tensor | None = None, packing: Packing | None = None
    ) -> Tensor:
        """See `AttentionOperation`."""
        return linear_attention_matrix(
            query, key, self.feature_map, causal=self.causal, valid_mask=valid_mask, packing=packing
        )

    def new_state(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> LinearState:
        """See `AttentionOperation`; its size does not depend on the length."""
        return LinearState(batch_size * num_heads, self.feature_map, head_width, device)

    def extend(self, query: Tensor, key: Tensor, value: Tensor, state: LinearState) -> Tensor:
        """See `AttentionOperation`."""
        return extend_linear_attention(query, key, value, self.feature_map, state)


def _exact(head_width: int, num_features: int, projection: str, *, causal: bool) -> AttentionOperation:
    return ExactOperation(causal=causal)


def _random_features(
    map_class: type[RandomFeatureMap], head_width: int, num_features: int, projection: str, *, causal: bool
) -> AttentionOperation:
    return LinearOperation(map_class(head_width, num_features, projection), causal=causal)


ATTENTION_KINDS: dict[str, Callable[..., AttentionOperation]] = {
    "exact": _exact,
    "performer-relu": partial(_random_features, ReLUFeatures),
    "performer-softmax": partial(_random_features, SoftmaxFeatures),
}
"""Name -> builder `(head_width, num_features, projection, *, causal)`; kinds without features ignore these."""
