"""Table of the learning curves of several runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from protein_lm.errors import ConfigError, InputError
from protein_lm.training.run_log import METRICS, read_metrics, read_recipe

FACTS = ("run", "objective", "attention", "split", "step", "num_tokens", "seconds")
"""Columns that identify a row; the others are measures."""


def learning_curves(runs: Sequence[Path]) -> pd.DataFrame:
    """Return all rows of metrics.jsonl of each run: one row per run, split and logged step.

    Columns: those of `FACTS`, then all columns of the runs' metrics.jsonl, and `unigram_loss_nats`. Missing values are empty.
    `run` is the name of the run's folder, with as many parent folders as distinguish it from the others.

    Raises:
        InputError: a run, its recipe or its metrics are missing or damaged, or it has no rows yet.
        ConfigError: no run, a run is named twice, or a recipe cannot be read.
    """
    tables = []
    for run, label in zip(runs, _labels(runs), strict=True):
        rows = read_metrics(run)
        if not rows:
            raise InputError(f"{run / METRICS}: no rows yet; wait until the run has logged some, or leave it out")
        model = read_recipe(run).model
        facts = {"run": label, "objective": model.objective.value, "attention": model.attention_name}
        tables.append(pd.DataFrame(rows).assign(**facts))
    table = pd.concat(tables, ignore_index=True)
    with np.errstate(over="ignore"):
        table["perplexity"] = np.exp(table["loss_nats"])  # runs of the first versions did not write it
    if "unigram_perplexity" in table:
        table["unigram_loss_nats"] = np.log(table["unigram_perplexity"])
    measures = [column for column in table.columns if column not in FACTS]
    return table.reindex(columns=[*FACTS, *measures])


def check_column(table: pd.DataFrame, column: str) -> None:
    """Check that every run has a column; runs of the first versions lack some.

    Raises:
        ConfigError: one does not.
    """
    having = set(table["run"][table[column].notna()]) if column in table else set()
    for run in table["run"]:
        if run not in having:
            raise ConfigError(f"{run}: its {METRICS} has no {column}; leave the run out, or choose another column")


def _labels(runs: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as few as make the labels differ."""
    if not runs:
        raise ConfigError("no run is named; give one or more run directories")
    paths = [run.resolve() for run in runs]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"{path.name} is named twice; name each run once")
    depths = [1] * len(paths)
    while True:
        labels = ["/".join(path.parts[-depth:]) for path, depth in zip(paths, depths, strict=True)]
        is_repeated = [labels.count(label) > 1 for label in labels]
        if not any(is_repeated):
            return labels
        depths = [depth + repeated for depth, repeated in zip(depths, is_repeated, strict=True)]
