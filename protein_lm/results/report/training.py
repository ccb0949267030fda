"""Sections of a report on the training: model and recipe, data, learning curves."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protein_lm.analysis.curves import learning_curves
from protein_lm.checkpoint.card import model_facts
from protein_lm.checkpoint.config_file import read_facts
from protein_lm.checkpoint.directory import find_model
from protein_lm.corpus.inspect import measure
from protein_lm.plots.corpus import corpus_contents
from protein_lm.plots.curves import learning_curve
from protein_lm.plots.saving import png
from protein_lm.results.report.page import Picture, Section, Table
from protein_lm.results.report.subject import Subject, command
from protein_lm.training.run_log import METRICS, RECIPE

MAX_COUNTED_RESIDUES = 10**9
"""Most residues of a corpus whose lengths and residues are counted."""


def model_and_recipe(subject: Subject) -> Section:
    """Facts of the model's card, and the recipe."""
    facts = model_facts(subject.model, read_facts(find_model(str(subject.run)))["training"])
    return Section(
        what="Facts of the model, as on its card, and the recipe of its training.",
        commands=[command("info", subject.run)],
        tables=[Table(["fact", "value"], list(facts.items()))],
        text=(subject.run / RECIPE).read_text(encoding="utf-8"),
    )


def data(subject: Subject) -> Section:
    """Sources, splits, lengths and residues of the corpus."""
    corpus = subject.corpus
    sources = [
        [str(source["name"]), f"{source['sequences']:,}", str(source["sha256"])[:16] + "…"] for source in corpus.sources
    ]
    manifest = corpus.manifest
    rows = [
        [name.replace("_", " "), f"{counts['num_sequences']:,}", f"{counts['num_residues']:,}"]
        for name, counts in manifest["splits"].items()
    ]
    splits = Table(["split", "sequences", "residues"], rows)
    what, pictures = "Sources of the corpus, from its manifest", []
    if corpus.num_residues <= MAX_COUNTED_RESIDUES:
        contents = measure(corpus)
        splits = _with_lengths(splits, contents.lengths, [contents.numbers[name] for name in manifest["splits"]])
        title = f"{corpus.num_sequences:,} sequences, {corpus.num_residues:,} residues"
        figure = corpus_contents(contents.lengths, contents.numbers, contents.residue_counts, title=title)
        caption = "Left: lengths of the sequences of each split. Right: shares of the residues."
        pictures.append(Picture(png(figure), caption))
        what += ", and its lengths and residues, counted."
    else:
        what += f"; of over {MAX_COUNTED_RESIDUES:,} residues they are not counted here."
    tables = [Table(["source", "sequences", "SHA-256"], sources), splits]
    if "num_read" in manifest:  # not in that of a joined corpus
        rule = manifest["split"]
        by_table = f", and {rule['table']['name']}" if rule["table"] else ""
        what += f" Split by {rule['rule']}, seed {rule['seed']}{by_table}."
        dropped = {f"dropped, {reason}": count for reason, count in manifest["num_dropped"].items() if count}
        counts = {"read": manifest["num_read"], **(dropped or {"dropped": 0})}
        tables.append(Table(["sequences", "number"], [[k.replace("_", " "), f"{n:,}"] for k, n in counts.items()]))
    if not subject.is_own_corpus:
        what += " The run does not tell whether it was trained on this corpus."
    inspect = command("data", "inspect", corpus.path, "--plot", "corpus.png")
    return Section(what=what, commands=[inspect], tables=tables, pictures=pictures)


def curves(subject: Subject) -> Section:
    """Learning curves, and the best validation."""
    metrics = learning_curves([subject.run])
    totals = {"steps": ("step", ""), "tokens seen": ("num_tokens", ""), "time of training": ("seconds", " s")}
    last = {column: float(metrics[column].to_numpy(dtype=np.float64)[-1]) for column, _ in totals.values()}
    rows = [
        [name, f"{last[column]:,.0f}{unit}"]
        for name, (column, unit) in totals.items()
        if np.isfinite(last[column])  # runs of the first versions lack some
    ]
    valid = pd.DataFrame(metrics[metrics["split"] == "valid"]).reset_index(drop=True)
    if not valid.empty:
        best = valid.loc[valid["loss_nats"].idxmin()]
        rows += [
            ["best validation", f"step {best['step']:,}"],
            ["its perplexity", f"{np.exp(best['loss_nats']):.2f}"],
            ["its accuracy", f"{best['accuracy']:.1%}"],
        ]
        if "unigram_perplexity" in best:
            rows.append(["perplexity of the unigram baseline", f"{best['unigram_perplexity']:.2f}"])
    return Section(
        what=f"The rows of {METRICS}. Validation of a masked model hides all residues that it predicts. Its training shows "
        "some of them, so the two curves measure different things.",
        commands=[command("curves", subject.run, "-o", "curves.png")],
        tables=[Table(["training", "value"], rows)],
        pictures=[
            Picture(
                png(learning_curve(metrics)),
                "Perplexity and accuracy in training (dashed) and validation (solid, points).",
            )
        ],
    )


def _with_lengths(splits: Table, lengths: NDArray[np.int64], numbers: Sequence[NDArray[np.int64]]) -> Table:
    """Add the shortest, median and longest length of each split to the table of splits.

    Args:
        splits: a row for each split.
        lengths: (K,) different lengths, ascending.
        numbers: (K,) sequences of each length, of each split.
    """
    rows = []
    for row, counts in zip(splits.rows, numbers, strict=True):
        up_to = np.cumsum(counts)
        indices = np.searchsorted(up_to, [1, (up_to[-1] + 1) // 2, up_to[-1]]) if up_to[-1] else []
        rows.append([*row, *(f"{lengths[index]:,}" for index in indices), *[""] * (3 - len(indices))])
    return Table([*splits.columns, "shortest", "median", "longest"], rows)
