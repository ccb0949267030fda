"""Linear attention by the compiled kernels, where they are there and the features are among theirs: the same function as
`linear.linear_attention`, which remains what it is checked against.

Operands are float32, or bfloat16 where the input or autocast says so and the processor multiplies them. Kept for the backward
pass: the inputs, the output, its normalizers, and of a causal row the state before each chunk.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm.attention.feature_maps.generalized import EluFeatures
from protein_lm.attention.feature_maps.performer import FeatureMap, ReLUFeatures, SoftmaxFeatures
from protein_lm.attention.packing import Packing
from protein_lm.native.library import Call, Kernels, Rows, kernels

GREATEST_WIDTH = 128
"""Of queries, keys and values."""
WIDTH_STEP = 32
"""What widths are padded to in states."""
FEATURES_STEP = 32
"""Features come in multiples of it."""


class MapForm(NamedTuple):
    """A feature map as the kernels know it."""

    number: int
    """Of `Map` in linear_attention.cpp."""
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


def takes(query: Tensor, value: Tensor, feature_map: FeatureMap) -> bool:
    """Whether there are kernels for this call."""
    return (
        is_among_kernels(feature_map, max(query.shape[-1], value.shape[-1]))
        and query.device.type == "cpu"
        and query.dtype == value.dtype
        and query.dtype in (torch.float32, torch.bfloat16)
        and kernels() is not None
    )


def is_among_kernels(feature_map: FeatureMap, width: int) -> bool:
    """Whether a CPU would have kernels for features of heads of a width, if they were built."""
    return type(feature_map) in FORMS and feature_map.num_features % FEATURES_STEP == 0 and width <= GREATEST_WIDTH


def compiled_linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    feature_map: FeatureMap,
    *,
    causal: bool,
    product: torch.dtype,
    valid_mask: Tensor | None,
    packing: Packing | None,
) -> Tensor:
    """See `linear.linear_attention`; for calls that `takes` is true of, with the type of the products' operands."""
    library = kernels()
    assert library is not None
    plan = _plan(query.shape[0], query.shape[2], library.chunk if causal else 0, packing)
    keeps = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    form = FORMS[type(feature_map)](feature_map)
    tensors = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (query, key, value))
    return _forward(
        *tensors,
        form.projection,
        form.half_norms,
        valid_mask.contiguous() if valid_mask is not None else None,
        plan.sequences,
        form.number,
        form.constants,
        causal,
        product == torch.bfloat16 and library.has_bfloat16,
        feature_map.takes_bfloat16,
        plan.num_states if keeps else 0,
    )[0]


def rows_of_sequences(batch: int, length: int, packing: Packing | None) -> Tensor:
    """(N, 4) of the sequences in rows: number of the row, first token, behind the last one, and a number without meaning."""
    return _plan(batch, length, 0, packing).sequences


class _Plan(NamedTuple):
    sequences: Tensor
    """(N, 4) row of the batch, first token, behind the last one, number of its first state."""
    num_states: int


def _plan(batch: int, length: int, chunk: int, packing: Packing | None) -> _Plan:
    """Of causal rows in chunks, or of bidirectional ones (chunk 0)."""
    if packing is None:
        return _plan_of_rows(batch, length, chunk)
    return packing.plan(("compiled", chunk), lambda: _plan_of_packing(packing.boundaries, chunk))


@lru_cache(maxsize=256)
def _plan_of_rows(batch: int, length: int, chunk: int) -> _Plan:
    per_row = -(-length // chunk) - 1 if chunk else 1
    with torch.inference_mode(False):
        table = torch.tensor([[row, 0, length, row * per_row] for row in range(batch)])
    return _Plan(table, batch * per_row)


def _plan_of_packing(boundaries: NDArray[np.int64], chunk: int) -> _Plan:
    lengths = np.diff(boundaries)
    per_sequence = -(-lengths // chunk) - 1 if chunk else np.ones_like(lengths)
    first_states = np.cumsum(per_sequence) - per_sequence
    table = np.stack([np.zeros_like(lengths), boundaries[:-1], boundaries[1:], first_states], axis=1)
    longest_first = np.argsort(-lengths, kind="stable")  # threads then end at about the same time
    with torch.inference_mode(False):  # plans are remembered, also for calls with gradients
        return _Plan(torch.from_numpy(np.ascontiguousarray(table[longest_first])), int(per_sequence.sum()))


@torch.library.custom_op("protein_lm::linear_attention", mutates_args=(), device_types="cpu")
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projection: Tensor,
    half_norms: Tensor | None,
    valid_mask: Tensor | None,
    sequences: Tensor,
    number: int,
    constants: list[float],
    causal: bool,
    product_bfloat16: bool,
    features_bfloat16: bool,
    num_states: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, normalizers (B, H, L) float32, states (num_states, H, M, X) in the products' type, their sums (·, H, M)."""
    outputs = _outputs(query, value, projection, product_bfloat16, num_states)
    output, normalizer, states, sums = outputs
    arrays = {"projection": projection, "half_norms": half_norms, "valid": valid_mask, "sequences": sequences}
    arrays |= {"normalizer": normalizer, "states": states, "sums": sums}
    types = product_bfloat16, product_bfloat16 and features_bfloat16
    library, call = _call((query, key, value), arrays, number, constants, causal, types)
    call.output = Rows.of(output)
    library.forward(call)
    return outputs


@torch.library.custom_op("protein_lm::linear_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    projection: Tensor,
    half_norms: Tensor | None,
    valid_mask: Tensor | None,
    sequences: Tensor,
    output: Tensor,
    normalizer: Tensor,
    states: Tensor,
    sums: Tensor,
    number: int,
    constants: list[float],
    causal: bool,
    product_bfloat16: bool,
    features_bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    arrays = {"projection": projection, "half_norms": half_norms, "valid": valid_mask, "sequences": sequences}
    arrays |= {"normalizer": normalizer, "states": states, "sums": sums}
    types = product_bfloat16, product_bfloat16 and features_bfloat16
    library, call = _call((query, key, value), arrays, number, constants, causal, types)
    grad_output = grad_output if grad_output.stride(-1) == 1 else grad_output.contiguous()
    call.output, call.grad_output = Rows.of(output), Rows.of(grad_output)
    call.grad_query, call.grad_key, call.grad_value = (Rows.of(gradient) for gradient in gradients)
    library.backward(call)
    return gradients


def _call(
    rows: tuple[Tensor, Tensor, Tensor],
    arrays: dict[str, Tensor | None],
    number: int,
    constants: list[float],
    causal: bool,
    types: tuple[bool, bool],
) -> tuple[Kernels, Call]:
    """The kernels, and what both passes tell them: of query, key and value; `types`: whether products, and those that form
    features, have bfloat16 operands.
    """
    library = kernels()
    assert library is not None
    query, key, value = rows
    projection, sequences = arrays["projection"], arrays["sequences"]
    assert projection is not None and sequences is not None
    call = Call()
    call.map, call.causal, call.inputs_are_bfloat16 = number, causal, query.dtype == torch.bfloat16
    call.products_are_bfloat16, features_are_bfloat16 = types
    call.features_are_bfloat16 = features_are_bfloat16 and query.dtype == torch.bfloat16
    call.num_threads = torch.get_num_threads()
    call.batch, call.heads, call.length, call.width = query.shape
    call.value_width, call.num_features, call.num_sequences = value.shape[-1], projection.shape[0], sequences.shape[0]
    call.epsilon, call.headroom, call.floor, call.scale = constants
    for name, array in arrays.items():
        setattr(call, name, None if array is None else array.data_ptr() or None)
    call.query, call.key, call.value = Rows.of(query), Rows.of(key), Rows.of(value)
    return library, call


@_forward.register_fake
def _outputs_of(
    query, key, value, projection, half_norms, valid_mask, sequences, number, constants,
    causal, product_bfloat16, features_bfloat16, num_states,
):  # fmt: skip
    return _outputs(query, value, projection, product_bfloat16, num_states)


def _outputs(
    query: Tensor, value: Tensor, projection: Tensor, product_bfloat16: bool, num_states: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, length, _ = query.shape
    padded_width = -(-value.shape[-1] // WIDTH_STEP) * WIDTH_STEP
    dtype = torch.bfloat16 if product_bfloat16 else torch.float32
    return (
        torch.empty_like(value),
        value.new_empty(batch, heads, length, dtype=torch.float32),
        value.new_empty(num_states, heads, projection.shape[0], padded_width, dtype=dtype),
        value.new_empty(num_states, heads, projection.shape[0], dtype=torch.float32),
    )


@_backward.register_fake
def _gradients_of(grad_output, query, key, value, *others):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx, inputs, output) -> None:
    query, key, value, projection, half_norms, valid_mask, sequences, number, constants, *switches, _ = inputs
    ctx.save_for_backward(query, key, value, projection, half_norms, valid_mask, sequences, *output)
    ctx.facts = number, constants, *switches


def _gradients(ctx, grad_output, *_):
    return *_backward(grad_output, *ctx.saved_tensors, *ctx.facts), *[None] * 10


_forward.register_autograd(_gradients, setup_context=_keep)
