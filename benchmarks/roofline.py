"""How near our attention and our training step come to what the machine can do: executed FLOPs, their fraction of the
rate of large matrix products in the same process, and where the time of a step goes.

    python -m benchmarks.roofline [--dtypes bfloat16 float32] [--lengths 1024 8192] [-o FILE.json] [--markdown FILE.md]

FLOPs are those that are executed, padding of tiles included, as torch's counter finds them; those of the compiled kernel
are counted from the loops of linear_attention.cpp. The rate of matrix products is taken before and after each measurement,
and the larger one counts, so that a machine that became slower makes no fraction better.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from benchmarks.contestants import attention, training
from benchmarks.contestants.base import Prepared
from benchmarks.machine import description, matrix_product_gflops
from benchmarks.spec import Spec
from benchmarks.worker import seconds
from protein_lm.native.library import describe

PASSES = 3
CHUNK, STRIP, TALL = 128, 32, 8
"""Of linear_attention.cpp with AVX-512."""
PARTS = {
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::addbmm"),
    "linear attention, compiled": ("protein_lm::linear_attention", "protein_lm::linear_attention_backward"),
    "norms": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "activation": ("aten::gelu", "aten::gelu_backward"),
    "copies and conversions": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_"),
    "optimizer": ("aten::_fused_adamw_",),
    "sums and products of tensors": ("aten::add", "aten::add_", "aten::mul", "aten::addcmul_", "aten::sum"),
}
REST = "rest"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[1024, 8192])
    parser.add_argument(
        "--tokens", type=int, default=8192, help="of a batch of a training step, %(default)s by default"
    )
    parser.add_argument("-o", "--output", type=Path, help="results as JSON")
    parser.add_argument("--markdown", type=Path, help="tables; they are printed by default")
    options = parser.parse_args(arguments)
    rows = []
    for dtype in options.dtypes:
        for length in options.lengths:
            for direction in ("causal", "bidirectional"):
                spec = Spec("attention", "ours-relu", direction, dtype, 1, length)
                rows.append(_measure(spec, attention.CONTESTANTS["ours-relu"].prepare(spec), with_parts=False))
                print(rows[-1], file=sys.stderr, flush=True)
            spec = Spec("training_step", "ours-relu", "masked", dtype, max(1, options.tokens // length), length)
            rows.append(_measure(spec, training.CONTESTANTS["ours-relu"].prepare(spec), with_parts=True))
            print(rows[-1], file=sys.stderr, flush=True)
    if options.output:
        options.output.write_text(
            json.dumps({"machine": description(), "path": describe(), "rows": rows}, indent=1) + "\n"
        )
    text = table(rows)
    if options.markdown:
        options.markdown.write_text(text)
    else:
        print(text)
    return 0


def _measure(spec: Spec, prepared: Prepared, *, with_parts: bool) -> dict[str, Any]:
    prepared.once()
    with FlopCounterMode(display=False) as counter:
        prepared.once()
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[spec.dtype]
    before = matrix_product_gflops(dtype)
    median = statistics.median(seconds(prepared.once) for _ in range(PASSES))
    peak = max(before, matrix_product_gflops(dtype))
    flops = counter.get_total_flops()
    row = {
        "case": spec.case,
        "direction": spec.direction,
        "dtype": spec.dtype,
        "shape": f"{spec.batch} × {spec.length:,}",
        "seconds": median,
        "gflop": flops / 1e9,
        "gflop_per_second": flops / median / 1e9,
        "matrix_products_gflop_per_second": peak,
        "fraction": flops / median / 1e9 / peak,
    }
    return row | ({"parts": _parts(prepared)} if with_parts else {})


def _parts(prepared: Prepared) -> dict[str, float]:
    """Share of the processors' time by kind of work, of one pass under the profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        prepared.once()
    own = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    whole = sum(own.values())
    shares = {part: sum(own.pop(name, 0) for name in names) / whole for part, names in PARTS.items()}
    return shares | {REST: sum(own.values()) / whole}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Two tables in Markdown."""
    lines = [
        "| | shape | type | ms | GFLOP | GFLOP/s | of the matrix products' rate |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        what = f"{row['case'].replace('_', ' ')}, {row['direction']}"
        numbers = f"{1000 * row['seconds']:,.0f} | {row['gflop']:,.1f} | {row['gflop_per_second']:,.0f}"
        share = f"{row['fraction']:.0%} of {row['matrix_products_gflop_per_second']:,.0f}"
        lines.append(f"| {what} | {row['shape']} | {row['dtype']} | {numbers} | {share} |")
    steps = [row for row in rows if "parts" in row]
    lines += [
        "",
        "| where a training step's time goes | " + " | ".join(f"{r['shape']}, {r['dtype']}" for r in steps) + " |",
    ]
    lines.append("|---" + "|---:" * len(steps) + "|")
    for part in [*PARTS, REST]:
        lines.append(f"| {part} | " + " | ".join(f"{row['parts'][part]:.0%}" for row in steps) + " |")
    return "\n".join(lines) + "\n"


def _of_chunks(sequences: torch.Tensor) -> list[tuple[int, bool, bool]]:
    """Of every chunk: places, whether one is before it in its sequence, whether one is behind it."""
    chunks = []
    for _, start, end, _ in sequences.tolist():
        for first in range(start, end, CHUNK):
            places = -(-min(CHUNK, end - first) // 32) * 32
            chunks.append((places, first > start, first + CHUNK < end))
    return chunks


def _triangle(places: int) -> int:
    """Numbers of a triangular product that are formed, tile by tile."""
    return sum((places - column // TALL * TALL) * STRIP for column in range(0, places, STRIP))


@register_flop_formula(torch.ops.protein_lm.linear_attention, get_raw=True)  # pyright: ignore[reportCallIssue]
def forward_flops(
    query, key, value, projection, half_norms, mask, sequences, number, constants, causal, *_, **__
) -> int:
    """Of the compiled kernel's forward pass."""
    features, width = projection.shape[0], -(-query.shape[-1] // 32) * 32
    values = -(-value.shape[-1] // 32) * 32
    total = 0
    for places, has_before, has_behind in _of_chunks(sequences):
        total += 2 * places * width * features  # features of queries and of keys
        state = places * features * values
        if causal:
            total += _triangle(places) * (features + values) + state * (has_before + has_behind)
        else:
            total += 2 * state
    return 2 * query.shape[1] * total


@register_flop_formula(torch.ops.protein_lm.linear_attention_backward, get_raw=True)  # pyright: ignore[reportCallIssue]
def backward_flops(
    grad, query, key, value, projection, half_norms, mask, sequences, output, normalizer, states, sums, number, constants,
    causal, *_, **__,
) -> int:  # fmt: skip
    """Of the compiled kernel's backward pass."""
    features, width = projection.shape[0], -(-query.shape[-1] // 32) * 32
    values = -(-value.shape[-1] // 32) * 32
    total = 0
    for places, has_before, has_behind in _of_chunks(sequences):
        total += 4 * places * width * features  # features of queries and of keys, and back through them
        state = places * features * values
        if causal:
            total += _triangle(places) * (3 * features + 3 * values) + 2 * state * (has_before + has_behind)
        else:
            total += 4 * state
    return 2 * query.shape[1] * total


if __name__ == "__main__":
    sys.exit(main())
