"""The attention operation beside torch's own, and beside the machine's limit, in the same run.

    python benchmarks/attention.py [-o results.json]

Forward and backward in float32, batch 1, 8 heads of width 64, 256 features. The contestants take turns; each
figure is the median. Ratios are what to look at: the machine's speed drifts, the ratio within a run hardly does.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from protein_lm.attention.feature_maps import ReLUFeatures, SoftmaxFeatures
from protein_lm.attention.linear import linear_attention

HEADS, HEAD_WIDTH, NUM_FEATURES = 8, 64, 256


def contestants(length: int, causal: bool) -> dict[str, Callable[[], None]]:
    """One forward and backward pass of each kind on the same input."""
    torch.manual_seed(0)
    shape = 1, HEADS, length, HEAD_WIDTH
    query, key, value = (torch.randn(shape, requires_grad=True) for _ in range(3))
    gradient = torch.randn(shape)
    maps = {
        "performer-relu": ReLUFeatures(HEAD_WIDTH, NUM_FEATURES),
        "performer-softmax": SoftmaxFeatures(HEAD_WIDTH, NUM_FEATURES),
    }

    def run(attend: Callable[[], Tensor]) -> Callable[[], None]:
        def once() -> None:
            torch.autograd.grad(attend(), (query, key, value), gradient)

        return once

    runs = {"sdpa": run(lambda: scaled_dot_product_attention(query, key, value, is_causal=causal))}
    for name, feature_map in maps.items():
        runs[name] = run(lambda m=feature_map: linear_attention(query, key, value, m, causal=causal))
    return runs


def matrix_product_gflops() -> float:
    """What the machine reaches in a large float32 matrix product."""
    left, right = torch.randn(3000, 3000), torch.randn(3000, 3000)
    return 2 * 3000**3 / seconds(lambda: left @ right) / 1e9


def seconds(once: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    once()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print a table, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the results")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    options = parser.parse_args()
    machine = {
        "processor": processor(),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "matrix_product_gflops": round(statistics.median(matrix_product_gflops() for _ in range(5)), 1),
    }
    print(json.dumps(machine))
    print(f"{'direction':<14}{'length':>7}  {'kind':<18}{'ms':>8}{'times faster than sdpa':>24}")
    rows = []
    for causal in (True, False):
        for length in options.lengths:
            runs = contestants(length, causal)
            times: dict[str, list[float]] = {name: [] for name in runs}
            for repeat in range(options.repeats + 1):
                for name, once in runs.items():
                    elapsed = seconds(once)
                    if repeat:  # the first round warms up
                        times[name].append(elapsed)
            medians = {name: statistics.median(values) for name, values in times.items()}
            for name, median in medians.items():
                row = {
                    "causal": causal,
                    "length": length,
                    "kind": name,
                    "seconds": median,
                    "ratio": medians["sdpa"] / median,
                }
                rows.append(row)
                direction = "causal" if causal else "bidirectional"
                print(f"{direction:<14}{length:>7}  {name:<18}{1000 * median:>8.1f}{row['ratio']:>24.2f}", flush=True)
    if options.output:
        options.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
