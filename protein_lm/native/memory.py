"""What glibc does with memory that tensors have left, in processes that make and drop many of them."""

import ctypes
from contextlib import suppress
from functools import cache

import numpy as np

_LARGEST_COUNTED = 2**25 - 2**14
"""Bytes, less a little, of the largest block whose return glibc learns from (`DEFAULT_MMAP_THRESHOLD_MAX`)."""


@cache
def reuse_freed_memory() -> None:
    """Have up to 64 MiB of freed memory kept for the next tensors; taken anew from the system, every page costs a fault.

    glibc keeps twice the largest block that was ever returned; this returns one, of which nothing was written.
    """
    np.empty(_LARGEST_COUNTED, dtype=np.uint8)


def return_freed_memory() -> None:
    """Tensors of ever other sizes leave holes in the heap of glibc, gigabytes after millions of residues."""
    with suppress(OSError, TypeError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
