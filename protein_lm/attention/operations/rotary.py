"""Rotary positions by torch: pairs (i, i + E/2) of each head are turned by an angle.

Source: Su et al. 2021 (arXiv 2104.09864), in the half-split layout of ESM-2.
"""

from typing import Any

import torch
from torch import Tensor

from protein_lm.attention.backends.interface import RotaryInputs

ROTATED_AT_ONCE = 512
"""Tokens turned at a time, so that intermediate results stay in the cache."""


def takes(inputs: RotaryInputs) -> bool:
    """Tell that this path takes every call: it is the reference."""
    return True


def forward(inputs: RotaryInputs) -> Tensor:
    """Compute `dispatch.rotate`."""
    return _Rotation.apply(*inputs) if torch.is_grad_enabled() else _turn(*inputs)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _turn(heads, cosines, sines)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        cosines, sines = ctx.saved_tensors
        return _turn(gradients[0], cosines, -sines), None, None


def _turn(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    half = heads.shape[-1] // 2
    if heads.shape[-2] == 1 and heads.dtype == cosines.dtype:  # a token of decoding: fewer operations, same numbers
        first, second = heads[..., :half], heads[..., half:]
        left = (first * cosines).addcmul_(second, sines, value=-1)
        return torch.cat((left, (second * cosines).addcmul_(first, sines)), dim=-1)
    turned = torch.empty_like(heads, memory_format=torch.contiguous_format)
    for start in range(0, heads.shape[-2], ROTATED_AT_ONCE):
        span = slice(start, start + ROTATED_AT_ONCE)
        rows = heads[..., span, :].to(torch.promote_types(heads.dtype, cosines.dtype))
        first, second = rows[..., :half], rows[..., half:]
        cosine, sine = cosines[..., span, :], sines[..., span, :]
        turned[..., span, :half] = (first * cosine).addcmul_(second, sine, value=-1)
        turned[..., span, half:] = (second * cosine).addcmul_(first, sine)
    return turned
