"""Memory of this process as the Linux kernel counts it."""

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

_STATUS, _CLEAR, _SYSTEM = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")
RESERVED = 1 << 30
"""Bytes that are left to the rest of the machine."""


def reset_peak() -> int:
    """Give freed memory back, forget the peak of the resident set, and return its present size in bytes."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc only
    with suppress(OSError):
        _CLEAR.write_text("5")  # see proc(5); without it the peak is that of the whole life of the process
    return _kilobytes(_STATUS, "VmRSS") * 1024


def peak() -> int:
    """Largest resident set since `reset_peak`, in bytes; 0 where the system does not tell."""
    return _kilobytes(_STATUS, "VmHWM") * 1024


def limit_to_available() -> int | None:
    """Refuse allocations beyond the memory that is free now, so that none ends in the machine's out-of-memory killer.

    Returns the limit in bytes, or None where the system does not tell.
    """
    available = _kilobytes(_SYSTEM, "MemAvailable") * 1024
    if not available or sys.platform != "linux":
        return None
    limit = max(available - RESERVED, RESERVED)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    return limit


def _kilobytes(path: Path, field: str) -> int:
    if path.is_file():
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    return 0
