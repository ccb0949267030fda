"""Textbook O(L²) twins of the attention operations: the oracle of the tests, and the matrices that analysis shows.

Shapes: query and key (B, H, L, E), value (B, H, L, any), valid_mask (B, L) True for real tokens, matrices (B, H, L, L).
Rows of a matrix sum to 1 over the keys that a query may see. A query that may see no key (padding before the first real
token of a causal row) has a row of zeros.
"""

import torch
from torch import Tensor

from protein_lm.attention.feature_maps.performer import FeatureMap
from protein_lm.attention.packing import Packing


def visible_keys(
    length: int, *, causal: bool, valid_mask: Tensor | None, device: torch.device, packing: Packing | None = None
) -> Tensor:
    """Tell which keys (last axis) each query may see: boolean (B or 1, 1, L, L)."""
    visible = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    if causal:
        visible = visible.tril()
    if valid_mask is not None:
        visible = visible & valid_mask[:, None, None, :]
    if packing is not None:
        sequences = torch.from_numpy(packing.sequences).to(device)
        visible = visible & (sequences[:, None] == sequences)
    return visible


def exact_attention_matrix(
    query: Tensor, key: Tensor, *, causal: bool, valid_mask: Tensor | None = None, packing: Packing | None = None
) -> Tensor:
    """Form the softmax attention matrix (B, H, L, L) of q·k / √E."""
    visible = visible_keys(query.shape[2], causal=causal, valid_mask=valid_mask, device=query.device, packing=packing)
    scores = (query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
    return torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1).nan_to_num(0.0)


def linear_attention_matrix(
    query: Tensor,
    key: Tensor,
    feature_map: FeatureMap,
    *,
    causal: bool,
    valid_mask: Tensor | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """Form the matrix (B, H, L, L) that a linear attention implies: φ(q)·φ(k), rows normalized."""
    visible = visible_keys(query.shape[2], causal=causal, valid_mask=valid_mask, device=query.device, packing=packing)
    kernel = feature_map.query_features(query) @ feature_map.key_features(key).transpose(-2, -1)
    kernel = kernel * visible
    normalizer = kernel.sum(-1, keepdim=True)
    return kernel / torch.where(normalizer == 0, 1, normalizer)
