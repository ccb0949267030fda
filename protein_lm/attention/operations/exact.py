"""Exact softmax attention by torch, and the cache from which it decodes."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from protein_lm.attention.backends.interface import ExactInputs
from protein_lm.attention.reference import visible_keys


def takes(inputs: ExactInputs) -> bool:
    """Tell that this path takes every call: it is the reference."""
    return True


def forward(inputs: ExactInputs) -> Tensor:
    """Compute `dispatch.exact_attention` with torch's fused operation.

    The sequences of a packed row are attended to one after the other: the time is that of their own squares.
    """
    query, key, value, causal, valid_mask, packing = inputs
    if packing is not None:
        lengths = packing.lengths.tolist()
        parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
        return torch.cat([scaled_dot_product_attention(q, k, v, is_causal=causal) for q, k, v in parts], dim=2)
    if valid_mask is None:
        return scaled_dot_product_attention(query, key, value, is_causal=causal)
    visible = valid_mask[:, None, None, :]
    if causal:
        length = query.shape[2]
        visible = visible_keys(length, causal=True, valid_mask=valid_mask, device=query.device)
        # A padded query before the first real token would see nothing at all, which gives NaN: let it see itself.
        visible = visible | torch.eye(length, dtype=torch.bool, device=query.device)
    return scaled_dot_product_attention(query, key, value, attn_mask=visible)


class KeyValueCache:
    """Keys and values (B, H, L, E) of all tokens so far, in buffers that double when they are full."""

    def __init__(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> None:
        self.length = 0
        self._buffers = [torch.empty(batch_size, num_heads, 64, head_width, device=device) for _ in range(2)]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, S, E), and return all so far.

        Raises:
            ValueError: another batch or another number of heads.
        """
        end = self.length + key.shape[2]
        for number, tensor in enumerate((key, value)):
            buffer = self._buffers[number]
            if tensor.shape[:2] != buffer.shape[:2]:
                raise ValueError(
                    f"the state is for {tuple(buffer.shape[:2])} rows and heads, not {tuple(tensor.shape[:2])}"
                )
            if end > buffer.shape[2]:
                larger = buffer.new_empty(*buffer.shape[:2], max(end, 2 * buffer.shape[2]), buffer.shape[3])
                larger[:, :, : self.length] = buffer[:, :, : self.length]
                self._buffers[number] = larger
            self._buffers[number][:, :, self.length : end] = tensor
        self.length = end
        keys, values = (buffer[:, :, :end] for buffer in self._buffers)
        return keys, values

    def keep(self, rows: Tensor) -> None:
        """Keep only the rows (K,), given by number, in this order."""
        self._buffers = [buffer[rows.to(buffer.device)] for buffer in self._buffers]


def extend_exact_attention(query: Tensor, key: Tensor, value: Tensor, cache: KeyValueCache) -> Tensor:
    """Attend causally from S tokens (B, H, S, E) that follow those in `cache`, and add them to it."""
    seen = cache.length
    keys, values = cache.append(key, value)
    visible = None
    if query.shape[2] > 1:
        visible = torch.ones(query.shape[2], cache.length, dtype=torch.bool, device=query.device).tril(seen)
    output = scaled_dot_product_attention(query.to(keys.dtype), keys, values, attn_mask=visible)
    return output.to(value.dtype)
