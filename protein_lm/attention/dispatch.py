"""The door to attention: checks inputs, chooses a backend, computes.

Each operation has a table of backends, best first. The last one is torch, which takes every call: the others are tested
against it. A new backend is one file in `backends` and one entry here. `native.library` finds once per process which compiled
kernels exist. Decoding has kernels for all blocks of a model at once, see `model.native_decoding`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from protein_lm.attention.backends import native_exact, native_linear, native_rotary
from protein_lm.attention.backends.interface import Backend, ExactInputs, Inputs, LinearInputs, RotaryInputs
from protein_lm.attention.feature_maps.performer import FeatureMap
from protein_lm.attention.input_checks import check_inputs
from protein_lm.attention.operations import exact, linear, rotary
from protein_lm.attention.operations.linear_stream import autocast_dtype, product_dtype, without_autocast
from protein_lm.attention.packing import Packing
from protein_lm.attention.sequence_parallel import Part

LINEAR: Sequence[Backend[LinearInputs]] = (native_linear, linear)
EXACT: Sequence[Backend[ExactInputs]] = (native_exact, exact)
ROTARY: Sequence[Backend[RotaryInputs]] = (native_rotary, rotary)


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    feature_map: FeatureMap,
    *,
    causal: bool,
    valid_mask: Tensor | None = None,
    packing: Packing | None = None,
    part: Part | None = None,
) -> Tensor:
    """Attention with the kernel φ(q)·φ(k), normalized over the keys that a query may see, in O(L).

    Features, normalizers and states are float32 (float64 for float64 input). The large products have bfloat16 operands where
    the input is bfloat16 or autocast asks for it.

    Args:
        query: (B, H, L, E).
        key: (B, H, L, E).
        value: (B, H, L, any).
        feature_map: φ; its parameters receive gradients.
        causal: whether a query sees itself and the tokens before it, or all tokens.
        valid_mask: (B, L) boolean, True for real tokens; padded keys are never seen. None: all are real.
        packing: the sequences of a packed row (B = 1), which do not see each other. None: each row is one sequence.
        part: the stretch of longer rows that these tensors are, where several processes share the rows. All of them call
            this function, and its backward pass, at the same time. `packing` is then `part.packing`. None: whole rows.

    Returns:
        (B, H, L, width of value) in the type of `value`. A query that may see no key gives zeros.

    Raises:
        ValueError: as `input_checks.check_inputs`, or a width that the map is not made for.
    """
    check_inputs(query, key, value, valid_mask, packing, empty_rows=part is not None)
    feature_map.check(query.shape[-1])
    inputs = LinearInputs(query, key, value, feature_map, causal, product_dtype(query), valid_mask, packing, part)
    with without_autocast(query.device):
        return _first_that_takes(inputs, LINEAR).forward(inputs)


def exact_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    valid_mask: Tensor | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """Softmax attention, in O(L²) time. Arguments are those of `linear_attention`.

    Returns:
        (B, H, L, width of value). Rows of padded queries are finite and carry no meaning.

    Raises:
        ValueError: as `input_checks.check_inputs`.
    """
    check_inputs(query, key, value, valid_mask, packing)
    query, key, value = map(_to_autocast_type, (query, key, value))
    inputs = ExactInputs(query, key, value, causal, valid_mask, packing)
    return _first_that_takes(inputs, EXACT).forward(inputs)


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn queries or keys (..., L, E) by their positions.

    Cosines and sines are (L, E / 2), or broadcast to (..., L, E / 2). The result has the type of `heads`; it is computed in
    float32 or better.
    """
    inputs = RotaryInputs(heads, cosines, sines)
    return _first_that_takes(inputs, ROTARY).forward(inputs)


def rotate_parts(parts: Tensor, num_turned: int, cosines: Tensor, sines: Tensor) -> tuple[Tensor, ...]:
    """Turn the first parts of (N, B, H, L, E), as `rotate` does, and leave the others; each comes out apart, (B, H, L, E)."""
    if native_rotary.takes_parts(parts, cosines):
        return native_rotary.rotate_parts(parts, num_turned, cosines, sines)
    turned, others = parts.split((num_turned, len(parts) - num_turned))
    return *rotate(turned, cosines, sines).unbind(0), *others.unbind(0)


def _first_that_takes(inputs: Inputs, backends: Sequence[Backend[Inputs]]) -> Backend[Inputs]:
    return next(backend for backend in backends if backend.takes(inputs))


def _to_autocast_type(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(autocast_dtype(tensor))
