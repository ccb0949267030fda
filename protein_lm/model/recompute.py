"""Tensors that are cheap to make are made a second time for the backward pass instead of being kept for it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protein_lm.attention.operations.stream import autocast_dtype

_is_off = ContextVar("is_off", default=False)


class _Absent(NamedTuple):
    """A view of the tensor that is made again."""

    size: torch.Size
    stride: tuple[int, ...]


@contextmanager
def recomputed(tensor: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """What autograd would keep of `tensor` inside, it gets from `make` when it goes back; it must give the same values.

    Autograd has to keep what `make` needs anyway, or else nothing is gained. `make` finds autocast as it is now.
    """
    if _is_off.get() or not (torch.is_grad_enabled() and tensor.is_contiguous()) or torch.compiler.is_compiling():
        yield
        return
    place, size, dtype, autocast = tensor.data_ptr(), tensor.numel(), tensor.dtype, _autocast_of(tensor.device.type)

    def pack(kept: Tensor) -> Any:
        if kept.data_ptr() == place and kept.numel() == size and kept.dtype == dtype:
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
    """For what is in a checkpoint, which makes all of it again: `recomputed` would keep inputs from it."""
    token = _is_off.set(True)
    try:
        yield
    finally:
        _is_off.reset(token)


def to_autocast_dtype(tensor: Tensor) -> Tensor:
    """The tensor in the type that autocast, if it is on, has matrix products compute in."""
    return tensor.to(autocast_dtype(tensor))


def _autocast_of(device: str) -> AbstractContextManager[Any]:
    """Autocast as it is now, for later."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    )
