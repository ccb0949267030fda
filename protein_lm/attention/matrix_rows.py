"""Rows of attention matrices, a few at a time, for one sequence without padding.

Analysis walks over long sequences with these: no (L, L) is ever in memory. Spans count queries from 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from protein_lm.attention.feature_maps.performer import FeatureMap


def exact_matrix_rows(query: Tensor, key: Tensor, *, causal: bool) -> Callable[[slice], Tensor]:
    """Form rows of the softmax attention of (B, H, L, E); see `AttentionOperation.matrix_rows`."""
    scaled = query * query.shape[-1] ** -0.5

    def rows(span: slice) -> Tensor:
        scores = scaled[:, :, span] @ key[:, :, : _end(span, key, causal)].mT
        if causal:
            scores += scores.new_full(scores.shape[-2:], -torch.inf).triu_(span.start + 1)
        return torch.softmax(scores, dim=-1)

    return rows


def linear_matrix_rows(
    query: Tensor, key: Tensor, feature_map: FeatureMap, *, causal: bool
) -> Callable[[slice], Tensor]:
    """Form rows of the matrix that a linear attention of (B, H, L, E) implies; features of all keys stay in memory."""
    key_features = feature_map.key_features(key).mT.contiguous()

    def rows(span: slice) -> Tensor:
        kernel = feature_map.query_features(query[:, :, span]) @ key_features[..., : _end(span, key, causal)]
        if causal:
            kernel.tril_(span.start)
        normalizer = kernel.sum(-1, keepdim=True)
        return kernel.div_(torch.where(normalizer == 0, 1, normalizer))

    return rows


def _end(span: slice, key: Tensor, causal: bool) -> int:
    return span.stop if causal else key.shape[2]
