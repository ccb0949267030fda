"""Recomputing tensors for the backward pass, instead of keeping them, where they are cheap to compute."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protein_lm.attention.operations.linear_stream import autocast_dtype

_is_off = ContextVar("is_off", default=False)


class _Absent(NamedTuple):
    """A view of the tensor that is computed again."""

    size: torch.Size
    stride: tuple[int, ...]


@contextmanager
def recomputed(tensor: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Within, autograd does not keep `tensor` for the backward pass: it calls `make`, which returns equal values.

    This saves memory only if autograd keeps the inputs of `make` anyway. `make` runs with autocast as it is now.
    """
    if _is_off.get() or not (torch.is_grad_enabled() and tensor.is_contiguous()) or torch.compiler.is_compiling():
        yield
        return
    address, size, dtype, autocast = tensor.data_ptr(), tensor.numel(), tensor.dtype, _autocast_of(tensor.device.type)

    def pack(kept: Tensor) -> Any:
        if kept.data_ptr() == address and kept.numel() == size and kept.dtype == dtype:
            return _Absent(kept.size(), kept.stride())
        return kept

    def unpack(packed: Any) -> Tensor:
        if not isinstance(packed, _Absent):
            return packed
        with autocast:
            return make().as_strided(*packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


@contextmanager
def nothing_recomputed() -> Iterator[None]:
    """Turn `recomputed` off within a checkpoint, which computes all of its content again anyway."""
    token = _is_off.set(True)
    try:
        yield
    finally:
        _is_off.reset(token)


def to_autocast_dtype(tensor: Tensor) -> Tensor:
    """Return the tensor in the type of matrix products under autocast, if that is on."""
    return tensor.to(autocast_dtype(tensor))


def _autocast_of(device: str) -> AbstractContextManager[Any]:
    """Return a context with the present settings of autocast, for later."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    )
