"""The compiled kernels that this process uses: the best level that is built and that the processor has, or none.

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
from protein_lm.native import reader as file_reader
from protein_lm.native.build import OFF, VARIABLE, levels_of_this_kind, library_of, probe_of
from protein_lm.native.structures import (
    BlockCall,
    DecodingBlock,
    DecodingStep,
    ExactCall,
    LinearAttentionCall,
    LinearCall,
    RotaryCall,
)

_STRUCTURES = {
    LinearAttentionCall: "call",
    ExactCall: "exact_call",
    BlockCall: "block_call",
    LinearCall: "linear_call",
    RotaryCall: "rotary_call",
    DecodingBlock: "block",
    DecodingStep: "step",
}
"""Structures, and the functions of a library that tell their sizes."""


class Kernels:
    """The library of one level."""

    def __init__(self, level: str) -> None:
        """Load it.

        Raises:
            OSError: it is damaged, or this process lacks what it needs.
        """
        self.level = level
        self._library = ctypes.CDLL(str(library_of(level)), mode=os.RTLD_NOW | os.RTLD_LOCAL)
        self.has_bfloat16 = bool(self._library.protein_lm_has_bfloat16())
        """Whether products may have bfloat16 operands; if not, they are float32."""
        for structure, size in _STRUCTURES.items():
            function = getattr(self._library, f"protein_lm_{size}_bytes")
            function.restype = ctypes.c_int64
            if function() != ctypes.sizeof(structure):
                raise OSError(f"{library_of(level)} is of another version")

    def forward(self, call: LinearAttentionCall) -> None:
        """Compute linear attention."""
        self._run(self._library.protein_lm_linear_attention_forward, call)

    def backward(self, call: LinearAttentionCall) -> None:
        """Compute the gradients of linear attention."""
        self._run(self._library.protein_lm_linear_attention_backward, call)

    def exact(self, call: ExactCall) -> None:
        """Compute softmax attention."""
        self._run(self._library.protein_lm_exact_attention, call)

    def block_forward(self, call: BlockCall) -> None:
        """Compute softmax attention by blocks."""
        self._run(self._library.protein_lm_block_attention_forward, call)

    def block_backward(self, call: BlockCall) -> None:
        """Compute its gradients."""
        self._run(self._library.protein_lm_block_attention_backward, call)

    def linear_forward(self, call: LinearCall) -> None:
        """Compute a linear layer."""
        self._run(self._library.protein_lm_linear_forward, call)

    def linear_backward(self, call: LinearCall) -> None:
        """Compute its gradients."""
        self._run(self._library.protein_lm_linear_backward, call)

    def rotate(self, call: RotaryCall) -> None:
        """Turn heads by their positions."""
        self._library.protein_lm_rotate(ctypes.byref(call))

    def decode(self, step: DecodingStep) -> None:
        """Take one token more through the blocks of a model."""
        self._library.protein_lm_decode(ctypes.byref(step))

    def chunk(self, length: int) -> int:
        """Return the tokens of a chunk of a causal sequence; it keeps a state for each chunk but the last one."""
        return self._library.protein_lm_chunk(ctypes.c_int64(length))

    def supports(self, level: str) -> bool:
        """Tell whether this processor has a level."""
        return level == "plain" or bool(getattr(self._library, probe_of(level))())

    @staticmethod
    def _run(function: Callable[..., int], call: LinearAttentionCall | ExactCall | BlockCall | LinearCall) -> None:
        if function(ctypes.byref(call)):
            raise MemoryError("no memory for the workspace of a compiled kernel")


def kernels() -> Kernels | None:
    """The kernels that this process uses; None: the torch path.

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
    """Tell the user in a line which path attention takes, and how to get a faster one."""
    active = kernels()
    if active is not None:
        others = [level for level in available_levels() if level != active.level]
        line = f"attention: compiled kernels {active.level}" + (f" (also there: {', '.join(others)})" if others else "")
        best = next(level for level in levels_of_this_kind() if active.supports(level))
        return line if library_of(best).exists() else f"{line}; this processor has {best}: protein-lm kernels build"
    return f"attention: torch; {advice() or f'${VARIABLE} is {OFF}'}"


def advice() -> str | None:
    """A remedy for slow linear attention on CPUs; None where kernels are in use or turned off."""
    if kernels() is not None or os.environ.get(VARIABLE) == OFF:
        return None
    return "protein-lm kernels build makes linear attention two to three times as fast, where there is a C++ compiler"


def describe_installation() -> str:
    """Tell the user the versions, the processor, and the paths of attention and of reading."""
    return "\n".join(
        [
            f"protein-lm {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
            f"{torch.get_num_threads()} threads; vector instructions of torch: {torch.backends.cpu.get_cpu_capability()}",
            describe(),
            f"reading files: {'compiled reader' if file_reader.reader().is_compiled else 'numpy'}",
        ]
    )


def forget() -> None:
    """Look for built libraries anew at the next call."""
    _kernels.cache_clear()
    file_reader.forget()


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
