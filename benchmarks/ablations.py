"""What each part of a recipe is worth: the recipe with one thing changed, trained for the same time.

    python -m benchmarks.ablations STORE --recipe scripts/recipes/small.yaml -o ablations --minutes 5 --seeds 0 1

First the speed of every variant is measured, in turns in one run; each then gets as many steps as fit the time at that speed.
What it learns does not depend on what else the machine does meanwhile. Results are kept as they come, in a `.jsonl` for each
objective, and the same command goes on where it stopped.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants.learners import WARMUP, ours, validation_sequences
from benchmarks.machine import processor
from protein_lm.batches.plan import PlanPosition
from protein_lm.config import Recipe, load_recipe
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.joined import open_corpus
from protein_lm.inference.likelihood import Residues

ROOT = Path(__file__).resolve().parents[1]
OBJECTIVES = ("masked", "causal")
AS_IS = "the recipe"
ROUNDS, STEPS_OF_A_ROUND = 5, 3
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not there yet, and report."""
    options = _parser().parse_args(arguments)
    changes = {AS_IS: [], **dict(map(_change, options.changes))}
    corpus = open_corpus(options.store)
    parts = [f"{processor()}, {torch.get_num_threads()} threads, {options.minutes:g} minutes each.\n"]
    for objective in options.objectives:
        recipes = {
            name: load_recipe(options.recipe, [*options.overrides, f"model.objective={objective}", *settings])
            for name, settings in changes.items()
        }
        parts.append(table(objective, measure(recipes, objective, corpus, options)))
    print("\n".join(parts))
    return 0


def measure(recipes: dict[str, Recipe], objective: str, corpus: Corpus, options: argparse.Namespace) -> list[Row]:
    """Rows of one objective: `name`, `seed`, `seconds_per_token`, `num_tokens`, `perplexity`."""
    journal = Path(f"{options.output}.{objective}.jsonl")
    rows: list[Row] = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    speeds = {row["name"]: row["seconds_per_token"] for row in rows}
    missing = {name: recipe for name, recipe in recipes.items() if name not in speeds}
    if missing:
        # The recipe itself is timed again beside those that are new: only ratios within one run are used.
        timed = seconds_per_token({AS_IS: recipes[AS_IS], **missing}, corpus)
        scale = speeds.get(AS_IS, timed[AS_IS]) / timed[AS_IS]
        speeds |= {name: scale * timed[name] for name in missing}
    for seed in options.seeds:
        for name, recipe in recipes.items():
            if any(row["name"] == name and row["seed"] == seed for row in rows):
                continue
            seeded = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})
            validation = validation_sequences(corpus, options.validation, recipe.model.max_length - 2)
            row = {"name": name, "seed": seed, "seconds_per_token": speeds[name]}
            row |= trained(seeded, corpus, validation, num_tokens=60 * options.minutes / speeds[name])
            rows.append(row)
            with journal.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{objective} {name}, seed {seed}: {row['perplexity']:.3f}", file=sys.stderr, flush=True)
    return [row for row in rows if row["name"] in recipes and row["seed"] in options.seeds]


def seconds_per_token(recipes: dict[str, Recipe], corpus: Corpus) -> dict[str, float]:
    """Median over rounds in which every recipe takes a few steps."""
    learners = {name: ours(recipe, corpus, []) for name, recipe in recipes.items()}
    steps = {name: learner.steps(PlanPosition()) for name, learner in learners.items()}
    times: dict[str, list[float]] = {name: [] for name in recipes}
    for number in range(ROUNDS + 1):
        for name, learner in learners.items():
            start, seen = time.perf_counter(), 0
            for _ in range(STEPS_OF_A_ROUND):
                loss, num_tokens, _ = next(steps[name])
                learner.step(loss, WARMUP)
                seen += num_tokens
            if number:  # the first round allocates
                times[name].append((time.perf_counter() - start) / seen)
    return {name: statistics.median(values) for name, values in times.items()}


def trained(recipe: Recipe, corpus: Corpus, validation: Sequence[Residues], *, num_tokens: float) -> Row:
    """Train on so many tokens, the learning rate falling to 0 with them, and validate."""
    learner = ours(recipe, corpus, validation)
    seen, start = 0, time.perf_counter()
    for loss, count, _ in learner.steps(PlanPosition()):
        learner.step(loss, seen / num_tokens)
        seen += count
        if seen >= num_tokens:
            break
    seconds = time.perf_counter() - start
    return {"num_tokens": seen, "seconds": seconds, "perplexity": learner.perplexity()}


def table(objective: str, rows: Sequence[Row]) -> str:
    """Markdown: perplexity of each seed, the best mean first, and the speed beside the recipe's."""
    named: dict[str, list[Row]] = {}
    for row in rows:
        named.setdefault(row["name"], []).append(row)
    means = {name: statistics.mean(row["perplexity"] for row in group) for name, group in named.items()}
    base = named[AS_IS][0]["seconds_per_token"]
    lines = [
        f"**{objective}**",
        "",
        "| change | perplexity | of each seed | tokens/s beside the recipe's |",
        "|---|---:|---|---:|",
    ]
    for name in sorted(named, key=means.__getitem__):
        group = named[name]
        seeds = ", ".join(f"{row['perplexity']:.2f}" for row in group)
        lines.append(f"| {name} | {means[name]:.2f} | {seeds} | {base / group[0]['seconds_per_token']:.2f} |")
    return "\n".join([*lines, ""])


def _change(text: str) -> tuple[str, list[str]]:
    return text, text.split()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.ablations", description="What each part of a recipe is worth.")
    parser.add_argument("store", type=Path, metavar="STORE", help="corpus made by protein-lm data prepare")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("ablations"), help="beginning of the names of results"
    )
    parser.add_argument("--recipe", type=Path, default=ROOT / "scripts" / "recipes" / "small.yaml")
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], metavar="KEY=VALUE", help="changes of all")
    parser.add_argument("--changes", nargs="+", default=[], metavar="'KEY=VALUE ...'", help="one variant each")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--minutes", type=float, default=5.0, help="of training for each, 5 by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--validation", type=int, default=512, help="sequences, 512 by default")
    return parser


if __name__ == "__main__":
    sys.exit(main())
