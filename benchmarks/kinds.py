"""Every kind of attention on the same data, with the same model size and the same tokens: which one to choose.

    python -m benchmarks.kinds STORE -o kinds.json --markdown kinds.md --plot kinds.png

trains one small model per kind and objective, each in a process of its own, and reports validation perplexity, speed and
memory. Results are kept as they come in `kinds.jsonl`; the same command goes on where it stopped. Models are as in
`protein_lm`, but without k-mers and convolution, so that attention has to do the work.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from benchmarks import memory
from benchmarks.machine import processor
from protein_lm.analysis.evaluation import evaluate
from protein_lm.attention.kinds.table import ATTENTION_KINDS, with_defaults
from protein_lm.checkpoint.directory import load_model
from protein_lm.config import Recipe
from protein_lm.corpus.joined import open_corpus
from protein_lm.corpus.split import Split
from protein_lm.errors import NumericalError, ProteinLMError
from protein_lm.training.language_modelling import LanguageModelling
from protein_lm.training.loop import Trainer
from protein_lm.training.run_log import read_metrics

ROOT = Path(__file__).resolve().parents[1]
OBJECTIVES = ("masked", "causal")


def recipe(
    kind: str, objective: str, *, steps: int, tokens: int, length: int, seed: int, layers: int, width: int
) -> Recipe:
    """The training run of one kind; nothing but the kind differs between runs."""
    return Recipe.model_validate(
        {
            "model": {
                "objective": objective,
                "attention": with_defaults(kind, {"num_features": 64, "window": 128}),
                "num_layers": layers,
                "width": width,
                "num_heads": 4,
                "feedforward_width": 2 * width,
                "max_length": length,
            },
            "data": {"tokens_per_batch": tokens},
            "training": {
                "num_steps": steps,
                "optimizer": "muon",
                "learning_rate": 0.006,
                "gradient_clip": 1.0,
                "warmup_steps": min(20, steps // 5),
                "decay_fraction": 0.6,
                "precision": "float32",
                "validate_every": steps,
                "checkpoint_every": steps,
                "seed": seed,
            },
        }
    )


def measure(store: Path, planned: Recipe) -> dict[str, Any]:
    """Train and evaluate in this process."""
    memory.limit_to_available()
    corpus = open_corpus(store)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        trainer = Trainer(LanguageModelling(planned, corpus), run)
        before = memory.reset_peak()
        start = time.perf_counter()
        trainer.fit()
        seconds = time.perf_counter() - start
        rows = [row for row in read_metrics(run) if row["split"] == "train"]
        peak = memory.peak()
        model = load_model(run / "last")
        table = evaluate(model, corpus, splits=[Split.VALID]).iloc[0]
    return {
        "perplexity": float(table["perplexity"]),
        "accuracy": float(table["accuracy"]),
        "tokens_per_second": sorted(row["tokens_per_second"] for row in rows)[len(rows) // 2],
        "seconds": seconds,
        "peak_bytes": peak - before,
        "num_parameters": model.num_parameters,
        "num_kernel_parameters": model.num_kernel_parameters,
    }


def _worker(arguments: str) -> None:
    job = json.loads(arguments)
    planned = recipe(**job["recipe"])
    try:
        print(json.dumps(measure(Path(job["store"]), planned)))
    except (RuntimeError, NumericalError) as error:  # memory, or NaN: a result too
        print(json.dumps({"failed": " ".join(str(error).split())[:200]}))
    except ProteinLMError as error:  # a mistake in the choice, the same for every kind
        raise SystemExit(f"benchmarks.kinds: error: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.kinds", description="Train every kind of attention on the same data."
    )
    parser.add_argument("store", type=Path, metavar="STORE", help="corpus made by protein-lm data prepare")
    parser.add_argument("-o", "--output", type=Path, default=Path("kinds.json"), help="results, kinds.json by default")
    parser.add_argument("--markdown", type=Path, help="tables; they are printed by default")
    parser.add_argument("--plot", type=Path, help="figure: perplexity against time")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", default=list(ATTENTION_KINDS))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps, 300 by default")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per step, 4096 by default")
    parser.add_argument("--length", type=int, default=1024, help="the models' window, 1024 by default")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    return parser


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure what is not there yet; returns all results, in order."""
    journal = options.output.with_suffix(".jsonl")
    done: dict[str, dict[str, Any]] = {}
    if journal.exists():
        for line in journal.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            done[json.dumps(row["job"], sort_keys=True)] = row
    results = []
    for job in _jobs(options):
        key = json.dumps(job, sort_keys=True)
        if key not in done:
            command = [sys.executable, "-m", "benchmarks.kinds", "--worker", json.dumps(job)]
            process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if "benchmarks.kinds: error:" in process.stderr:
                raise SystemExit(process.stderr.strip().splitlines()[-1])
            lines = process.stdout.strip().splitlines()
            row = {"job": job, **(json.loads(lines[-1]) if lines else {"failed": process.stderr.strip()[-200:]})}
            with journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            done[key] = row
            facts = row.get("failed") or f"perplexity {row['perplexity']:.2f}, {row['tokens_per_second']:,.0f} tokens/s"
            print(f"{job['recipe']['objective']} {job['recipe']['kind']}: {facts}", file=sys.stderr, flush=True)
        results.append(done[key])
    return results


def _jobs(options: argparse.Namespace) -> list[dict[str, Any]]:
    if unknown := sorted(set(options.kinds) - ATTENTION_KINDS.keys()):
        known = ", ".join(sorted(ATTENTION_KINDS))
        raise SystemExit(f"benchmarks.kinds: error: {unknown[0]} is no kind; known ones: {known}")
    without = {kind for kind, declared in ATTENTION_KINDS.items() if not declared.has_causal_form}
    shared = {"steps": options.steps, "tokens": options.tokens, "length": options.length}
    shared |= {"layers": options.layers, "width": options.width}
    return [
        {
            "store": str(options.store.resolve()),
            "recipe": {"kind": kind, "objective": objective, "seed": seed, **shared},
        }
        for objective in options.objectives
        for kind in options.kinds
        for seed in options.seeds
        if not (objective == "causal" and kind in without)
    ]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown tables, one per objective, the best perplexity first; means over seeds."""
    parts = []
    for objective in dict.fromkeys(row["job"]["recipe"]["objective"] for row in results):
        lines = [
            f"**{objective}**",
            "",
            "| attention | perplexity | tokens/s | peak MiB | weights of the kernel |",
            "|---|---:|---:|---:|---:|",
        ]
        rows = _means([row for row in results if row["job"]["recipe"]["objective"] == objective])
        for kind, row in sorted(rows.items(), key=lambda item: item[1].get("perplexity", float("inf"))):
            if "failed" in row:
                lines.append(f"| {kind} | {row['failed']} | | | |")
            else:
                facts = f"{row['perplexity']:.2f} | {row['tokens_per_second']:,.0f} | {row['peak_bytes'] / 2**20:,.0f}"
                lines.append(f"| {kind} | {facts} | {row['num_kernel_parameters']:,.0f} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(row["job"]["recipe"]["kind"], []).append(row)
    means = {}
    for kind, group in grouped.items():
        if failed := [row for row in group if "failed" in row]:
            means[kind] = {"failed": failed[0]["failed"]}
        else:
            names = [name for name, value in group[0].items() if isinstance(value, int | float)]
            means[kind] = {name: sum(row[name] for row in group) / len(group) for name in names}
    return means


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Perplexity against the time of training, a panel per objective."""
    objectives = list(dict.fromkeys(row["job"]["recipe"]["objective"] for row in results))
    figure, axes = plt.subplots(
        1, len(objectives), figsize=(7 * len(objectives), 5), squeeze=False, layout="constrained"
    )
    for panel, objective in zip(axes[0], objectives, strict=True):
        means = _means([row for row in results if row["job"]["recipe"]["objective"] == objective])
        points = {kind: (row["seconds"], row["perplexity"]) for kind, row in means.items() if "failed" not in row}
        panel.plot(*zip(*points.values(), strict=True), "o", color="#1b4f8a", markersize=4)
        panel.set(xscale="log", title=objective, xlabel="seconds of training", ylabel="validation perplexity")
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(ScalarFormatter())
        panel.tick_params(axis="x", which="minor", labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        figure.canvas.draw()
        _label(panel, points)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def _label(panel: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Write names beside points, each as near as leaves those before it legible."""
    scale = panel.figure.dpi / 72
    taken: list[tuple[float, float, float]] = []
    for kind, point in sorted(points.items(), key=lambda item: item[1][1]):
        x, y = panel.transData.transform(point) / scale
        width = 4.6 * len(kind)
        for step in range(40):
            place = y + 2 + (step // 2 + 1) * (9 if step % 2 else -9) * (step > 0)
            if all(abs(place - other) >= 9 or x + width < left or x > right for left, right, other in taken):
                break
        taken.append((x, x + width + 8, place))
        line = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.6"} if abs(place - y) > 9 else None
        panel.annotate(kind, point, (5, place - y - 2), textcoords="offset points", fontsize=8, arrowprops=line)


def main() -> None:
    """Run the command."""
    if sys.argv[1:2] == ["--worker"]:
        _worker(sys.argv[2])
        return
    options = _parser().parse_args()
    results = run(options)
    facts = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    options.output.write_text(json.dumps({"machine": facts, "results": results}, indent=2) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(table(results), encoding="utf-8")
    else:
        print(table(results))
    if options.plot:
        draw(results, options.plot)


if __name__ == "__main__":
    main()
