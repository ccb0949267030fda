"""Figures of learning curves: of one run, of a fine-tuning run, of several runs."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

from protein_lm.plots.style import BLUE, REFERENCE

TRAINING = "0.55"
"""Colour of training; validation is blue."""
_PANELS = {"causal": "causal (U)", "masked": "masked (B)"}
_METRICS = {"perplexity": "perplexity", "loss_nats": "loss (nats per residue)", "accuracy": "accuracy (%)"}


def learning_curve(metrics: pd.DataFrame) -> Figure:
    """Draw perplexity and accuracy against optimizer steps: training dashed, validation solid.

    Args:
        metrics: rows of metrics.jsonl with columns step, split, loss_nats, accuracy.
    """
    with sns.axes_style("ticks"):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for split, style, color in (("train", "--", TRAINING), ("valid", "-", BLUE)):
        rows = metrics[metrics["split"] == split]
        marker = "o" if split == "valid" else ""  # a single validation is a point, and a line would not show it
        label = {"train": "training", "valid": "validation"}[split]
        for axis, values in ((left, np.exp(rows["loss_nats"])), (right, 100 * rows["accuracy"])):
            axis.plot(rows["step"], values, linestyle=style, color=color, label=label, marker=marker, markersize=3)
    left.set(xlabel="optimizer step", ylabel="perplexity")
    right.set(xlabel="optimizer step", ylabel="accuracy (%)")
    left.legend(frameon=False)
    sns.despine(figure)
    return figure


def fine_tuning_curve(metrics: pd.DataFrame) -> Figure:
    """Draw the loss in training and validation, and the task's measure in validation, against optimizer steps.

    Args:
        metrics: rows of metrics.jsonl of a fine-tuning run.
    """
    loss = "loss_nats" if "loss_nats" in metrics else "squared_error"
    measure = "accuracy" if "accuracy" in metrics else "spearman"
    with sns.axes_style("ticks"):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    train, valid = (pd.DataFrame(metrics[metrics["split"] == split]) for split in ("train", "valid"))
    left.plot(train["step"], train[loss], "--", color=TRAINING, label="training")
    left.plot(valid["step"], valid[loss], "o-", color=BLUE, label="validation", markersize=3)
    right.plot(valid["step"], valid[measure].astype(float), "o-", color=BLUE, markersize=3)
    unit = {"loss_nats": "loss (nats)", "squared_error": "squared error (variances of the labels)"}[loss]
    left.set(xlabel="optimizer step", ylabel=unit)
    right.set(xlabel="optimizer step", ylabel={"accuracy": "accuracy", "spearman": "Spearman correlation"}[measure])
    left.legend(frameon=False)
    sns.despine(figure)
    return figure


def compare_runs(table: pd.DataFrame, *, metric: str = "perplexity", against: str = "step") -> Figure:
    """Draw learning curves of several runs, as in the Performer paper.

    Each objective has a panel, each run a colour. Training is dashed, validation solid, the unigram baseline dotted.

    Args:
        table: as `analysis.curves.learning_curves` gives it.
        metric: perplexity, loss_nats or accuracy.
        against: step, num_tokens or seconds.
    """
    runs = list(dict.fromkeys(table["run"]))
    colors = dict(zip(runs, sns.color_palette("colorblind" if len(runs) <= 10 else "husl", len(runs)), strict=True))
    objectives = [name for name in _PANELS if name in set(table["objective"])]
    with sns.axes_style("ticks"):
        figure, axes = plt.subplots(
            1, len(objectives), figsize=(2 + 4 * len(objectives), 3.8), layout="constrained", sharey=True, squeeze=False
        )
    scale = 100 if metric == "accuracy" else 1
    has_baseline = f"unigram_{metric}" in table
    unit, name_of_unit = _unit_of_time(table) if against == "seconds" else (1, "")
    for axis, objective in zip(axes[0], objectives, strict=True):
        of_panel = pd.DataFrame(table[table["objective"] == objective])
        for run, rows in of_panel.groupby("run", sort=False):
            for split, style, width in (("train", "--", 1.2), ("valid", "o-", 1.8)):
                part = rows[rows["split"] == split]
                axis.plot(
                    part[against] / unit, scale * part[metric], style, color=colors[run], linewidth=width, markersize=4
                )
        if has_baseline:
            for value in set(of_panel[f"unigram_{metric}"].dropna().round(6)):
                axis.axhline(scale * value, color=REFERENCE, linestyle=":", linewidth=1.2)
        axis.set_title(_PANELS[objective])
        _label_horizontal(axis, against, name_of_unit)
    axes[0, 0].set_ylabel(_METRICS[metric])
    handles = [Line2D([], [], color=colors[run], linewidth=3, label=run) for run in runs]
    handles += [
        Line2D([], [], color="0.25", linestyle="--", label="training"),
        Line2D([], [], color="0.25", marker="o", markersize=4, label="validation"),
    ]
    if has_baseline:
        handles.append(Line2D([], [], color=REFERENCE, linestyle=":", label="unigram baseline"))
    figure.legend(handles=handles, frameon=False, loc="outside right upper")
    sns.despine(figure)
    return figure


def _unit_of_time(table: pd.DataFrame) -> tuple[int, str]:
    """Return the largest unit, in seconds, of which the longest run took three or more, and its name."""
    longest = table["seconds"].max()
    return next((size, name) for size, name in ((3600, "h"), (60, "min"), (1, "s")) if longest >= 3 * size or size == 1)


def _label_horizontal(axis: Axes, against: str, unit: str) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if against == "seconds":
        axis.set_xlabel(f"training time ({unit})")
    elif against == "num_tokens":
        axis.set_xlabel("tokens seen")
        axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
    else:
        axis.set_xlabel("optimizer step")
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
