"""Softmax attention by blocks, by the compiled kernels: the same function as the torch path of `blocks.block_attention`."""

import torch
from torch import Tensor

from protein_lm.attention.backends.native_linear import GREATEST_WIDTH, WIDTH_STEP
from protein_lm.native.library import kernels
from protein_lm.native.structures import BlockCall


def takes(query: Tensor, value: Tensor, product: torch.dtype, block: int) -> bool:
    """Tell whether there are kernels for this call: float32 on a CPU, with groups enough for the threads."""
    library = kernels()
    return (
        query.device.type == "cpu"
        and query.dtype == value.dtype == product == torch.float32
        and block % WIDTH_STEP == query.shape[-1] % WIDTH_STEP == value.shape[-1] % WIDTH_STEP == 0
        and max(query.shape[-1], value.shape[-1]) <= GREATEST_WIDTH
        and torch.get_num_threads() <= 2 * query.shape[0]
        and library is not None
        and library.level != "plain"
        and not torch.compiler.is_compiling()
    )


def native_block_attention(
    query: Tensor, key: Tensor, value: Tensor, key_blocks: Tensor, hidden: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute `blocks.block_attention` for calls that `takes` accepts, with tensors (G, N·C, ·) in order of memory.

    Args:
        query: (G, N·C, E).
        key: (G, N·C, E).
        value: (G, N·C, X).
        key_blocks: (N, K) as in a plan.
        hidden: (G or 1, N, C, K·C).
        scale: factor of the scores.
    """
    return _forward(query, key, value, key_blocks, hidden.contiguous(), scale)


@torch.library.custom_op("protein_lm::block_attention", mutates_args=(), device_types="cpu")
def _forward(
    query: Tensor, key: Tensor, value: Tensor, key_blocks: Tensor, hidden: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    library, outputs = kernels(), _outputs(query, key, value, key_blocks, hidden, scale)
    assert library is not None
    library.block_forward(_call((query, key, value), key_blocks, hidden, scale, outputs))
    return outputs


@torch.library.custom_op("protein_lm::block_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_output: Tensor,
    grad_logsumexp: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_blocks: Tensor,
    hidden: Tensor,
    output: Tensor,
    logsumexp: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    library = kernels()
    assert library is not None
    gradients = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    call = _call((query, key, value), key_blocks, hidden, scale, (output, logsumexp))
    grad_output, grad_logsumexp = grad_output.contiguous(), grad_logsumexp.contiguous()
    call.grad_output, call.grad_logsumexp = grad_output.data_ptr(), grad_logsumexp.data_ptr()
    call.grad_query, call.grad_key, call.grad_value = (gradient.data_ptr() for gradient in gradients)
    library.block_backward(call)
    return gradients


def _call(
    rows: tuple[Tensor, ...], key_blocks: Tensor, hidden: Tensor, scale: float, outputs: tuple[Tensor, ...]
) -> BlockCall:
    groups, tokens, width = rows[0].shape
    blocks, num_keys = key_blocks.shape
    call = BlockCall(
        torch.get_num_threads(), scale, groups, blocks, num_keys, tokens // blocks, width, rows[2].shape[-1]
    )
    call.hidden_group = hidden.stride(0) if hidden.shape[0] > 1 else 0
    call.key_blocks, call.hidden = key_blocks.data_ptr(), hidden.data_ptr()
    call.query, call.key, call.value = (tensor.data_ptr() for tensor in rows)
    call.output, call.logsumexp = (tensor.data_ptr() for tensor in outputs)
    return call


@_forward.register_fake
def _outputs(query, key, value, key_blocks, hidden, scale):
    return torch.empty_like(value), value.new_empty(value.shape[:2])


@_backward.register_fake
def _gradients_of(grad_output, grad_logsumexp, query, key, value, *others):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradients(ctx, grad_output, grad_logsumexp):
    return *_backward(grad_output, grad_logsumexp, *ctx.saved_tensors, ctx.scale), None, None, None


_forward.register_autograd(_gradients, setup_context=_keep)
