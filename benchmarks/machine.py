"""The machine: what it is, and what it reaches in plain matrix products and copies.

    python -m benchmarks.machine

prints its limits as one line of JSON. They are measured in the first and in the last round of a run: where they differ,
the machine was not quiet.
"""

import hashlib
import importlib.metadata
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.worker import seconds
from protein_lm.choices import Precision
from protein_lm.model.precision import bfloat16_speed, choose
from protein_lm.native.library import kernels

MATRIX_SIZE, EMULATED_MATRIX_SIZE = 3000, 256
"""The second where bfloat16 is emulated, which may take a minute for a large product."""
COPIED_BYTES = 1 << 28
REPEATS = 5
PACKAGES = ("performer-pytorch", "pytorch-fast-transformers", "transformers", "fair-esm", "fla-core")
ROOT = Path(__file__).resolve().parents[1]


def description() -> dict[str, Any]:
    """Processor, cores, threads, versions, the level of the compiled kernels, and a hash of the code that is measured."""
    return {
        "processor": processor(),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peers": {name: version for name in PACKAGES if (version := installed_version(name))},
        "kernels": getattr(kernels(), "level", "torch"),
        "fast_dtypes": fast_dtypes(),
        "code": code_hash(),
    }


def limits() -> dict[str, float]:
    """Medians: GFLOP/s of square matrix products, GB/s of a copy (bytes read and bytes written both count)."""
    source = torch.ones(COPIED_BYTES // 4)
    target = torch.empty_like(source)
    copy = statistics.median(seconds(lambda: target.copy_(source)) for _ in range(REPEATS))
    return {
        "float32_gflops": round(matrix_product_gflops(torch.float32), 1),
        "bfloat16_gflops": round(matrix_product_gflops(torch.bfloat16), 1),
        "copy_gb_per_s": round(2 * COPIED_BYTES / copy / 1e9, 2),
    }


def matrix_product_gflops(dtype: torch.dtype) -> float:
    """What the machine reaches in a large matrix product of this type, after one pass of warm-up."""
    size = EMULATED_MATRIX_SIZE if dtype is torch.bfloat16 and bfloat16_speed("cpu") < 0.5 else MATRIX_SIZE
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    product = left @ right
    median = statistics.median(seconds(lambda: torch.mm(left, right, out=product)) for _ in range(REPEATS))
    return 2 * size**3 / median / 1e9


def fast_dtypes() -> list[str]:
    """Types whose products this machine does not emulate."""
    return ["float32", "bfloat16"] if choose(Precision.AUTO, "cpu").precision is Precision.BFLOAT16 else ["float32"]


def installed_version(package: str) -> str | None:
    """Version of an installed package, None if it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_hash() -> str:
    """The first digits of a SHA-256 over the sources of protein_lm and of the benchmarks' contestants."""
    digest = hashlib.sha256()
    for folder in (ROOT / "protein_lm", ROOT / "benchmarks" / "contestants"):
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.cpp")]):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def processor() -> str:
    """The processor's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    print(json.dumps(limits()))
