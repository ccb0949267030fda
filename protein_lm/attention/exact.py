"""Exact softmax attention, O(L²) time: the yardstick of the linear kinds."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from protein_lm.attention.reference import visible_keys


def exact_attention(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, valid_mask: Tensor | None = None
) -> Tensor:
    """Softmax attention through torch's fused operation.

    Args:
        query: (B, H, L, E).
        key: (B, H, L, E).
        value: (B, H, L, any).
        causal: whether a query sees itself and what is before it, or everything.
        valid_mask: (B, L) boolean, True for real tokens; padded keys are never seen. None: all are real.

    Returns:
        (B, H, L, width of value). Rows of padded queries are finite and carry no meaning.
    """
    if valid_mask is None:
        return scaled_dot_product_attention(query, key, value, is_causal=causal)
    visible = valid_mask[:, None, None, :]
    if causal:
        length = query.shape[2]
        visible = visible_keys(length, causal=True, valid_mask=valid_mask, device=query.device)
        # A padded query before the first real token would see nothing at all, which gives NaN: let it see itself.
        visible = visible | torch.eye(length, dtype=torch.bool, device=query.device)
    return scaled_dot_product_attention(query, key, value, attn_mask=visible)
