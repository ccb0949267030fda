"""Protein language models with linear attention: train them, score with them, look inside them.

What `protein_lm.api` offers is at hand here too; it is imported, and torch with it, when it is first asked for.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protein_lm.api import (
        ProteinLM,
        Proteins,
        attention_maps,
        attention_viewer,
        embed,
        generate,
        load,
        load_predictor,
        predict,
        score,
        similarity,
        variants,
    )

__version__ = "0.1.0"
__all__ = [
    "ProteinLM",
    "Proteins",
    "__version__",
    "attention_maps",
    "attention_viewer",
    "embed",
    "generate",
    "load",
    "load_predictor",
    "predict",
    "score",
    "similarity",
    "variants",
]

if "OMP_WAIT_POLICY" not in os.environ:
    # How long threads that wait for each other keep their processor busy: some 20 µs, then they sleep. For GNU's OpenMP and
    # LLVM's, when torch is imported. Their own idea, milliseconds, makes training many times as slow beside other work.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("KMP_BLOCKTIME", "0")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("protein_lm.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
