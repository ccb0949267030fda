"""Exact softmax attention, O(L²) time: the yardstick of the linear kinds."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from protein_lm.attention.backends import native_exact as compiled_exact
from protein_lm.attention.checks import check_inputs
from protein_lm.attention.operations.stream import autocast_dtype
from protein_lm.attention.packing import Packing
from protein_lm.attention.reference import visible_keys


def exact_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    valid_mask: Tensor | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """Softmax attention through torch's fused operation, or the compiled kernels where they can.

    The sequences of a packed row are attended to one after the other: the time is that of their own squares.

    Args:
        query: (B, H, L, E).
        key: (B, H, L, E).
        value: (B, H, L, any).
        causal: whether a query sees itself and what is before it, or everything.
        valid_mask: (B, L) boolean, True for real tokens; padded keys are never seen. None: all are real.
        packing: the sequences of a packed row (B = 1), which do not see each other. None: each row is one sequence.

    Returns:
        (B, H, L, width of value). Rows of padded queries are finite and carry no meaning.

    Raises:
        ValueError: as `checks.check_inputs`.
    """
    check_inputs(query, key, value, valid_mask, packing)
    query, key, value = map(_to_autocast_type, (query, key, value))
    if compiled_exact.takes(query, key, value):
        return compiled_exact.compiled_exact_attention(
            query, key, value, causal=causal, valid_mask=valid_mask, packing=packing
        )
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


def _to_autocast_type(tensor: Tensor) -> Tensor:
    """As autocast would make it for torch's fused operation."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(autocast_dtype(tensor))


class KeyValueCache:
    """Keys and values (B, H, L, E) of all tokens so far, in buffers that double when they are full."""

    def __init__(self, batch_size: int, num_heads: int, head_width: int, device: torch.device) -> None:
        self.length = 0
        self._buffers = [torch.empty(batch_size, num_heads, 64, head_width, device=device) for _ in range(2)]

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, S, E); returns all so far.

        Raises:
            ValueError: another batch or another number of heads.
        """
        end = self.length + key.shape[2]
        for place, tensor in enumerate((key, value)):
            buffer = self._buffers[place]
            if tensor.shape[:2] != buffer.shape[:2]:
                raise ValueError(
                    f"the state is for {tuple(buffer.shape[:2])} rows and heads, not {tuple(tensor.shape[:2])}"
                )
            if end > buffer.shape[2]:
                larger = buffer.new_empty(*buffer.shape[:2], max(end, 2 * buffer.shape[2]), buffer.shape[3])
                larger[:, :, : self.length] = buffer[:, :, : self.length]
                self._buffers[place] = larger
            self._buffers[place][:, :, self.length : end] = tensor
        self.length = end
        keys, values = (buffer[:, :, :end] for buffer in self._buffers)
        return keys, values

    def keep(self, rows: Tensor) -> None:
        """Keep the rows of these numbers (K,) alone, in this order."""
        self._buffers = [buffer[rows.to(buffer.device)] for buffer in self._buffers]


def extend_exact_attention(query: Tensor, key: Tensor, value: Tensor, cache: KeyValueCache) -> Tensor:
    """Causal attention (B, H, S, E) of S tokens that follow those in `cache`, to which they are added."""
    seen = cache.length
    keys, values = cache.append(key, value)
    visible = None
    if query.shape[2] > 1:
        visible = torch.ones(query.shape[2], cache.length, dtype=torch.bool, device=query.device).tril(seen)
    output = scaled_dot_product_attention(query.to(keys.dtype), keys, values, attn_mask=visible)
    return output.to(value.dtype)
