"""Settings of glibc for processes that make and drop many tensors."""

import ctypes
from contextlib import suppress
from functools import cache

import numpy as np

_LARGEST_COUNTED = 2**25 - 2**14
"""Bytes of the largest block from whose return glibc learns (`DEFAULT_MMAP_THRESHOLD_MAX`), less a little."""


@cache
def reuse_freed_memory() -> None:
    """Let glibc keep up to 64 MiB of freed memory for the next tensors: new pages from the system cost a fault each.

    glibc keeps twice the largest block that was ever returned. This returns one, which was never written to.
    """
    np.empty(_LARGEST_COUNTED, dtype=np.uint8)


def return_freed_memory() -> None:
    """Return freed memory to the system: tensors of many sizes leave holes in glibc's heap, gigabytes in the end."""
    with suppress(OSError, TypeError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
