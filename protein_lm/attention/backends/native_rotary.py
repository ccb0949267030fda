"""Rotary positions by the compiled kernels: one pass over memory instead of six."""

import torch
from torch import Tensor

from protein_lm.attention.backends.interface import RotaryInputs
from protein_lm.attention.backends.native_linear import GREATEST_WIDTH
from protein_lm.native.library import kernels
from protein_lm.native.structures import RotaryCall


def takes(inputs: RotaryInputs) -> bool:
    """Tell whether there is a kernel for this call: whole rows (parts, B, H, L, E) of all heads, on a CPU."""
    heads, cosines, _ = inputs
    return (
        not torch.is_grad_enabled()
        and heads.ndim == 5
        and heads.device.type == "cpu"
        and heads.dtype in (torch.float32, torch.bfloat16)
        and cosines.dtype == torch.float32
        and cosines.shape == (heads.shape[3], heads.shape[4] // 2)
        and heads.stride(-1) == 1
        and heads.stride(2) == heads.shape[-1] <= GREATEST_WIDTH
        and kernels() is not None
    )


def forward(inputs: RotaryInputs) -> Tensor:
    """Compute `dispatch.rotate` of (parts, B, H, L, E); the result is stored as (parts, B, L, H, E)."""
    heads, cosines, sines = inputs
    return _rotate(heads, cosines.contiguous(), sines.contiguous())


@torch.library.custom_op("protein_lm::rotate", mutates_args=(), device_types="cpu")
def _rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    library, turned = kernels(), _empty_like(heads)
    assert library is not None
    call = RotaryCall(heads.dtype == torch.bfloat16, torch.get_num_threads(), *heads.shape)
    call.heads_in, call.heads_out = heads.data_ptr(), turned.data_ptr()
    call.part_in, call.batch_in, call.head_in, call.token_in = heads.stride()[:4]
    call.cosines, call.sines = cosines.data_ptr(), sines.data_ptr()
    library.rotate(call)
    return turned


@_rotate.register_fake
def _fake(heads, cosines, sines):
    return _empty_like(heads)


def _empty_like(heads: Tensor) -> Tensor:
    parts, batch, num_heads, length, width = heads.shape
    return heads.new_empty(parts, batch, length, num_heads, width).transpose(2, 3)
