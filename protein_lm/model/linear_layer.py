"""Linear layers, by the compiled kernels where these are faster: products in float32 on a CPU.

The kernels serve widths up to some hundreds, which general matrix products serve badly, and apply GELU on the way.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from protein_lm.attention.operations.linear_stream import autocast_dtype
from protein_lm.native.library import kernels
from protein_lm.native.structures import LinearCall

FEWEST_TOKENS = 64
"""Fewer are not worth laying out the weights anew."""
LARGEST_MATRIX = 2**20
"""Weights of the largest matrix that the kernels take; each thread has a gradient of its own."""
STEP = 32
"""Widths are multiples of it."""


class Linear(nn.Linear):
    """torch's linear layer, with the kernels where they take its input."""

    def forward(self, input: Tensor, *, activates: bool = False) -> Tensor:
        """(..., inputs) -> (..., outputs); with `activates`, of GELU of the input."""
        if takes(input, self.weight):
            rows = input.reshape(-1, self.in_features)
            return _forward(rows, self.weight, self.bias, activates).view(*input.shape[:-1], self.out_features)
        return super().forward(functional.gelu(input) if activates else input)


def takes(tensor: Tensor, weight: Tensor) -> bool:
    """Whether there are kernels for a product of rows with a matrix of weights, and they are worth it."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == weight.dtype == autocast_dtype(tensor) == torch.float32
        and weight.is_contiguous()
        and weight.shape[0] % STEP == weight.shape[1] % STEP == 0
        and weight.numel() <= LARGEST_MATRIX
        and tensor.numel() >= FEWEST_TOKENS * weight.shape[1]
        and (library := kernels()) is not None
        and library.level != "plain"
        and not torch.compiler.is_compiling()
    )


@torch.library.custom_op("protein_lm::linear", mutates_args=(), device_types="cpu")
def _forward(rows: Tensor, weight: Tensor, bias: Tensor | None, activates: bool) -> Tensor:
    """(T, outputs) of rows (T, inputs)."""
    rows, output = _by_rows(rows), rows.new_empty(rows.shape[0], weight.shape[0])
    call = _call(rows, weight, activates)
    call.bias, call.output = None if bias is None else bias.data_ptr(), output.data_ptr()
    _kernels().linear_forward(call)
    return output


@torch.library.custom_op("protein_lm::linear_backward", mutates_args=(), device_types="cpu")
def _backward(
    gradient: Tensor,
    rows: Tensor,
    weight: Tensor,
    activates: bool,
    needs_rows: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows, weight and bias; empty where they are not needed."""
    rows, gradient = _by_rows(rows), _by_rows(gradient)
    gradients = _gradients_of(gradient, rows, weight, activates, needs_rows, needs_weight, needs_bias)
    call = _call(rows, weight, activates)
    call.grad_output, call.grad_stride = gradient.data_ptr(), gradient.stride(0)
    call.grad_input, call.grad_weight, call.grad_bias = (each.data_ptr() or None for each in gradients)
    _kernels().linear_backward(call)
    return gradients


def _by_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


def _kernels():
    library = kernels()
    assert library is not None
    return library


def _call(rows: Tensor, weight: Tensor, activates: bool) -> LinearCall:
    call = LinearCall(
        activates, torch.get_num_threads(), rows.shape[0], weight.shape[1], weight.shape[0], rows.stride(0)
    )
    call.input, call.weight = rows.data_ptr(), weight.data_ptr()
    return call


@_forward.register_fake
def _output_of(rows, weight, bias, activates):
    return rows.new_empty(rows.shape[0], weight.shape[0])


@_backward.register_fake
def _gradients_of(gradient, rows, weight, activates, needs_rows, needs_weight, needs_bias):
    return (
        rows.new_empty(rows.shape if needs_rows else 0),
        weight.new_empty(weight.shape if needs_weight else 0),
        weight.new_empty(weight.shape[0] if needs_bias else 0),
    )


def _keep(ctx, inputs, output) -> None:
    rows, weight, _, ctx.activates = inputs
    ctx.save_for_backward(rows, weight)


def _gradients(ctx, gradient):
    needed = ctx.needs_input_grad[:3]
    gradients = _backward(gradient, *ctx.saved_tensors, ctx.activates, *needed)
    return *(each if needs else None for each, needs in zip(gradients, needed, strict=True)), None


_forward.register_autograd(_gradients, setup_context=_keep)
