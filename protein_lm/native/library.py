"""The compiled kernels that this process uses, if any: the best level that is built and that the processor has.

`$PROTEIN_LM_KERNELS` forces a level of `build.LEVELS`, or `off`. Nothing is built here.
"""

import ctypes
import os
import platform
from collections.abc import Callable
from functools import lru_cache

import torch  # its OpenMP must be in the process before a library is loaded

from protein_lm import __version__
from protein_lm.errors import ConfigError
from protein_lm.native import reader
from protein_lm.native.build import OFF, VARIABLE, levels_of_this_kind, library_of, probe_of


class Rows(ctypes.Structure):
    """A tensor (B, H, L, width) whose last axis is contiguous; strides in numbers."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "token"))]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Rows":
        """Of a tensor that outlives the call."""
        return cls(tensor.data_ptr(), *tensor.stride()[:3])


_TENSORS = "query", "key", "value", "output", "grad_output", "grad_query", "grad_key", "grad_value"
_SWITCHES = "map", "causal", "inputs_are_bfloat16", "products_are_bfloat16", "features_are_bfloat16", "num_threads"
_SIZES = "batch", "heads", "length", "width", "value_width", "num_features", "num_sequences"
_CONSTANTS = "epsilon", "headroom", "floor", "scale"
_ARRAYS = "projection", "half_norms", "sequences", "valid", "normalizer", "states", "sums"


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in names]


class Call(ctypes.Structure):
    """See `Call` in linear_attention.cpp: fields, order and types are the same."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in _SWITCHES),
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_float) for name in _CONSTANTS),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        *((name, Rows) for name in _TENSORS),
    ]


class ExactCall(ctypes.Structure):
    """See `ExactCall` in exact_attention.cpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("causal", "inputs_are_bfloat16", "products_are_bfloat16", "num_threads")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "length", "width", "value_width", "num_sequences")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("sequences", "valid")),
        *((name, Rows) for name in ("query", "key", "value", "output")),
    ]


class LinearCall(ctypes.Structure):
    """See `LinearCall` in linear_layer.cpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("activates", "num_threads")),
        *((name, ctypes.c_int64) for name in ("tokens", "inputs", "outputs", "input_stride", "grad_stride")),
        *_pointers("input", "weight", "bias", "output", "grad_output", "grad_input", "grad_weight", "grad_bias"),
    ]


class BlockCall(ctypes.Structure):
    """See `BlockCall` in block_attention.cpp."""

    _fields_ = [
        ("num_threads", ctypes.c_int32),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int64) for name in ("groups", "blocks", "num_keys", "block", "width", "value_width", "hidden_group")),
        *_pointers("key_blocks", "hidden", "query", "key", "value", "output", "logsumexp"),
        *_pointers("grad_output", "grad_logsumexp", "grad_query", "grad_key", "grad_value"),
    ]


class RotaryCall(ctypes.Structure):
    """See `RotaryCall` in rotary.cpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("are_bfloat16", "num_threads")),
        *((name, ctypes.c_int64) for name in ("parts", "batch", "heads", "length", "width")),
        ("heads_in", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("part_in", "batch_in", "head_in", "token_in")),
        ("heads_out", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("part_out", "batch_out", "token_out")),
        *_pointers("cosines", "sines"),
    ]


class DecodingLinear(ctypes.Structure):
    """See `Linear` in decoding.cpp."""

    _fields_ = [*_pointers("weights", "bias"), ("stride", ctypes.c_int64)]

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> "DecodingLinear":
        """Of weights (outputs, inputs) that lie by columns, see `arranged`; both outlive the call."""
        return cls(weight.data_ptr(), None if bias is None else bias.data_ptr(), weight.stride(1))


class DecodingBlock(ctypes.Structure):
    """See `Block` in decoding.cpp."""

    _fields_ = [
        *_pointers("attention_gain", "attention_bias", "feedforward_gain", "feedforward_bias"),
        *((name, DecodingLinear) for name in ("input", "output", "up", "down")),
        *_pointers("taps", "query_gain", "key_gain"),
        ("projection", DecodingLinear),
        *_pointers("half_norms"),
        *((name, ctypes.c_float) for name in _CONSTANTS),
        *((name, ctypes.c_int32) for name in ("map", "num_taps")),
        *_pointers("before", "sums", "keys", "values"),
    ]


class DecodingStep(ctypes.Structure):
    """See `Step` in decoding.cpp."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("batch", "width", "heads", "num_features", "inner", "state_width")),
        *((name, ctypes.c_int32) for name in ("num_blocks", "num_waiting", "num_places", "settles", "num_threads")),
        *_pointers("cosines", "sines", "hidden", "scratch", "blocks"),
    ]


_STRUCTURES = {
    Call: "call",
    ExactCall: "exact_call",
    BlockCall: "block_call",
    LinearCall: "linear_call",
    RotaryCall: "rotary_call",
    DecodingBlock: "block",
    DecodingStep: "step",
}
"""And what the libraries call them, to say how large they are."""


class Kernels:
    """The library of one level."""

    def __init__(self, level: str) -> None:
        """Load it.

        Raises:
            OSError: it is damaged, or this process lacks what it needs.
        """
        self.level = level
        self._library = ctypes.CDLL(str(library_of(level)), mode=os.RTLD_NOW | os.RTLD_LOCAL)
        self.chunk: int = self._library.protein_lm_chunk()
        """Tokens of a chunk; a causal row keeps a state for each but the last one."""
        self.has_bfloat16 = bool(self._library.protein_lm_has_bfloat16())
        """Whether products may have bfloat16 operands; if not, they are float32."""
        for structure, size in _STRUCTURES.items():
            function = getattr(self._library, f"protein_lm_{size}_bytes")
            function.restype = ctypes.c_int64
            if function() != ctypes.sizeof(structure):
                raise OSError(f"{library_of(level)} is of another version")

    def forward(self, call: Call) -> None:
        """Linear attention; see linear_attention.cpp."""
        self._run(self._library.protein_lm_linear_attention_forward, call)

    def backward(self, call: Call) -> None:
        """Its gradients."""
        self._run(self._library.protein_lm_linear_attention_backward, call)

    def exact(self, call: ExactCall) -> None:
        """Softmax attention, forward; see exact_attention.cpp."""
        self._run(self._library.protein_lm_exact_attention, call)

    def block_forward(self, call: BlockCall) -> None:
        """Softmax attention by blocks; see block_attention.cpp."""
        self._run(self._library.protein_lm_block_attention_forward, call)

    def block_backward(self, call: BlockCall) -> None:
        """Its gradients."""
        self._run(self._library.protein_lm_block_attention_backward, call)

    def linear_forward(self, call: LinearCall) -> None:
        """A linear layer; see linear_layer.cpp."""
        self._run(self._library.protein_lm_linear_forward, call)

    def linear_backward(self, call: LinearCall) -> None:
        """Its gradients."""
        self._run(self._library.protein_lm_linear_backward, call)

    def rotate(self, call: RotaryCall) -> None:
        """Rotary positions; see rotary.cpp."""
        self._library.protein_lm_rotate(ctypes.byref(call))

    def decode(self, step: DecodingStep) -> None:
        """One token through the blocks of a model; see decoding.cpp."""
        self._library.protein_lm_decode(ctypes.byref(step))

    def supports(self, level: str) -> bool:
        """Whether this processor has a level."""
        if level == "plain":
            return True
        return bool(getattr(self._library, probe_of(level))())

    @staticmethod
    def _run(function: Callable[..., int], call: Call | ExactCall | BlockCall | LinearCall) -> None:
        if function(ctypes.byref(call)):
            raise MemoryError("no memory for the workspace of a compiled kernel")


def kernels() -> Kernels | None:
    """What this process uses; None: the torch path.

    Raises:
        ConfigError: `$PROTEIN_LM_KERNELS` names a level that does not exist, is not built, or is not of this processor.
    """
    return _kernels(os.environ.get(VARIABLE, ""))


def available_levels() -> list[str]:
    """Levels that are built and that this processor has, the best first."""
    if not library_of("plain").exists():
        return []
    plain = _load("plain")
    return [level for level in levels_of_this_kind() if library_of(level).exists() and plain.supports(level)]


def describe() -> str:
    """A line for the user: which path attention takes, and why not a better one."""
    active = kernels()
    if active is not None:
        others = [level for level in available_levels() if level != active.level]
        line = f"attention: compiled kernels {active.level}" + (f" (also there: {', '.join(others)})" if others else "")
        best = next(level for level in levels_of_this_kind() if active.supports(level))
        return line if library_of(best).exists() else f"{line}; this processor has {best}: protein-lm kernels build"
    return f"attention: torch; {advice() or f'${VARIABLE} is {OFF}'}"


def advice() -> str | None:
    """What would make linear attention on CPUs faster; None where kernels are in use, or turned off."""
    if kernels() is not None or os.environ.get(VARIABLE) == OFF:
        return None
    return "protein-lm kernels build makes linear attention two to three times as fast, where there is a C++ compiler"


def describe_installation() -> str:
    """Lines for the user: versions, processors, and the paths of attention and of reading."""
    return "\n".join(
        [
            f"protein-lm {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
            f"{torch.get_num_threads()} threads; vector instructions of torch: {torch.backends.cpu.get_cpu_capability()}",
            describe(),
            f"reading files: {'compiled reader' if reader.compiled_reader() else 'numpy'}",
        ]
    )


def forget() -> None:
    """Look anew for what is built."""
    _kernels.cache_clear()
    reader.forget()


@lru_cache
def _kernels(wanted: str) -> Kernels | None:
    if wanted == OFF:
        return None
    available = available_levels()
    if not wanted:
        return _load(available[0]) if available else None
    if wanted not in levels_of_this_kind():
        raise ConfigError(f"${VARIABLE} is {wanted}; choose {', '.join([*levels_of_this_kind(), OFF])}")
    if wanted not in available:
        reason = (
            "not a level of this processor" if library_of(wanted).exists() else "not built: protein-lm kernels build"
        )
        raise ConfigError(f"${VARIABLE} is {wanted}, {reason}; unset it for the best there is")
    return _load(wanted)


def _load(level: str) -> Kernels:
    try:
        return Kernels(level)
    except (OSError, AttributeError) as error:  # a library that lacks a function raises the latter
        raise ConfigError(
            f"the compiled kernels in {library_of(level)} cannot be used ({error}); build them anew with protein-lm kernels "
            f"build, or set {VARIABLE}={OFF}"
        ) from None
