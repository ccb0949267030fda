"""Figures: DataFrames and arrays in, matplotlib figures out. Knows nothing of models."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from protein_lm.choices import FigureFormat
from protein_lm.errors import OutputError
from protein_lm.output import check_absent, new_file

CLASS_ORDER = "AVILMCFWYHKRDENQSTGP"
"""Amino acids so that those of one physico-chemical class stand side by side."""


FIGURE_SUFFIXES = tuple(f".{each.value}" for each in FigureFormat)


def check_figure_output(path: Path) -> None:
    """Refuse a figure output early, before the work that it shows.

    Raises:
        OutputError: an unknown suffix, or a file that exists.
    """
    if path.suffix not in FIGURE_SUFFIXES:
        raise OutputError(f"{path}: unknown figure format; end it in {', '.join(FIGURE_SUFFIXES)}")
    check_absent(path)


def save_figure(figure: Figure, path: Path, *, replace: bool = False) -> None:
    """Write a figure (.png, .svg or .pdf by suffix) whole or not at all, and close it.

    Raises:
        OutputError: `path` exists and `replace` is False, or it cannot be written.
    """
    try:
        with new_file(path, replace=replace) as partial:
            figure.savefig(partial, dpi=200, bbox_inches="tight")
    finally:
        plt.close(figure)


def learning_curve(metrics: pd.DataFrame) -> Figure:
    """Perplexity and accuracy against optimizer steps: training dashed, validation solid.

    Args:
        metrics: rows of metrics.jsonl with columns step, split, loss_nats, accuracy.
    """
    with sns.axes_style("ticks"):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for split, style, color in (("train", "--", "0.55"), ("valid", "-", "#1b4f8a")):
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
    """Loss in training and validation, and the measure of the task in validation, against optimizer steps.

    Args:
        metrics: rows of metrics.jsonl of a fine-tuning run.
    """
    loss = "loss_nats" if "loss_nats" in metrics else "squared_error"
    measure = "accuracy" if "accuracy" in metrics else "spearman"
    with sns.axes_style("ticks"):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    train, valid = (pd.DataFrame(metrics[metrics["split"] == split]) for split in ("train", "valid"))
    left.plot(train["step"], train[loss], "--", color="0.55", label="training")
    left.plot(valid["step"], valid[loss], "o-", color="#1b4f8a", label="validation", markersize=3)
    right.plot(valid["step"], valid[measure].astype(float), "o-", color="#1b4f8a", markersize=3)
    unit = {"loss_nats": "loss (nats)", "squared_error": "squared error (variances of the labels)"}[loss]
    left.set(xlabel="optimizer step", ylabel=unit)
    right.set(xlabel="optimizer step", ylabel={"accuracy": "accuracy", "spearman": "Spearman correlation"}[measure])
    left.legend(frameon=False)
    sns.despine(figure)
    return figure


_PANELS = {"causal": "causal (U)", "masked": "masked (B)"}
_METRICS = {"perplexity": "perplexity", "loss_nats": "loss (nats per residue)", "accuracy": "accuracy (%)"}


def compare_runs(table: pd.DataFrame, *, metric: str = "perplexity", against: str = "step") -> Figure:
    """Learning curves of several runs, as in the Performer paper: a panel for each objective that they have, a colour for
    each run, training dashed, validation solid, and the unigram baseline dotted where it is known.

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
                axis.axhline(scale * value, color="0.4", linestyle=":", linewidth=1.2)
        axis.set_title(_PANELS[objective])
        _label_horizontal(axis, against, name_of_unit)
    axes[0, 0].set_ylabel(_METRICS[metric])
    handles = [Line2D([], [], color=colors[run], linewidth=3, label=run) for run in runs]
    handles += [
        Line2D([], [], color="0.25", linestyle="--", label="training"),
        Line2D([], [], color="0.25", marker="o", markersize=4, label="validation"),
    ]
    if has_baseline:
        handles.append(Line2D([], [], color="0.4", linestyle=":", label="unigram baseline"))
    figure.legend(handles=handles, frameon=False, loc="outside right upper")
    sns.despine(figure)
    return figure


def _unit_of_time(table: pd.DataFrame) -> tuple[int, str]:
    """The largest unit, in seconds, of which the longest run took three or more."""
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


def attention_grid(
    matrices: NDArray[np.float32], *, layers: Sequence[int], heads: Sequence[int], title: str, first_residue: int = 1
) -> Figure:
    """One panel per layer (down) and head (across): rows attend, columns are attended.

    Each panel's colours run from 0 to the 99th percentile of its own matrix, since heads differ by orders of magnitude.

    Args:
        matrices: (layers, heads, L + 2, L + 2) with <cls> first and <eos> last; only residues are drawn.
        layers: 0-based layers, as in `matrices`.
        heads: 0-based heads, as in `matrices`.
        title: of the whole figure.
        first_residue: number of the first residue on the axes.
    """
    num_rows, num_columns = len(layers), len(heads)
    figure, axes = plt.subplots(
        num_rows,
        num_columns,
        figsize=(1.5 * num_columns + 0.8, 1.5 * num_rows + 0.9),
        squeeze=False,
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    length = matrices.shape[-1] - 2
    edges = (first_residue - 0.5, first_residue + length - 0.5)
    for i, layer in enumerate(layers):
        for j, head in enumerate(heads):
            axis, matrix = axes[i, j], matrices[i, j, 1:-1, 1:-1]
            axis.imshow(
                matrix,
                cmap="magma_r",
                vmin=0,
                vmax=max(float(np.quantile(matrix, 0.99)), 1e-12),
                extent=(edges[0], edges[1], edges[1], edges[0]),
                interpolation="nearest",
            )
            axis.tick_params(labelsize=6, length=2)
            axis.locator_params(nbins=4)
            if i == 0:
                axis.set_title(f"head {head + 1}", fontsize=8)
            if j == 0:
                axis.set_ylabel(f"layer {layer + 1}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("attended residue", fontsize=8)
    figure.supylabel("attending residue", fontsize=8)
    return figure


def similarity_heatmaps(
    similarity: pd.DataFrame, enrichment: pd.DataFrame, reference: pd.DataFrame, *, caption: str
) -> Figure:
    """Three 20 × 20 panels: correlation over heads, pair enrichment, and the normalized substitution matrix.

    The diagonals of the first two are left out of the colour range: they are largest by construction. Pairs D-E and
    F-Y, which the papers point out, are framed.

    Args:
        similarity: Pearson correlation over heads.
        enrichment: log2 ratio.
        reference: normalized substitution matrix, 0 to 1.
        caption: one line with the correlations.
    """
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.2), layout="constrained")
    panels = [
        (similarity, "attention received, correlation over heads", "vlag", True),
        (enrichment, "pair attention, log2 enrichment", "vlag", True),
        (reference, "BLOSUM62, normalized to 0…1", "mako_r", False),
    ]
    order = list(CLASS_ORDER)
    heatmap = partial(sns.heatmap, square=True, xticklabels=True, yticklabels=True, cbar_kws={"shrink": 0.75})
    for axis, (table, title, colors, diverging) in zip(axes, panels, strict=True):
        values = table.loc[order, order]
        if diverging:
            off_diagonal = values.to_numpy()[~np.eye(len(order), dtype=bool)]
            finite = np.abs(off_diagonal[np.isfinite(off_diagonal)])
            limit = float(finite.max()) if finite.size else 1.0
            heatmap(values, ax=axis, cmap=colors, center=0, vmin=-limit, vmax=limit)
        else:
            heatmap(values, ax=axis, cmap=colors, vmin=0, vmax=1)
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=8, rotation=0)
        for pair in ("DE", "FY"):
            first, second = (order.index(letter) for letter in pair)
            for x, y in ((first, second), (second, first)):
                axis.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="black", linewidth=1.2))
    figure.suptitle(caption, fontsize=10)
    return figure


def kernel_errors(table: pd.DataFrame, *, error: str = "matrix_error") -> Figure:
    """Error of each feature type against M, a panel per scale of the norms, beside attention to all alike.

    Args:
        table: as `analysis.kernel_error` gives it; lines are means over proteins, layers and heads, bands the range between
            the 10th and the 90th percentile.
        error: `matrix_error` or `output_error`.
    """
    scales = sorted(set(table["norm_scale"]))
    types = list(dict.fromkeys(table["feature_type"]))
    colors = dict(zip(types, sns.color_palette("colorblind", len(types)), strict=True))
    with sns.axes_style("ticks"):
        figure, axes = plt.subplots(
            1, len(scales), figsize=(1.8 + 3.1 * len(scales), 3.6), layout="constrained", sharey=True, squeeze=False
        )
    for axis, scale in zip(axes[0], scales, strict=True):
        rows = pd.DataFrame(table[table["norm_scale"] == scale])
        for name in types:
            grouped = pd.DataFrame(rows[rows["feature_type"] == name]).groupby("num_features")[error]
            style = "--" if "iid" in name else "-"
            axis.plot(grouped.mean(), style, color=colors[name], label=name, marker="o", markersize=3)
            axis.fill_between(
                grouped.mean().index, grouped.quantile(0.1), grouped.quantile(0.9), color=colors[name], alpha=0.1
            )
        for kernel, group in rows.groupby("kernel"):
            floor = group[f"uniform_{error}"].mean()
            axis.axhline(floor, color="0.4", linestyle=":", label=f"uniform attention ({kernel})")
        axis.set(xscale="log", yscale="log", xlabel="random features M")
        counts = sorted(set(rows["num_features"]))
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.set_title(f"|q| {rows['query_norm'].mean():.1f}, |k| {rows['key_norm'].mean():.1f}", fontsize=10)
    axes[0, 0].set_ylabel(f"relative error of the {error.split('_')[0]}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside right upper", fontsize=8)
    sns.despine(figure)
    return figure


_BINS_PER_DOUBLING = 4
_WINDOWS = (1022, 8190)
"""Residues of the longest sequences that windows of 1,024 and 8,192 tokens hold."""


def corpus_contents(
    lengths: NDArray[np.int64], numbers: dict[str, NDArray[np.int64]], residue_counts: dict[str, int], *, title: str
) -> Figure:
    """How long the sequences of each split are, and which residues they have.

    The histogram's area over a doubling of length is the share of the split's sequences in it, whatever the bins; so
    splits of all sizes can be compared.

    Args:
        lengths: (K,) different lengths in residues, ascending.
        numbers: (K,) sequences of each length by split; splits without sequences are left out.
        residue_counts: number of each letter, in the order of the bars.
        title: of the whole figure.
    """
    num_bins = 1 + int(_BINS_PER_DOUBLING * np.log2((lengths[-1] + 1) / lengths[0]))
    edges = np.unique(np.geomspace(lengths[0], lengths[-1] + 1, num_bins + 1).round()) - 0.5
    doublings = np.diff(np.log2(edges))
    filled = {name: counts for name, counts in numbers.items() if counts.any()}
    with sns.axes_style("ticks"):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11, 3.8), layout="constrained", gridspec_kw={"width_ratios": [3, 2]}
        )
    for (name, counts), color in zip(filled.items(), sns.color_palette("colorblind", len(filled)), strict=True):
        shares = 100 * np.histogram(lengths, edges, weights=counts)[0] / counts.sum() / doublings
        left.stairs(shares, edges, color=color, linewidth=1.4, label=f"{name.replace('_', ' ')}, {counts.sum():,}")
    left.set(xscale="log", xlabel="length (residues)", ylabel="sequences per doubling of length (%)", ylim=(0, None))
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    left.minorticks_off()
    left.tick_params(axis="x", labelsize=8)
    up_to = np.cumsum(list(filled.values()), axis=1).sum(axis=0)
    median = int(lengths[np.searchsorted(up_to, (up_to[-1] + 1) // 2)])
    for length, text, style in ((median, f"median {median:,}", "--"), *((w, f"{w:,}", ":") for w in _WINDOWS)):
        if lengths[0] <= length <= lengths[-1]:
            left.axvline(length, color="0.4", linestyle=style, linewidth=1)
            left.text(length, 1.01, text, transform=left.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)
    left.legend(frameon=False, fontsize=8)
    counts = np.array(list(residue_counts.values()))
    right.bar(list(residue_counts), 100 * counts / counts.sum(), color="#1b4f8a")
    right.set(xlabel="residue", ylabel="share of all residues (%)")
    right.margins(x=0.02)
    figure.suptitle(title, fontsize=10)
    sns.despine(figure)
    return figure


def generated_and_real(
    table: pd.DataFrame,
    composition: pd.DataFrame,
    lengths: dict[str, NDArray[np.int64]],
    identities: NDArray[np.float64] | None,
    *,
    title: str,
) -> Figure:
    """Generated proteins beside real ones: lengths, residues, k-mers with their null, nearest training sequence.

    Args:
        table: as `analysis.generated.compare` gives it.
        composition: as `analysis.generated.composition` gives it.
        lengths: residues of each sequence, `generated` and `real`.
        identities: (N,) identity of each generated sequence to its nearest relative in training, 0 where there is none; None:
            not known.
        title: of the whole figure.
    """
    colors = {"generated": "#c4601d", "real": "#1b4f8a"}
    with sns.axes_style("ticks"):
        figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    histogram, bars, distances, nearest = axes.flat
    both = np.concatenate(list(lengths.values()))
    edges = np.unique(np.geomspace(both.min(), both.max() + 1, 31).round()) - 0.5
    doublings = np.diff(np.log2(edges))
    for name, values in lengths.items():
        shares = 100 * np.histogram(values, edges)[0] / values.size / doublings
        histogram.stairs(shares, edges, color=colors[name], linewidth=1.4, label=f"{name}, {values.size:,}")
    histogram.set(
        xscale="log", xlabel="length (residues)", ylabel="sequences per doubling of length (%)", ylim=(0, None)
    )
    histogram.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    histogram.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    histogram.minorticks_off()
    histogram.legend(frameon=False, fontsize=8)
    ordered = composition.set_index("residue").loc[list(CLASS_ORDER)]
    for shift, name in ((-0.2, "generated"), (0.2, "real")):
        bars.bar(np.arange(len(ordered)) + shift, 100 * ordered[name], 0.4, color=colors[name], label=name)
    bars.set_xticks(range(len(ordered)), list(ordered.index))
    bars.set(xlabel="residue", ylabel="share of all residues (%)")
    bars.margins(x=0.02)
    rows = table[table["measure"].str.startswith("kmer_distance_")]
    places = np.arange(len(rows))
    around = [rows["null_mean"] - rows["null_low"], rows["null_high"] - rows["null_mean"]]
    distances.bar(places - 0.2, rows["generated"], 0.4, color=colors["generated"], label="generated")
    distances.bar(
        places + 0.2, rows["null_mean"], 0.4, color=colors["real"], yerr=around, capsize=3, label="as many real (95 %)"
    )
    distances.set_xticks(places, [f"{name.rpartition('_')[2]}-mers" for name in rows["measure"]])
    distances.set_ylabel("Jensen-Shannon distance to real")
    distances.legend(frameon=False, fontsize=8)
    if identities is None:
        nearest.set_axis_off()
    else:
        nearest.hist(100 * identities[identities > 0], np.arange(30, 101, 5), color=colors["generated"])
        nearest.set(
            xlabel="identity to the nearest training sequence (%)", ylabel="generated sequences", xlim=(28, 102)
        )
        nearest.set_ylim(0, max(1.0, nearest.get_ylim()[1]))
        nearest.yaxis.set_major_locator(MaxNLocator(integer=True))
        without = f"{(identities == 0).sum():,} of {identities.size:,} have no relative over 30 %"
        nearest.set_title(without, fontsize=9)
    figure.suptitle(title, fontsize=10)
    sns.despine(figure)
    return figure
