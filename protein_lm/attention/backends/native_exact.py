"""Softmax attention by the compiled kernels, where no gradient is asked for."""

import torch
from torch import Tensor

from protein_lm.attention.backends.interface import ExactInputs, needs_gradients
from protein_lm.attention.backends.native_linear import GREATEST_WIDTH, rows_of_sequences, with_contiguous_rows
from protein_lm.native.library import kernels
from protein_lm.native.structures import ExactCall, Rows


def takes(inputs: ExactInputs) -> bool:
    """Tell whether there are kernels for this call."""
    query, key, value = inputs[:3]
    return (
        not needs_gradients(query, key, value)
        and query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype
        and query.dtype in (torch.float32, torch.bfloat16)
        and max(query.shape[-1], value.shape[-1]) <= GREATEST_WIDTH
        and kernels() is not None
    )


def forward(inputs: ExactInputs) -> Tensor:
    """Compute `dispatch.exact_attention`; bfloat16 inputs have bfloat16 products."""
    query, key, value, causal, valid_mask, packing = inputs
    sequences = rows_of_sequences(query.shape[0], query.shape[2], packing)
    tensors = map(with_contiguous_rows, (query, key, value))
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
    call.query, call.key, call.value, call.output = map(Rows.of, (query, key, value, output))
    library.exact(call)
    return output


@_forward.register_fake
def _output_of(query, key, value, sequences, valid_mask, causal):
    return _output(query, value)


def _output(query: Tensor, value: Tensor) -> Tensor:
    """An empty (B, H, L, width of value), stored as (B, L, H, width): heads are then joined without a copy."""
    batch, heads, length, _ = query.shape
    return value.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
