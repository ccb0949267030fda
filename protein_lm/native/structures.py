"""The structures that Python and the C++ sources share, one class for each.

A class has the names, the order and the types of the fields of its twin. `tests/native/test_structures.py` has the compiler
compare the offset, the size and the type of every field. Pointers are addresses of arrays that outlive the call.
"""

import ctypes
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor  # the reader of files does without torch


def _each(kind: type, names: str) -> list[tuple[str, type]]:
    """Fields of one type."""
    return [(name, kind) for name in names.split()]


class Shared(ctypes.Structure):
    """A structure that a C++ source declares too."""

    source: ClassVar[str]
    """Name of the source."""
    twin: ClassVar[str]
    """Name of the structure in it."""


class Rows(Shared):
    """A tensor (B, H, L, width) whose last axis is contiguous; strides in numbers."""

    source, twin = "linear_attention.cpp", "Rows"
    _fields_ = [("data", ctypes.c_void_p), *_each(ctypes.c_int64, "batch head token")]

    @classmethod
    def of(cls, tensor: "Tensor") -> "Rows":
        """Describe a tensor that outlives the call."""
        return cls(tensor.data_ptr(), *tensor.stride()[:3])


LINEAR_ARRAYS = "projection", "half_norms", "sequences", "valid", "normalizer", "states", "sums"


class LinearAttentionCall(Shared):
    """A call of linear attention, forward or backward."""

    source, twin = "linear_attention.cpp", "Call"
    _fields_ = [
        *_each(
            ctypes.c_int32,
            "map causal inputs_are_bfloat16 products_are_bfloat16 features_are_bfloat16 num_threads",
        ),
        *_each(ctypes.c_int64, "batch heads length width value_width num_features num_sequences"),
        *_each(ctypes.c_float, "epsilon headroom floor scale"),
        *_each(ctypes.c_void_p, " ".join(LINEAR_ARRAYS)),
        *_each(Rows, "query key value output grad_output grad_query grad_key grad_value"),
    ]


class ExactCall(Shared):
    """A call of softmax attention."""

    source, twin = "exact_attention.cpp", "ExactCall"
    _fields_ = [
        *_each(ctypes.c_int32, "causal inputs_are_bfloat16 products_are_bfloat16 num_threads"),
        *_each(ctypes.c_int64, "batch heads length width value_width num_sequences"),
        *_each(ctypes.c_float, "scale"),
        *_each(ctypes.c_void_p, "sequences valid"),
        *_each(Rows, "query key value output"),
    ]


class BlockCall(Shared):
    """A call of softmax attention by blocks, forward or backward."""

    source, twin = "block_attention.cpp", "BlockCall"
    _fields_ = [
        ("num_threads", ctypes.c_int32),
        ("scale", ctypes.c_float),
        *_each(ctypes.c_int64, "groups blocks num_keys block width value_width hidden_group"),
        *_each(ctypes.c_void_p, "key_blocks hidden query key value output logsumexp"),
        *_each(ctypes.c_void_p, "grad_output grad_logsumexp grad_query grad_key grad_value"),
    ]


class LinearCall(Shared):
    """A call of a linear layer, forward or backward."""

    source, twin = "linear_layer.cpp", "LinearCall"
    _fields_ = [
        *_each(ctypes.c_int32, "activates num_threads"),
        *_each(ctypes.c_int64, "tokens inputs outputs input_stride grad_stride"),
        *_each(ctypes.c_void_p, "input weight bias output grad_output grad_input grad_weight grad_bias"),
    ]


class RotaryCall(Shared):
    """A call that turns heads by their positions."""

    source, twin = "rotary.cpp", "RotaryCall"
    _fields_ = [
        *_each(ctypes.c_int32, "are_bfloat16 num_threads"),
        *_each(ctypes.c_int64, "parts batch heads length width"),
        *_each(ctypes.c_void_p, "heads_in"),
        *_each(ctypes.c_int64, "part_in batch_in head_in token_in"),
        ("heads_out", ctypes.c_void_p),
        *_each(ctypes.c_int64, "part_out batch_out token_out"),
        *_each(ctypes.c_void_p, "cosines sines"),
    ]


class DecodingLinear(Shared):
    """A linear layer of a model that decodes."""

    source, twin = "decoding.cpp", "Linear"
    _fields_ = [*_each(ctypes.c_void_p, "weights bias"), *_each(ctypes.c_int64, "stride")]

    @classmethod
    def of(cls, weight: "Tensor", bias: "Tensor | None") -> "DecodingLinear":
        """Describe weights (outputs, inputs) that are stored by columns, as by `arranged`; both outlive the call."""
        return cls(weight.data_ptr(), None if bias is None else bias.data_ptr(), weight.stride(1))


class DecodingNorm(Shared):
    """A layer norm of a model that decodes."""

    source, twin = "decoding.cpp", "Norm"
    _fields_ = _each(ctypes.c_void_p, "gain bias")


class DecodingBlock(Shared):
    """The weights and the state of one block."""

    source, twin = "decoding.cpp", "Block"
    _fields_ = [
        *_each(DecodingNorm, "attention_norm feedforward_norm"),
        *_each(DecodingLinear, "input output up down"),
        *_each(ctypes.c_void_p, "taps query_gain key_gain"),
        *_each(DecodingLinear, "projection"),
        *_each(ctypes.c_void_p, "half_norms"),
        *_each(ctypes.c_float, "epsilon headroom floor scale"),
        *_each(ctypes.c_int32, "map num_taps"),
        *_each(ctypes.c_void_p, "before sums keys values"),
    ]


class DecodingStep(Shared):
    """One token more through all blocks."""

    source, twin = "decoding.cpp", "Step"
    _fields_ = [
        *_each(ctypes.c_int32, "batch width heads num_features inner state_width num_blocks"),
        *_each(ctypes.c_int32, "num_waiting num_slots settles num_threads"),
        *_each(ctypes.c_void_p, "cosines sines hidden scratch blocks"),
    ]


class ReadCall(Shared):
    """A call that reads a text of whole records into arrays."""

    source, twin = "reading.h", "reading::Call"
    _fields_ = [
        *_each(ctypes.c_void_p, "head body codes"),
        *_each(ctypes.c_int64, "head_size body_size capacity"),
        *_each(ctypes.c_int32, "first_ambiguous x j all_to_x"),
        *_each(ctypes.c_void_p, "tokens lengths has_ambiguous ids id_lengths id_hashes fingerprints"),
        *_each(ctypes.c_void_p, "taxon_ids cluster_sizes protein_existence flags"),
        *_each(ctypes.c_int64, "num_tokens num_id_bytes num_j num_bouz"),
    ]
