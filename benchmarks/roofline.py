"""How near our attention and our training step come to what the machine can do: executed FLOPs, their fraction of the
rate of large matrix products in the same process, and where the time of a step goes.

    python -m benchmarks.roofline [--dtypes bfloat16 float32] [--lengths 1024 8192] [--recipes FILE.yaml ...]
                                  [-o FILE.json] [--markdown FILE.md]

Recipes are measured as they are, optimizer, norm of the gradient and all, on proteins as long as the bundled sample's.
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

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from benchmarks.contestants import attention, training
from benchmarks.contestants.base import Prepared
from benchmarks.machine import description, fast_dtypes, matrix_product_gflops
from benchmarks.spec import Spec
from benchmarks.worker import seconds
from protein_lm import alphabet
from protein_lm.batches.packed_batches import IGNORED, causal_targets, pack
from protein_lm.choices import Objective
from protein_lm.config import Recipe, load_recipe
from protein_lm.model.language_model import ProteinLM
from protein_lm.model.precision import choose
from protein_lm.native.freed_memory import reuse_freed_memory
from protein_lm.native.library import describe, kernels
from protein_lm.training.optimizer import build_optimizers

PASSES = 3
STRIP, TALL = (16, 4) if getattr(kernels(), "level", None) == "avx2" else (32, 8)
"""Of linear_attention.cpp with AVX2, or AVX-512."""
PARTS = {
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::addbmm"),
    "linear layers, compiled": (
        "protein_lm::linear_backward",
        "GeneratedBackwardFor_protein_lm_linear_default",
        "protein_lm::linear",
    ),
    "attention by blocks, compiled": (
        "protein_lm::block_attention_backward",
        "GeneratedBackwardFor_protein_lm_block_attention_default",
        "protein_lm::block_attention",
    ),
    "linear attention, compiled": (
        "protein_lm::linear_attention",
        "GeneratedBackwardFor_protein_lm_linear_attention_default",
        "protein_lm::linear_attention_backward",
    ),
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
    parser.add_argument("--dtypes", nargs="+", default=fast_dtypes(), choices=["bfloat16", "float32"])
    parser.add_argument("--recipes", nargs="*", type=Path, default=[], help="training steps of these, too")
    parser.add_argument("--lengths", nargs="*", type=int, default=[1024, 8192])
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
        for path in options.recipes:
            recipe = load_recipe(path, [f"training.precision={dtype}"])
            tokens = recipe.data.tokens_per_batch
            spec = Spec("training_step", path.stem, recipe.model.objective.value, dtype, 1, tokens)
            rows.append(_measure(spec, recipe_step(recipe), with_parts=True))
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


def recipe_step(recipe: Recipe) -> Prepared:
    """One step of a recipe without the reading of a corpus: a batch of random proteins, packed and masked as in training."""
    reuse_freed_memory()  # as the trainer does
    config = recipe.training
    model = ProteinLM(recipe.model)
    model.initialize(torch.Generator().manual_seed(0))
    model.train()
    if model.kmer_embedding is not None:
        model.kmer_embedding.keep_gradients()  # this too
    optimizers = build_optimizers(model, config)
    tokens, packing = pack(_proteins(recipe.data.tokens_per_batch, recipe.model.max_length - 2))
    if recipe.model.objective is Objective.CAUSAL:
        targets = causal_targets(tokens, packing)
    else:
        targets = tokens.masked_fill(torch.rand(tokens.shape) > recipe.data.mask_fraction, IGNORED)
    selected = targets != IGNORED
    kept = targets[selected]
    context = choose(config.precision, "cpu")

    def once() -> None:
        with context.context("cpu"):
            logits = model(tokens, packing=packing, selected=selected)
        functional.cross_entropy(logits.float(), kept).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return Prepared(once, units=tokens.numel())


def _proteins(num_tokens: int, longest: int) -> list[Any]:
    """Random ones that fill a batch, of 20 residues to the longest, most of them of some hundreds."""
    generator, proteins = np.random.default_rng(0), []
    while num_tokens > 22:
        length = min(int(generator.lognormal(5.6, 0.6)) + 20, longest, num_tokens - 2)
        proteins.append(generator.integers(0, alphabet.NUM_STANDARD, length) + alphabet.FIRST_RESIDUE)
        num_tokens -= length + 2
    return proteins


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
    chunks, library = [], kernels()
    assert library is not None
    for _, start, end, _ in sequences.tolist():
        chunk = library.chunk(end - start)
        for first in range(start, end, chunk):
            places = -(-min(chunk, end - first) // 32) * 32
            chunks.append((places, first > start, first + chunk < end))
    return chunks


def _triangle(places: int) -> int:
    """Numbers of a triangular product that are formed, tile by tile."""
    return sum((places - column // TALL * TALL) * STRIP for column in range(0, places, STRIP))


@register_flop_formula(torch.ops.protein_lm.linear_attention, get_raw=True)  # pyright: ignore[reportCallIssue]
def forward_flops(query, key, value, projection, half_norms, mask, sequences, switches, constants, *_, **__) -> int:
    """Of the compiled kernel's forward pass."""
    features, width = projection.shape[0], -(-query.shape[-1] // 32) * 32
    values = -(-value.shape[-1] // 32) * 32
    total = 0
    for places, has_before, has_behind in _of_chunks(sequences):
        total += 2 * places * width * features  # features of queries and of keys
        state = places * features * values
        if switches[1]:  # causal
            total += _triangle(places) * (features + values) + state * (has_before + has_behind)
        else:
            total += 2 * state
    return 2 * query.shape[1] * total


@register_flop_formula(torch.ops.protein_lm.linear_attention_backward, get_raw=True)  # pyright: ignore[reportCallIssue]
def backward_flops(
    grad, query, key, value, projection, half_norms, mask, sequences, output, normalizer, states, sums, switches, *_, **__
) -> int:  # fmt: skip
    """Of the compiled kernel's backward pass."""
    features, width = projection.shape[0], -(-query.shape[-1] // 32) * 32
    values = -(-value.shape[-1] // 32) * 32
    total = 0
    for places, has_before, has_behind in _of_chunks(sequences):
        total += 4 * places * width * features  # features of queries and of keys, and back through them
        state = places * features * values
        if switches[1]:  # causal
            total += _triangle(places) * (3 * features + 3 * values) + 2 * state * (has_before + has_behind)
        else:
            total += 4 * state
    return 2 * query.shape[1] * total


@register_flop_formula(torch.ops.protein_lm.linear, get_raw=True)  # pyright: ignore[reportCallIssue]
def linear_flops(rows, weight, *_, **__) -> int:
    """Of a compiled linear layer's forward pass."""
    return 2 * rows.shape[0] * weight.numel()


@register_flop_formula(torch.ops.protein_lm.linear_backward, get_raw=True)  # pyright: ignore[reportCallIssue]
def linear_backward_flops(gradient, rows, weight, activates, needs_rows, needs_weight, *_, **__) -> int:
    """Of its backward pass."""
    return 2 * rows.shape[0] * weight.numel() * (needs_rows + needs_weight)


@register_flop_formula(torch.ops.protein_lm.block_attention, get_raw=True)  # pyright: ignore[reportCallIssue]
def block_flops(query, key, value, key_blocks, hidden, *_, **__) -> int:
    """Of compiled attention by blocks, forward: those of which something is seen."""
    return 2 * _scores(query, key_blocks, hidden) * (query.shape[-1] + value.shape[-1])


@register_flop_formula(torch.ops.protein_lm.block_attention_backward, get_raw=True)  # pyright: ignore[reportCallIssue]
def block_backward_flops(grad, grad_logsumexp, query, key, value, key_blocks, hidden, *_, **__) -> int:
    """Of its backward pass."""
    return 2 * _scores(query, key_blocks, hidden) * (3 * query.shape[-1] + 2 * value.shape[-1])


def _scores(query: torch.Tensor, key_blocks: torch.Tensor, hidden: torch.Tensor) -> int:
    """Scores that are formed."""
    block = hidden.shape[2]
    seen = ~hidden.view(*hidden.shape[:3], key_blocks.shape[1], block).all(dim=-1).all(dim=2)
    return int(seen.expand(query.shape[0], -1, -1).sum()) * block**2


if __name__ == "__main__":
    sys.exit(main())
