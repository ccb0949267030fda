"""Rotary positions by the compiled kernels: one pass over memory instead of six."""

from typing import Any

import torch
from torch import Tensor

from protein_lm.attention.backends.interface import RotaryInputs
from protein_lm.attention.backends.native_linear import GREATEST_WIDTH
from protein_lm.native.library import kernels
from protein_lm.native.structures import RotaryCall

WHOLE_VECTORS = 32
"""Channels of a head of which no vector of any level reaches into the next head."""


def takes(inputs: RotaryInputs) -> bool:
    """Tell whether there is a kernel for this call: whole rows (parts, B, H, L, E) of all heads, on a CPU."""
    heads, cosines, _ = inputs
    return not torch.is_grad_enabled() and _is_for_kernels(heads, cosines) and heads.stride(2) == heads.shape[-1]


def takes_parts(parts: Tensor, cosines: Tensor) -> bool:
    """Tell whether `rotate_parts` can compute this call: with gradients, and widths that fill vectors."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and _is_for_kernels(parts, cosines)
        and parts.shape[-1] % WHOLE_VECTORS == 0
    )


def _is_for_kernels(heads: Tensor, cosines: Tensor) -> bool:
    return (
        heads.ndim == 5
        and heads.device.type == "cpu"
        and heads.dtype in (torch.float32, torch.bfloat16)
        and cosines.dtype == torch.float32
        and cosines.shape == (heads.shape[3], heads.shape[4] // 2)
        and heads.stride(-1) == 1
        and heads.shape[-1] <= GREATEST_WIDTH
        and kernels() is not None
    )


def forward(inputs: RotaryInputs) -> Tensor:
    """Compute `dispatch.rotate` of (parts, B, H, L, E); the result is stored as (parts, B, L, H, E)."""
    heads, cosines, sines = inputs
    return _rotate(heads, cosines.contiguous(), sines.contiguous())


def rotate_parts(parts: Tensor, num_turned: int, cosines: Tensor, sines: Tensor) -> tuple[Tensor, ...]:
    """Compute `dispatch.rotate_parts`; gradients of all parts come together in one tensor (B, L, N, H, E)."""
    return _PartsRotation.apply(parts, num_turned, cosines.contiguous(), sines.contiguous())


class _PartsRotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor, num_turned: int, cosines: Tensor, sines: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cosines, sines)
        ctx.num_turned = num_turned
        turned = _empty_like(parts[:num_turned])
        _rotate_into(turned, parts[:num_turned], cosines, sines)
        return *turned.unbind(), *parts[num_turned:].unbind()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        cosines, sines = ctx.saved_tensors
        batch, heads, length, width = gradients[0].shape
        parts = gradients[0].new_empty(batch, length, len(gradients), heads, width).permute(2, 0, 3, 1, 4)
        sines = -sines
        for number, gradient in enumerate(gradients):
            if number < ctx.num_turned:
                gradient = gradient if gradient.stride(-1) == 1 else gradient.contiguous()
                _rotate_into(parts[number : number + 1], gradient[None], cosines, sines)
            else:
                parts[number] = gradient
        return parts, None, None, None


@torch.library.custom_op("protein_lm::rotate", mutates_args=(), device_types="cpu")
def _rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    turned = _empty_like(heads)
    _rotate_into(turned, heads, cosines, sines)
    return turned


def _rotate_into(target: Tensor, heads: Tensor, cosines: Tensor, sines: Tensor) -> None:
    """Turn heads (parts, B, H, L, E) into a tensor of the same shape, in which the heads of a token follow each other."""
    library = kernels()
    assert library is not None
    call = RotaryCall(heads.dtype == torch.bfloat16, torch.get_num_threads(), *heads.shape)
    call.heads_in, call.heads_out = heads.data_ptr(), target.data_ptr()
    call.part_in, call.batch_in, call.head_in, call.token_in = heads.stride()[:4]
    call.part_out, call.batch_out, _, call.token_out = target.stride()[:4]
    call.cosines, call.sines = cosines.data_ptr(), sines.data_ptr()
    library.rotate(call)


@_rotate.register_fake
def _fake(heads, cosines, sines):
    return _empty_like(heads)


def _empty_like(heads: Tensor) -> Tensor:
    parts, batch, num_heads, length, width = heads.shape
    return heads.new_empty(parts, batch, length, num_heads, width).transpose(2, 3)
