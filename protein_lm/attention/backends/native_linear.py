"""Linear attention by the compiled kernels, for the feature maps that they know.

Operands are float32. They are bfloat16 where the input or autocast says so and the processor can multiply them. The backward
pass needs the inputs, the output, its normalizers, and the state before each chunk of a causal row.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm.attention.backends.interface import LinearInputs, needs_gradients
from protein_lm.attention.feature_maps.generalized import EluFeatures
from protein_lm.attention.feature_maps.performer import FeatureMap, ReLUFeatures, SoftmaxFeatures
from protein_lm.attention.packing import Packing
from protein_lm.native.library import Kernels, kernels
from protein_lm.native.structures import LINEAR_ARRAYS, LinearAttentionCall, Rows

GREATEST_WIDTH = 128
"""The greatest width of queries, keys and values."""
WIDTH_STEP = 32
"""Widths in states are padded to multiples of it."""
FEATURES_STEP = 32
"""Numbers of features are multiples of it."""


class MapForm(NamedTuple):
    """A feature map as the kernels know it."""

    number: int
    """Its number in `Map` of linear_attention.cpp."""
    projection: Tensor
    """(M, E) float32, scaled."""
    constants: list[float]
    """epsilon, headroom, floor, scale."""
    half_norms: Tensor | None = None
    """(M,) |w|²/2."""


def _relu(feature_map: ReLUFeatures) -> MapForm:
    return MapForm(0, feature_map.scaled_projection(), [feature_map.epsilon, 0.0, 0.0, 1.0])


def _softmax(feature_map: SoftmaxFeatures) -> MapForm:
    projection = feature_map.projection.float()
    constants = [0.0, feature_map.headroom, feature_map.floor, feature_map.scale]
    return MapForm(1, projection * feature_map.scale, constants, projection.square().sum(-1) / 2)


def _elu(feature_map: EluFeatures) -> MapForm:
    return MapForm(2, torch.eye(feature_map.num_features), [0.0, 0.0, 0.0, 1.0])


FORMS: dict[type, Callable[..., MapForm]] = {ReLUFeatures: _relu, SoftmaxFeatures: _softmax, EluFeatures: _elu}


def takes(inputs: LinearInputs) -> bool:
    """Tell whether there are kernels for this call: whole rows on a CPU, and features that the kernels know."""
    query, value = inputs.query, inputs.value
    return (
        inputs.part is None
        and is_among_kernels(inputs.feature_map, max(query.shape[-1], value.shape[-1]))
        and query.device.type == "cpu"
        and query.dtype == value.dtype
        and query.dtype in (torch.float32, torch.bfloat16)
        and kernels() is not None
    )


def is_among_kernels(feature_map: FeatureMap, width: int) -> bool:
    """Tell whether a CPU would have kernels for features of heads of a width, if they were built."""
    return type(feature_map) in FORMS and feature_map.num_features % FEATURES_STEP == 0 and width <= GREATEST_WIDTH


def forward(inputs: LinearInputs) -> Tensor:
    """Compute `dispatch.linear_attention`."""
    query, key, value, feature_map, causal, product, valid_mask, packing, _ = inputs
    library = kernels()
    assert library is not None
    plan = _plan(query.shape[0], query.shape[2], library.chunk if causal else None, packing)
    form = FORMS[type(feature_map)](feature_map)
    products_are_bfloat16 = product == torch.bfloat16 and library.has_bfloat16
    features_are_bfloat16 = products_are_bfloat16 and feature_map.takes_bfloat16 and query.dtype == torch.bfloat16
    return _forward(
        *map(with_contiguous_rows, (query, key, value)),
        form.projection,
        form.half_norms,
        valid_mask.contiguous() if valid_mask is not None else None,
        plan.sequences,
        [form.number, causal, products_are_bfloat16, features_are_bfloat16],
        form.constants,
        plan.num_states if needs_gradients(query, key, value) else 0,
    )[0]


def with_contiguous_rows(tensor: Tensor) -> Tensor:
    """Copy a tensor only if its last axis is not contiguous."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def rows_of_sequences(batch: int, length: int, packing: Packing | None) -> Tensor:
    """Return (N, 4): row of each sequence, its first token, the token after its last one, and a number without meaning."""
    return _plan(batch, length, None, packing).sequences


class _Plan(NamedTuple):
    sequences: Tensor
    """(N, 4) row of the batch, first token, the token after the last one, number of the first state."""
    num_states: int


def _plan(batch: int, length: int, chunk: Callable[[int], int] | None, packing: Packing | None) -> _Plan:
    """Plan causal rows, in chunks whose tokens depend on the length of a sequence, or bidirectional rows (None)."""
    if packing is None:
        return _plan_of_rows(batch, length, chunk(length) if chunk else 0)
    chunks = [chunk(int(each)) for each in packing.lengths] if chunk else [0]
    key = ("compiled", *sorted(set(chunks)))
    return packing.plan(key, lambda: _plan_of_packing(packing.boundaries, np.asarray(chunks)))


@lru_cache(maxsize=256)
def _plan_of_rows(batch: int, length: int, chunk: int) -> _Plan:
    per_row = -(-length // chunk) - 1 if chunk else 1
    with torch.inference_mode(False):
        table = torch.tensor([[row, 0, length, row * per_row] for row in range(batch)])
    return _Plan(table, batch * per_row)


def _plan_of_packing(boundaries: NDArray[np.int64], chunks: NDArray[np.int64]) -> _Plan:
    lengths = np.diff(boundaries)
    per_sequence = -(-lengths // chunks) - 1 if chunks.all() else np.ones_like(lengths)
    first_states = np.cumsum(per_sequence) - per_sequence
    table = np.stack([np.zeros_like(lengths), boundaries[:-1], boundaries[1:], first_states], axis=1)
    longest_first = np.argsort(-lengths, kind="stable")  # threads then end at about the same time
    with torch.inference_mode(False):  # plans are remembered, also for calls with gradients
        return _Plan(torch.from_numpy(np.ascontiguousarray(table[longest_first])), int(per_sequence.sum()))


@torch.library.custom_op("protein_lm::linear_attention", mutates_args=(), device_types="cpu")
def _forward(
    query: Tensor, key: Tensor, value: Tensor, projection: Tensor, half_norms: Tensor | None, valid_mask: Tensor | None,
    sequences: Tensor, switches: list[int], constants: list[float], num_states: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute outputs, and the numbers that the backward pass needs of them.

    `switches` are the number of the feature map and three flags: causal attention, bfloat16 operands of products, and those
    of the products that form features. `constants` are those of `MapForm`.

    Returns:
        Output, normalizers (B, H, L) float32, states (num_states, H, M, X) in the products' type, their sums (·, H, M).
    """
    outputs = _outputs(query, value, projection, switches, num_states)
    arrays = projection, half_norms, sequences, valid_mask, *outputs[1:]
    library, call = _call((query, key, value), arrays, switches, constants)
    call.output = Rows.of(outputs[0])
    library.forward(call)
    return outputs


@torch.library.custom_op("protein_lm::linear_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_output: Tensor, query: Tensor, key: Tensor, value: Tensor, projection: Tensor, half_norms: Tensor | None,
    valid_mask: Tensor | None, sequences: Tensor, output: Tensor, normalizer: Tensor, states: Tensor, sums: Tensor,
    switches: list[int], constants: list[float],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the gradients of query, key and value."""
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    arrays = projection, half_norms, sequences, valid_mask, normalizer, states, sums
    library, call = _call((query, key, value), arrays, switches, constants)
    grad_output = with_contiguous_rows(grad_output)
    call.output, call.grad_output = Rows.of(output), Rows.of(grad_output)
    call.grad_query, call.grad_key, call.grad_value = map(Rows.of, gradients)
    library.backward(call)
    return gradients


def _call(
    rows: tuple[Tensor, Tensor, Tensor], arrays: tuple[Tensor | None, ...], switches: list[int], constants: list[float]
) -> tuple[Kernels, LinearAttentionCall]:
    """Return the kernels, and the part of a call that both passes share.

    `rows` are query, key and value; `arrays` those of `LINEAR_ARRAYS`, in its order.
    """
    library = kernels()
    assert library is not None
    query, _, value = rows
    projection, _, sequences, *_ = arrays
    assert projection is not None and sequences is not None
    call = LinearAttentionCall()
    call.map, call.causal, call.products_are_bfloat16, call.features_are_bfloat16 = switches
    call.inputs_are_bfloat16, call.num_threads = query.dtype == torch.bfloat16, torch.get_num_threads()
    call.batch, call.heads, call.length, call.width = query.shape
    call.value_width, call.num_features, call.num_sequences = value.shape[-1], projection.shape[0], sequences.shape[0]
    call.epsilon, call.headroom, call.floor, call.scale = constants
    for name, array in zip(LINEAR_ARRAYS, arrays, strict=True):
        setattr(call, name, None if array is None else array.data_ptr() or None)
    call.query, call.key, call.value = map(Rows.of, rows)
    return library, call


@_forward.register_fake
def _fake_outputs(
    query, key, value, projection, half_norms, valid_mask, sequences, switches, constants, num_states
):  # fmt: skip
    return _outputs(query, value, projection, switches, num_states)


def _outputs(
    query: Tensor, value: Tensor, projection: Tensor, switches: list[int], num_states: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, length, _ = query.shape
    padded_width = -(-value.shape[-1] // WIDTH_STEP) * WIDTH_STEP
    dtype = torch.bfloat16 if switches[2] else torch.float32
    return (
        torch.empty_like(value),
        value.new_empty(batch, heads, length, dtype=torch.float32),
        value.new_empty(num_states, heads, projection.shape[0], padded_width, dtype=dtype),
        value.new_empty(num_states, heads, projection.shape[0], dtype=torch.float32),
    )


@_backward.register_fake
def _fake_gradients(grad_output, query, key, value, *others):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx, inputs, output) -> None:
    *tensors, switches, constants, _ = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.settings = switches, constants


def _gradients(ctx, grad_output, *_):
    return *_backward(grad_output, *ctx.saved_tensors, *ctx.settings), *[None] * 7


_forward.register_autograd(_gradients, setup_context=_keep)
