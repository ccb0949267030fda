"""Rotary positions by the compiled kernels, where they are there: one pass over memory instead of six."""

import torch
from torch import Tensor

from protein_lm.attention.backends.native_linear import GREATEST_WIDTH
from protein_lm.native.library import RotaryCall, kernels

WHOLE_VECTORS = 32
"""Channels of a head of which no vector of any level reaches into the next head."""


def takes(heads: Tensor, cosines: Tensor) -> bool:
    """Whether there is a kernel for `rotate` of such tensors: whole rows of all heads, on a CPU."""
    return (
        heads.ndim == 5
        and heads.device.type == "cpu"
        and heads.dtype in (torch.float32, torch.bfloat16)
        and cosines.dtype == torch.float32
        and cosines.shape == (heads.shape[3], heads.shape[4] // 2)
        and heads.stride(-1) == 1
        and heads.shape[-1] <= GREATEST_WIDTH
        and (heads.stride(2) == heads.shape[-1] or heads.shape[-1] % WHOLE_VECTORS == 0)
        and kernels() is not None
    )


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """See `positions.rotate`; for calls that `takes` is true of, (parts, B, H, L, E), which the result has in the order of
    memory (parts, B, L, H, E).
    """
    return _rotate(heads, cosines.contiguous(), sines.contiguous())


@torch.library.custom_op("protein_lm::rotate", mutates_args=(), device_types="cpu")
def _rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    turned = _turned(heads)
    rotate_into(turned, heads, cosines, sines)
    return turned


def rotate_into(target: Tensor, heads: Tensor, cosines: Tensor, sines: Tensor) -> None:
    """As `rotate`, into a tensor (parts, B, H, L, E) whose heads of a token lie side by side."""
    library = kernels()
    assert library is not None and target.stride()[2] == heads.shape[-1]
    call = RotaryCall(heads.dtype == torch.bfloat16, torch.get_num_threads(), *heads.shape)
    call.heads_in, call.heads_out = heads.data_ptr(), target.data_ptr()
    call.part_in, call.batch_in, call.head_in, call.token_in = heads.stride()[:4]
    call.part_out, call.batch_out, _, call.token_out = target.stride()[:4]
    call.cosines, call.sines = cosines.data_ptr(), sines.data_ptr()
    library.rotate(call)


@_rotate.register_fake
def _turned_of(heads, cosines, sines):
    return _turned(heads)


def _turned(heads: Tensor) -> Tensor:
    parts, batch, num_heads, length, width = heads.shape
    return heads.new_empty(parts, batch, length, num_heads, width).transpose(2, 3)
