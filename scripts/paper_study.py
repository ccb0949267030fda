"""The protein study of the Performer paper at the size of a laptop: a table and a figure.

Transformer, Performer-ReLU and Performer-softmax, causal (the paper's U) and masked (B), learn from the same tokens in the
same order; each is evaluated on unseen proteins of known families (test) and on unseen families (held_out), beside the
unigram baseline. Source: Choromanski et al. 2021 (arXiv 2009.14794), section 4.4.

    protein-lm data prepare data/swissprot_sample.fasta.gz --split-table data/swissprot_sample_families.tsv.gz -o corpus
    python scripts/paper_study.py corpus -o study
    python scripts/paper_study.py corpus -o study --concatenated --minutes 5

The second command is the paper's other experiment: proteins joined and cut into rows of 8192 tokens, from which a Transformer
and a Performer of the same size learn for the same time. Runs are kept in the folder; a command that was interrupted goes on
where it was.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from protein_lm.analysis.curves import learning_curves
from protein_lm.analysis.evaluation import evaluate
from protein_lm.attention.kinds.table import with_defaults
from protein_lm.checkpoint.directory import load_model
from protein_lm.config import Recipe, load_recipe
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.joined import open_corpus
from protein_lm.corpus.split import Split
from protein_lm.plots.curves import compare_runs
from protein_lm.plots.saving import save_figure
from protein_lm.training.language_modelling import LanguageModelling
from protein_lm.training.loop import Trainer
from protein_lm.training.run_log import read_metrics

MODELS = {"Transformer": "exact", "Performer-ReLU": "performer-relu", "Performer-softmax": "performer-softmax"}
OBJECTIVES = {"U": "causal", "B": "masked"}
SPLITS = (Split.TEST, Split.HELD_OUT)
LONG = 8192
TRIAL = {"num_steps": 6, "warmup_steps": 1, "validate_every": 6, "checkpoint_every": 6, "num_validation_sequences": 1}


def main() -> None:
    """Train what is missing, and write a table (.csv, .md) and a figure of either experiment."""
    options = _parser().parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    (concatenated if options.concatenated else study)(options, open_corpus(options.store))


def study(options: argparse.Namespace, corpus: Corpus) -> None:
    """Three models, two objectives, some seeds, the same tokens."""
    rows, first_runs = [], []
    for letter in OBJECTIVES:
        for model in MODELS:
            for seed in options.seeds:
                run = options.output / f"{letter}-{model}-{seed}"
                rows += result(run, recipe(letter, model, seed, options), corpus, f"{letter} {model}")
                if seed == options.seeds[0]:
                    first_runs.append(run)
    write(options.output, "results", pd.DataFrame(rows), learning_curves(first_runs), against="num_tokens")


def concatenated(options: argparse.Namespace, corpus: Corpus) -> None:
    """Transformer and Performer-ReLU, masked, on rows of 8192 tokens, for as many steps as fit the time."""
    rows, runs = [], []
    for seed in options.seeds:
        for model in ("Transformer", "Performer-ReLU"):
            run = options.output / f"8192-{model}-{seed}"
            base = recipe("B", model, seed, options).model_dump(mode="json")
            base["model"]["max_length"] = base["data"]["tokens_per_batch"] = LONG
            base["data"]["windows"] = "concatenate"
            if not run.exists():
                base["training"] |= {"num_steps": steps_in(60 * options.minutes, base, corpus), "accumulation": 1}
                steps = base["training"]["num_steps"]
                base["training"] |= {"warmup_steps": steps // 20, "validate_every": max(1, steps // 8)}
            else:
                base = load_recipe(run / "recipe.yaml").model_dump(mode="json")
            rows += result(run, Recipe.model_validate(base), corpus, f"B {model}, rows of {LONG}")
            if seed == options.seeds[0]:
                runs.append(run)
    write(options.output, "concatenated", pd.DataFrame(rows), learning_curves(runs), against="seconds")


def steps_in(seconds: float, planned: dict[str, Any], corpus: Corpus) -> int:
    """Steps of a recipe that fit, by the median speed of a few."""
    trial = {**planned, "training": planned["training"] | TRIAL}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        Trainer(LanguageModelling(Recipe.model_validate(trial), corpus), run).fit()
        speeds = [row["tokens_per_second"] for row in read_metrics(run) if row["split"] == "train"]
    return max(4, round(seconds * statistics.median(speeds) / LONG))


def write(folder: Path, name: str, table: pd.DataFrame, curves: pd.DataFrame, *, against: str) -> None:
    """The table, also as Markdown, and learning curves."""
    table.to_csv(folder / f"{name}.csv", index=False)
    (folder / f"{name}.md").write_text(markdown(table))
    figure = folder / f"{name}.png"
    figure.unlink(missing_ok=True)
    save_figure(compare_runs(curves, metric="accuracy", against=against), figure)
    print(markdown(table))


def recipe(letter: str, model: str, seed: int, options: argparse.Namespace) -> Recipe:
    """The paper's architecture, smaller; nothing but attention, objective and seed differs between runs."""
    return Recipe.model_validate(
        {
            "model": {
                "objective": OBJECTIVES[letter],
                "attention": with_defaults(MODELS[model], {"num_features": 64}),
                "num_layers": options.layers,
                "width": options.width,
                "num_heads": 4,
                "feedforward_width": 2 * options.width,
                "max_length": 1024,
            },
            "data": {"tokens_per_batch": 2048, "mask_fraction": 0.15},
            "training": {
                "num_steps": options.steps,
                "optimizer": "muon",
                "learning_rate": 0.006,
                "gradient_clip": 1.0,
                "warmup_steps": min(30, options.steps // 5),
                "precision": "auto",
                "validate_every": max(1, options.steps // 8),
                "num_validation_sequences": 128,
                "checkpoint_every": max(1, options.steps // 4),
                "seed": seed,
            },
        }
    )


def result(run: Path, planned: Recipe, corpus: Corpus, model: str) -> list[dict[str, Any]]:
    """Train, unless it is done, and evaluate the last weights: one row for each split."""
    done = run / "results.json"
    if not done.exists():
        trainer = Trainer(LanguageModelling(planned, corpus), run, resume=(run / "last").exists())
        if trainer.fit().step < planned.training.num_steps:
            raise SystemExit(f"{run}: stopped; the same command goes on")
        table = evaluate(load_model(run / "last"), corpus, splits=SPLITS)
        last = [row for row in read_metrics(run) if row["split"] == "train"][-1]
        facts = {"model": model, "seed": planned.training.seed}
        facts |= {name: last[name] for name in ("num_tokens", "seconds", "peak_memory_bytes")}
        done.write_text(json.dumps(table.assign(**facts).to_dict(orient="records")))
    return json.loads(done.read_text())


def markdown(table: pd.DataFrame) -> str:
    """Accuracy and perplexity on each split, means over seeds with the range of the perplexity."""
    lines = ["| model | " + " | ".join(f"{split.label}: accuracy | perplexity" for split in SPLITS) + " |"]
    lines.append("|---|" + "---:|" * 2 * len(SPLITS))
    names = {split.label: table[table["split"] == split.label] for split in SPLITS}
    baseline = [
        f"{100 * rows['unigram_accuracy'].mean():.2f} % | {rows['unigram_perplexity'].mean():.2f}"
        for rows in names.values()
    ]
    lines.append("| empirical (unigram) baseline | " + " | ".join(baseline) + " |")
    for model in dict.fromkeys(table["model"]):
        cells = []
        for rows in names.values():
            own = rows[rows["model"] == model]
            low, high = own["perplexity"].min(), own["perplexity"].max()
            cells.append(
                f"{100 * own['accuracy'].mean():.2f} % | {own['perplexity'].mean():.2f} ({low:.2f}-{high:.2f})"
            )
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="The protein study of the Performer paper at the size of a laptop.")
    parser.add_argument("store", type=Path, metavar="STORE", help="corpus made by protein-lm data prepare")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of runs and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps of 2,048 tokens, 800 by default")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--concatenated", action="store_true", help="the experiment with rows of 8192 tokens instead")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training for each model there, 5 by default")
    return parser


if __name__ == "__main__":
    main()
