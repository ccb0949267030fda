"""Softmax attention by the compiled kernels, where they are there and no gradient is asked for: the same function as
`exact.exact_attention`, whose other path, torch's fused operation, remains what it is checked against.
"""

import torch
from torch import Tensor

from protein_lm.attention.backends.native_linear import GREATEST_WIDTH, rows_of_sequences
from protein_lm.attention.packing import Packing
from protein_lm.native.library import ExactCall, Rows, kernels


def takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether there are kernels for this call."""
    is_learning = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    return (
        not is_learning
        and query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype
        and query.dtype in (torch.float32, torch.bfloat16)
        and max(query.shape[-1], value.shape[-1]) <= GREATEST_WIDTH
        and kernels() is not None
    )


def compiled_exact_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    valid_mask: Tensor | None,
    packing: Packing | None,
) -> Tensor:
    """See `exact.exact_attention`; for calls that `takes` is true of. bfloat16 inputs have bfloat16 products."""
    sequences = rows_of_sequences(query.shape[0], query.shape[2], packing)
    tensors = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (query, key, value))
    return _forward(*tensors, sequences, None if valid_mask is None else valid_mask.contiguous(), causal)


@torch.library.custom_op("protein_lm::exact_attention", mutates_args=(), device_types="cpu")
def _forward(
    query: Tensor, key: Tensor, value: Tensor, sequences: Tensor, valid_mask: Tensor | None, causal: bool
) -> Tensor:
    library = kernels()
    assert library is not None
    output = _output(query, value)
    is_bfloat16 = query.dtype == torch.bfloat16
    call = ExactCall(causal, is_bfloat16, is_bfloat16 and library.has_bfloat16, torch.get_num_threads())
    call.batch, call.heads, call.length, call.width = query.shape
    call.value_width, call.num_sequences, call.scale = value.shape[-1], sequences.shape[0], query.shape[-1] ** -0.5
    call.sequences, call.valid = sequences.data_ptr(), None if valid_mask is None else valid_mask.data_ptr()
    call.query, call.key, call.value, call.output = (Rows.of(tensor) for tensor in (query, key, value, output))
    library.exact(call)
    return output


@_forward.register_fake
def _output_of(query, key, value, sequences, valid_mask, causal):
    return _output(query, value)


def _output(query: Tensor, value: Tensor) -> Tensor:
    """(B, H, L, width of value) in the order of memory (B, L, H, width), from which heads are put together without a copy."""
    batch, heads, length, _ = query.shape
    return value.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
