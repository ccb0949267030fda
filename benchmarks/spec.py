"""What one process measures: a value that travels as JSON and names its result."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

ALLOCATORS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "tuned": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"},
}
"""Environment variables of glibc's malloc. Tuned keeps freed memory in the process, which saves page faults."""


@dataclass(frozen=True)
class Spec:
    """One contestant on one task."""

    case: str
    """A name of `benchmarks.cases.CASES`."""
    contestant: str
    """A name of that case's contestants."""
    direction: str
    """causal, or bidirectional (attention), or masked (training)."""
    dtype: str
    """float32 or bfloat16."""
    batch: int
    """Sequences at once; tokens at once in `embedding`."""
    length: int
    """Tokens per sequence; tokens to generate in `decoding`, number of proteins in `embedding` and `scoring`."""
    allocator: str = "default"
    """A name of `ALLOCATORS`."""
    passes: int = 1
    """Timed passes in the process."""

    def to_json(self) -> str:
        """One line, the same for equal specs."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def title(self) -> str:
        """A short name for people."""
        shape = f"{self.batch}x{self.length}"
        return f"{self.case} {self.direction} {self.dtype} {shape} {self.contestant} ({self.allocator} malloc)"
