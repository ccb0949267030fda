"""ListOps of Long Range Arena on one machine: nested lists of digits under MAX, MIN, MED and SUM_MOD, ten classes.

    python -m benchmarks.listops -o listops.json --markdown listops.md

Generator after the published rules of the task (Nangia & Bowman 2018, arXiv 1804.06028; Tay et al. 2020, arXiv 2011.04006,
section 2.2.1), seeded. A classifier of bidirectional blocks with a mean over tokens is trained per kind of attention and
seed. Long Range Arena trains at lengths up to 2,000 for thousands of steps on accelerators: what two cores can train is far
shorter, and the table says so.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from protein_lm.attention.kinds.interface import LayerShape
from protein_lm.attention.kinds.table import ATTENTION_KINDS, build_attention, with_defaults
from protein_lm.attention.rows import Rows
from protein_lm.model.block import AttentionLayer, Block, FeedForward
from protein_lm.model.embedding import LearnedPositions

OPERATORS = ("MAX", "MIN", "MED", "SM")
TOKENS = ("<pad>", *"0123456789", *(f"[{name}" for name in OPERATORS), "]")
NUM_CLASSES = 10
KINDS = (
    "exact",
    "performer-relu",
    "performer-softmax",
    "elu",
    "softplus",
    "oglu",
    "oglu-2",
    "aoglu-3",
    "lsh",
    "local",
)
PUBLISHED = {
    "exact": 36.37,
    "softplus": 18.54,
    "glu": 18.67,
    "orthogonal-softplus": 18.19,
    "oglu": 18.45,
    "oglu-2": 18.32,
    "aoglu-3": 18.45,
}
"""Accuracy in percent on ListOps of Yorsh & Kovalenko 2022 (arXiv 2211.04076), at length 2,000, where there is one."""


def expression(generator: Random, *, max_depth: int, max_arguments: int, max_length: int, digit: float = 0.75) -> Any:
    """[operator, arguments...], each a digit or an expression; below `max_depth` a digit with probability `digit`.

    None if it grew beyond `max_length` tokens: nearly all do, and the rest of them need not be drawn.
    """
    num_tokens = 0

    def draw(depth: int) -> Any:
        nonlocal num_tokens
        if depth > 1 and (depth >= max_depth or generator.random() < digit):
            num_tokens += 1
            return generator.randrange(10)
        num_tokens += 2
        operator, count = generator.choice(OPERATORS), generator.randint(2, max_arguments)
        if num_tokens + count > max_length:
            raise _TooLong
        return [operator, *(draw(depth + 1) for _ in range(count))]

    try:
        return draw(1)
    except _TooLong:
        return None


class _TooLong(Exception):
    pass


def value(tree: Any) -> int:
    """What an expression evaluates to; the median is rounded down, sums are modulo 10.

    >>> value(["MAX", 2, 9, ["MIN", 4, 7], 0])
    9
    >>> value(["MED", 1, 4, 8, 9]), value(["SM", 5, 6, 7])
    (6, 8)
    """
    if isinstance(tree, int):
        return tree
    arguments = [value(part) for part in tree[1:]]
    if tree[0] == "MED":
        return int(np.median(arguments))
    return {"MAX": max, "MIN": min, "SM": lambda numbers: sum(numbers) % 10}[tree[0]](arguments)


def write(tree: Any) -> list[str]:
    """Tokens of an expression.

    >>> write(["MAX", 2, ["SM", 3, 4]])
    ['[MAX', '2', '[SM', '3', '4', ']', ']']
    """
    if isinstance(tree, int):
        return [str(tree)]
    return [f"[{tree[0]}", *(token for part in tree[1:] for token in write(part)), "]"]


def examples(count: int, *, lengths: tuple[int, int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (count, longest), mask (count, longest) and values (count,) of different expressions of these lengths."""
    generator = Random(seed)
    ids = {token: number for number, token in enumerate(TOKENS)}
    rows, targets, seen = [], [], set()
    while len(rows) < count:
        tree = expression(generator, max_depth=10, max_arguments=10, max_length=lengths[1])
        tokens = write(tree) if tree is not None else []
        if lengths[0] <= len(tokens) <= lengths[1] and (text := " ".join(tokens)) not in seen:
            seen.add(text)
            rows.append([ids[token] for token in tokens])
            targets.append(value(tree))
    padded = torch.zeros(count, lengths[1], dtype=torch.long)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = torch.tensor(row)
    return padded, padded != 0, torch.tensor(targets)


class Classifier(nn.Module):
    """Embedding, blocks, mean over real tokens, one hidden layer."""

    def __init__(self, kind: str, *, length: int, width: int = 64, num_heads: int = 4, num_layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(TOKENS), width)
        self.positions = LearnedPositions(length, width)
        blocks = []
        for layer in range(num_layers):
            shape = LayerShape(
                num_heads=num_heads, head_width=width // num_heads, causal=False, max_length=length, seed=layer
            )
            operation = build_attention(with_defaults(kind, {"num_features": 64, "window": 32}), shape)
            attention = AttentionLayer(width, num_heads, operation)
            norms = nn.LayerNorm(width), nn.LayerNorm(width)
            blocks.append(Block(attention, FeedForward(width, 2 * width), norms, 0.0))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, NUM_CLASSES)
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, 10) of token ids (B, L)."""
        hidden = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            hidden = block(hidden, None, Rows(mask))
        real = mask[..., None]
        return self.head((hidden * real).sum(1) / real.sum(1))


def train(
    kind: str, data: dict[str, tuple[Tensor, Tensor, Tensor]], *, steps: int, batch: int, seed: int
) -> dict[str, Any]:
    """Test accuracy and time of one run; nothing but the kind differs between kinds."""
    torch.manual_seed(seed)
    tokens, mask, targets = data["train"]
    model = Classifier(kind, length=tokens.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    order = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for _ in range(steps):
        chosen = torch.randint(len(targets), (batch,), generator=order)
        longest = int(mask[chosen].sum(1).max())
        loss = functional.cross_entropy(model(tokens[chosen, :longest], mask[chosen, :longest]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        tokens, mask, targets = data["test"]
        parts = zip(tokens.split(100), mask.split(100), strict=True)
        found = torch.cat([model(part, real).argmax(-1) for part, real in parts])
    return {"accuracy": float((found == targets).float().mean()), "seconds": seconds}


def table(results: Sequence[dict[str, Any]], header: str) -> str:
    """Markdown: mean and spread over seeds beside the published figures."""
    lines = [
        header,
        "",
        "| attention | accuracy % (mean ± sd) | seconds | 2211.04076, L 2,000 |",
        "|---|---:|---:|---:|",
    ]
    for kind in dict.fromkeys(row["kind"] for row in results):
        rows = [row for row in results if row["kind"] == kind]
        accuracies = [100 * row["accuracy"] for row in rows]
        spread = statistics.stdev(accuracies) if len(rows) > 1 else float("nan")
        published = f"{PUBLISHED[kind]:.2f}" if kind in PUBLISHED else ""
        seconds = statistics.mean(row["seconds"] for row in rows)
        lines.append(f"| {kind} | {statistics.mean(accuracies):.1f} ± {spread:.1f} | {seconds:.0f} | {published} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="benchmarks.listops", description="ListOps for several kinds of attention.")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("listops.json"), help="results, listops.json by default"
    )
    parser.add_argument("--markdown", type=Path, help="table; it is printed by default")
    parser.add_argument("--kinds", nargs="+", choices=sorted(ATTENTION_KINDS), default=KINDS, metavar="KIND")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--min-length", type=int, default=20, help="tokens, 20 by default")
    parser.add_argument("--max-length", type=int, default=100, help="tokens, 100 by default")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps, 1000 by default")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--train", type=int, default=20000, help="training expressions, 20000 by default")
    parser.add_argument("--test", type=int, default=2000, help="test expressions, 2000 by default")
    options = parser.parse_args()
    lengths = options.min_length, options.max_length
    everything = examples(options.train + options.test, lengths=lengths, seed=0)
    tokens, mask, targets = everything
    data = {
        "train": (tokens[: options.train], mask[: options.train], targets[: options.train]),
        "test": (tokens[options.train :], mask[options.train :], targets[options.train :]),
    }
    commonest = data["test"][2].bincount().max().item() / options.test
    header = (
        f"Lengths {lengths[0]} to {lengths[1]}, {options.steps:,} steps of {options.batch}, {options.train:,} training "
        f"expressions, {options.test:,} test expressions, commonest answer {100 * commonest:.1f} %, "
        f"{len(options.seeds)} seeds"
    )
    journal = options.output.with_suffix(".jsonl")
    settings = [*lengths, options.steps, options.batch, options.train, options.test]
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    done = {(row["kind"], row["seed"]): row for row in rows if row["settings"] == settings}
    results = []
    for seed in options.seeds:
        for kind in options.kinds:
            if (kind, seed) not in done:
                row = {"kind": kind, "seed": seed, "settings": settings}
                row |= train(kind, data, steps=options.steps, batch=options.batch, seed=seed)
                with journal.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                done[kind, seed] = row
                print(
                    f"{kind}, seed {seed}: {100 * row['accuracy']:.1f} %, {row['seconds']:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            results.append(done[kind, seed])
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(table(results, header), encoding="utf-8")
    else:
        print(table(results, header))


if __name__ == "__main__":
    main()
