"""What a contestant is, and the sizes that all of them share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.spec import Spec

HEADS, HEAD_WIDTH, NUM_FEATURES = 8, 64, 256
"""H, E and M of attention, in the operation and in the models."""
WIDTH = HEADS * HEAD_WIDTH
"""D, width of the models and of the attention layers."""
LAYERS, FEEDFORWARD_WIDTH = 6, 1024
"""Size of the models."""
UNLIMITED = 2**62

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

REQUIREMENTS = "pip install -r benchmarks/requirements.txt"
BUILT_FROM_SOURCE = "pip install --no-build-isolation pytorch-fast-transformers==0.4.0 (see benchmarks/README.md)"


@dataclass
class Prepared:
    """A contestant with its inputs made, ready to be timed."""

    once: Callable[[], object]
    """One pass."""
    units: int
    """Tokens of one pass; residues in `scoring`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else is worth a line in the results; `once` may add to it."""


@dataclass(frozen=True)
class Contestant:
    """Someone who takes part in a case."""

    prepare: Callable[[Spec], Prepared]
    """Imports its package and makes its inputs."""
    longest: Mapping[str, int]
    """Direction -> longest length that is measured; a direction that is absent does not exist."""
    package: str | None = None
    """Name on the package index; None for what protein_lm brings along."""
    install: str = REQUIREMENTS
    """How to get the package."""
    slow: frozenset[str] = frozenset()
    """Directions in which a pass takes up to a minute: timed once per process, after a warm-up on a short input."""
    shortest: int = 1
    """Lengths must be multiples of this; others are left out."""
