"""Figures: DataFrames and arrays in, matplotlib figures out. Knows nothing of models."""

from collections.abc import Sequence
from functools import partial
from io import BytesIO
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray
from scipy.cluster import hierarchy

from protein_lm.choices import FigureFormat
from protein_lm.errors import OutputError
from protein_lm.files.output import check_absent, new_file

CLASS_ORDER = "AVILMCFWYHKRDENQSTGP"
"""Amino acids so that those of one physico-chemical class stand side by side."""


_LONGEST_TITLE = 90
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


def png(figure: Figure) -> bytes:
    """A figure as PNG, for a page; it is closed."""
    content = BytesIO()
    try:
        figure.savefig(content, format="png", dpi=150, bbox_inches="tight")
    finally:
        plt.close(figure)
    return content.getvalue()


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
    matrices: NDArray[np.float32],
    *,
    layers: Sequence[int],
    heads: Sequence[int],
    title: str,
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> Figure:
    """One panel per layer (down) and head (across): rows attend, columns are attended.

    Each panel's colours run from 0 to the 99th percentile of its own matrix, since heads differ by orders of magnitude.

    Args:
        matrices: (layers, heads, R, C), weights of residues or means over even blocks of residues.
        layers: 0-based layers, as in `matrices`.
        heads: 0-based heads, as in `matrices`.
        title: of the whole figure.
        rows: numbers of the first and the last attending residue.
        columns: numbers of the first and the last attended residue.
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
    for i, layer in enumerate(layers):
        for j, head in enumerate(heads):
            axis = axes[i, j]
            _draw_attention(axis, matrices[i, j], rows, columns)
            axis.tick_params(labelsize=6, length=2)
            axis.locator_params(nbins=4)
            if i == 0:
                axis.set_title(f"head {head + 1}", fontsize=8)
            if j == 0:
                axis.set_ylabel(f"layer {layer + 1}", fontsize=8)
    _set_title(figure, title)
    figure.supxlabel("attended residue", fontsize=8)
    figure.supylabel("attending residue", fontsize=8)
    return figure


def attention_rollout(
    matrix: NDArray[np.float32], *, title: str, rows: tuple[int, int], columns: tuple[int, int]
) -> Figure:
    """Attention through all layers, (R, C), with the axes of `attention_grid`."""
    figure, axis = plt.subplots(figsize=(5, 4.6), layout="constrained")
    _draw_attention(axis, matrix, rows, columns)
    axis.set(xlabel="attended residue", ylabel="attending residue")
    _set_title(figure, title)
    return figure


def attention_profiles(offsets: pd.DataFrame, received: pd.DataFrame, *, title: str) -> Figure:
    """A row of panels per layer: mean weight against the offset of the attended residue (left), and attention that each
    residue receives from all (right); a line per head.

    Args:
        offsets: as `HeadSums.offset_table` gives it.
        received: as `HeadSums.received_table` gives it.
        title: of the whole figure.
    """
    seen = offsets.loc[offsets["mean_weight"] != 0, "offset"]  # a causal model has one side only
    offsets = pd.DataFrame(offsets[offsets["offset"].between(seen.min(), seen.max())])
    layers = list(dict.fromkeys(offsets["layer"]))
    heads = list(dict.fromkeys(offsets["head"]))
    colors = dict(zip(heads, sns.color_palette("husl", len(heads)), strict=True))
    with sns.axes_style("ticks"):
        figure, axes = plt.subplots(
            len(layers), 2, figsize=(11, 1.6 * len(layers) + 1.2), squeeze=False, sharex="col", layout="constrained"
        )
    for row, layer in zip(axes, layers, strict=True):
        for axis, table, across, value in zip(
            row, (offsets, received), ("offset", "residue"), ("mean_weight", "received"), strict=True
        ):
            for head, lines in pd.DataFrame(table[table["layer"] == layer]).groupby("head"):
                axis.plot(
                    lines[across], lines[value], color=colors[head], linewidth=0.7, label=str(head), rasterized=True
                )
            axis.tick_params(labelsize=7)
        if (offsets["mean_weight"] > 0).any():
            row[0].set_yscale("log", nonpositive="mask")
        row[0].set_xscale("symlog", linthresh=10)
        row[0].set_ylabel(f"layer {layer}", fontsize=8)
    axes[0, 0].set_title("mean weight", fontsize=9)
    axes[0, 1].set_title("attention received (mean 1)", fontsize=9)
    axes[-1, 0].set_xlabel("attended - attending residue", fontsize=8)
    axes[-1, 1].set_xlabel("residue", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside right upper", fontsize=7, title="head", title_fontsize=8)
    _set_title(figure, title)
    sns.despine(figure)
    return figure


def contact_maps(
    probabilities: NDArray[np.float64],
    distances: NDArray[np.float64] | None,
    *,
    title: str,
    contact_distance: float,
    min_separation: int,
) -> Figure:
    """Probability of contact of all pairs of residues (left), and the contacts of a structure (right), if there is one.

    Args:
        probabilities: (L, L).
        distances: (L, L) in Å, NaN where a residue was not seen, which is drawn grey; None: no structure.
        title: of the whole figure.
        contact_distance: below which a pair is in contact, in Å.
        min_separation: least |i - j| that is predicted; nearer pairs are drawn grey.
    """
    count = 1 if distances is None else 2
    figure, axes = plt.subplots(1, count, figsize=(5 * count, 4.6), squeeze=False, sharey=True, layout="constrained")
    size = len(probabilities)
    extent = (0.5, size + 0.5, size + 0.5, 0.5)
    colors = plt.get_cmap("magma_r").with_extremes(bad="0.85")
    far = np.abs(np.subtract.outer(np.arange(size), np.arange(size))) >= min_separation
    predicted = np.where(far, probabilities, np.nan)
    image = axes[0, 0].imshow(predicted, cmap=colors, vmin=0, vmax=1, extent=extent, interpolation="nearest")
    axes[0, 0].set(title="predicted", xlabel="residue", ylabel="residue")
    figure.colorbar(image, ax=axes[0, 0], shrink=0.8, label="probability of contact")
    if distances is not None:
        shown = np.where(np.isnan(distances), np.nan, distances < contact_distance)
        axes[0, 1].imshow(shown, cmap=colors, vmin=0, vmax=1, extent=extent, interpolation="nearest")
        axes[0, 1].set(title=f"structure, under {contact_distance:g} Å", xlabel="residue")
    _set_title(figure, title)
    return figure


def _draw_attention(axis: Axes, matrix: NDArray[np.float32], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """A matrix (R, C) in an axis that counts residues."""
    axis.imshow(
        matrix,
        cmap="magma_r",
        vmin=0,
        vmax=max(float(np.quantile(matrix, 0.99)), 1e-12),
        extent=(columns[0] - 0.5, columns[1] + 0.5, rows[1] + 0.5, rows[0] - 0.5),
        interpolation="nearest",
    )


def _set_title(figure: Figure, title: str) -> None:
    """A title that may hold any identifier: shortened, and never read as mathematics."""
    shown = (
        title if len(title) <= _LONGEST_TITLE else title[: _LONGEST_TITLE // 2] + " … " + title[-_LONGEST_TITLE // 2 :]
    )
    figure.suptitle(shown, fontsize=10, parse_math=False)


MEASURES = {
    "similarity": "attention received, correlation over heads",
    "enrichment": "pair attention, log2 enrichment",
    "arcs": "arcs received, correlation over heads",
    "kernel": "features of the first layer, cosine",
}
"""Titles by the name of the measure."""
AMINO_ACID_CLASSES = {
    "aliphatic": ("AVIL", "#c9a227"),
    "sulfur": ("MC", "#d9692b"),
    "aromatic": ("FWY", "#7b4ea3"),
    "positive": ("HKR", "#1b4f8a"),
    "negative": ("DE", "#b3262e"),
    "polar": ("NQST", "#2e8b57"),
    "glycine, proline": ("GP", "0.55"),
}
"""Physico-chemical classes: letters in `CLASS_ORDER`, and a colour."""


def similarity_heatmaps(tables: dict[str, pd.DataFrame], reference: pd.DataFrame, *, name: str, caption: str) -> Figure:
    """20 × 20 panels: measures of the similarity, and the normalized substitution matrix.

    The diagonals of the measures are left out of the colour range: they are largest by construction. Pairs D-E and F-Y, which
    the papers point out, are framed. Negative values have a dash.

    Args:
        tables: by the name of the measure; those that may be negative are drawn around 0.
        reference: normalized substitution matrix, 0 to 1.
        name: of that matrix.
        caption: one line.
    """
    num_panels = len(tables) + 1
    num_columns = num_panels if num_panels <= 3 else (num_panels + 1) // 2
    num_rows = -(-num_panels // num_columns)
    figure, grid = plt.subplots(
        num_rows, num_columns, figsize=(5 * num_columns, 4.9 * num_rows + 0.3), squeeze=False, layout="constrained"
    )
    axes = list(grid.flat)
    order = list(CLASS_ORDER)
    heatmap = partial(sns.heatmap, square=True, xticklabels=True, yticklabels=True, cbar_kws={"shrink": 0.75})
    for axis, (measure, table) in zip(axes, tables.items(), strict=False):
        values = table.loc[order, order]
        off_diagonal = values.to_numpy()[~np.eye(len(order), dtype=bool)]
        finite = off_diagonal[np.isfinite(off_diagonal)]
        if measure == "kernel" and finite.size:
            heatmap(values, ax=axis, cmap="mako_r", vmin=float(finite.min()), vmax=float(finite.max()))
        else:
            limit = float(np.abs(finite).max()) if finite.size else 1.0
            heatmap(values, ax=axis, cmap="vlag", center=0, vmin=-limit, vmax=limit)
            rows, columns = np.nonzero(values.to_numpy() < 0)  # in grey, the colours alone do not tell the sign
            inks = np.where(values.to_numpy()[rows, columns] < -limit / 2, "white", "black")
            axis.scatter(columns + 0.5, rows + 0.5, marker="_", s=14, c=inks, linewidths=0.7)
        axis.set_title(MEASURES[measure], fontsize=10)
    heatmap(reference.loc[order, order], ax=axes[len(tables)], cmap="mako_r", vmin=0, vmax=1)
    axes[len(tables)].set_title(f"{name}, normalized to 0…1", fontsize=10)
    for axis in axes[:num_panels]:
        axis.tick_params(labelsize=8, rotation=0)
        for pair in ("DE", "FY"):
            first, second = (order.index(letter) for letter in pair)
            for x, y in ((first, second), (second, first)):
                axis.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="black", linewidth=1.2))
    for axis in axes[num_panels:]:
        axis.set_axis_off()
    figure.suptitle(caption, fontsize=10)
    return figure


def clustered_similarity(tables: dict[str, pd.DataFrame], matrix: pd.DataFrame, *, name: str) -> Figure | None:
    """Correlations and cosines of amino acids, and a substitution matrix, each ordered by its own tree (average linkage).

    Amino acids are coloured by their class; those without values in one of the tables are left out. None where fewer than
    three are left.

    Args:
        tables: by the name of the measure, 1 for what is alike; distances are 1 - value.
        matrix: a substitution matrix; distances are the differences to its largest value.
        name: of that matrix.
    """
    present = [a for a in matrix.index if all(np.isfinite(table.loc[a, a]) for table in tables.values())]
    if len(present) < 3:
        return None
    colors = {letter: color for letters, color in AMINO_ACID_CLASSES.values() for letter in letters}
    shown = [(MEASURES[measure], table, 1.0) for measure, table in tables.items()]
    shown.append((name, matrix, float(matrix.loc[present, present].max().max())))
    figure = plt.figure(figsize=(5.2 * len(shown), 6.2), layout="constrained")
    grid = figure.add_gridspec(2, len(shown), height_ratios=(1, 5))
    for column, (title, whole, largest) in enumerate(shown):
        tree, axis = (figure.add_subplot(grid[row, column]) for row in (0, 1))
        table = whole.loc[present, present]
        between = (largest - table.to_numpy())[np.triu_indices(len(present), 1)]
        links = hierarchy.linkage(np.maximum(between, 0), method="average", optimal_ordering=True)
        order = hierarchy.dendrogram(links, ax=tree, color_threshold=0, above_threshold_color="0.3", no_labels=True)
        letters = [present[leaf] for leaf in order["leaves"]]
        tree.set_axis_off()
        tree.set_title(title, fontsize=10)
        values = table.loc[letters, letters]
        is_signed = title == MEASURES["similarity"]
        image = axis.imshow(
            values,
            cmap="vlag" if is_signed else "mako_r",
            vmin=-1 if is_signed else float(values.min().min()),
            vmax=largest,
            aspect="auto",
        )
        axis.set_xticks(range(len(letters)), letters, fontsize=9, fontweight="bold")
        axis.set_yticks(range(len(letters)), letters, fontsize=9, fontweight="bold")
        for label in (*axis.get_xticklabels(), *axis.get_yticklabels()):
            label.set_color(colors[label.get_text()])
        axis.tick_params(length=0)
        sns.despine(ax=axis, left=True, bottom=True)
        figure.colorbar(image, ax=axis, shrink=0.75)
    handles = [Patch(color=color, label=label) for label, (_, color) in AMINO_ACID_CLASSES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    return figure


def agreements(table: pd.DataFrame) -> Figure:
    """Pearson correlation of each measure with each substitution matrix, its 95 % interval, and untrained models.

    Args:
        table: columns model (`trained` and others), measure, matrix, pearson, pearson_low, pearson_high.
    """
    pairs = list(dict.fromkeys(zip(table["measure"], table["matrix"], strict=True)))[::-1]
    with sns.axes_style("ticks"):
        figure, axis = plt.subplots(figsize=(7, 1.4 + 0.34 * len(pairs)), layout="constrained")
    for place, (measure, matrix) in enumerate(pairs):
        rows = table[(table["measure"] == measure) & (table["matrix"] == matrix)]
        trained, others = (pd.DataFrame(rows[(rows["model"] == "trained") == each]) for each in (True, False))
        axis.hlines(place, trained["pearson_low"], trained["pearson_high"], color="#1b4f8a", linewidth=1.6)
        labels = ("this model, 95 % over proteins", "untrained") if place == 0 else ("", "")
        axis.plot(others["pearson"], [place] * len(others), "o", color="0.6", markersize=4, label=labels[1])
        axis.plot(trained["pearson"], [place], "o", color="#1b4f8a", markersize=6, label=labels[0])
    axis.axvline(0, color="0.4", linestyle=":", linewidth=1)
    axis.set_yticks(range(len(pairs)), [f"{measure}, {matrix}" for measure, matrix in pairs], fontsize=8)
    axis.set(xlabel="Pearson correlation over pairs of amino acids", ylim=(-0.7, len(pairs) - 0.3))
    handles, labels = axis.get_legend_handles_labels()
    shown = 2 if (table["model"] != "trained").any() else 1
    figure.legend(
        handles[::-1][:shown], labels[::-1][:shown], frameon=False, fontsize=8, loc="outside upper right", ncols=2
    )
    sns.despine(figure)
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
    markers = dict(zip(dict.fromkeys(name.split("-")[0] for name in types), cycle("osD^v"), strict=False))
    with sns.axes_style("ticks"):
        figure, axes = plt.subplots(
            1, len(scales), figsize=(1.8 + 3.1 * len(scales), 3.6), layout="constrained", sharey=True, squeeze=False
        )
    for axis, scale in zip(axes[0], scales, strict=True):
        rows = pd.DataFrame(table[table["norm_scale"] == scale])
        for name in types:
            grouped = pd.DataFrame(rows[rows["feature_type"] == name]).groupby("num_features")[error]
            style = "--" if "iid" in name else "-"
            marker = markers[name.split("-")[0]]
            axis.plot(grouped.mean(), style, color=colors[name], label=name, marker=marker, markersize=4)
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
    palette, styles = sns.color_palette("colorblind", len(filled)), ("-", "--", "-.", ":")
    for (name, counts), color, style in zip(filled.items(), palette, styles[: len(filled)], strict=True):
        shares = 100 * np.histogram(lengths, edges, weights=counts)[0] / counts.sum() / doublings
        label = f"{name.replace('_', ' ')}, {counts.sum():,}"
        left.stairs(shares, edges, color=color, linestyle=style, linewidth=1.4, label=label)
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


def substitution_heatmap(scores: NDArray[np.float64], wild_type: str, *, title: str, first_residue: int = 1) -> Figure:
    """What each substitution does: residues along, amino acids down, the wild type marked by a dot; residues without scores
    are grey. Long proteins wrap into rows, so that the figure stays near a square.

    The colours end at the 99th percentile of the scores' sizes.

    Args:
        scores: (L, 20) with columns as `data.variants.LETTERS`, NaN where there is none.
        wild_type: its L letters.
        title: of the whole figure.
        first_residue: number of the first residue on the axes.
    """
    letters, order = sorted(CLASS_ORDER), list(CLASS_ORDER)
    columns = scores[:, [letters.index(letter) for letter in order]].T
    length, num_letters = len(wild_type), len(order)
    per_row = min(length, max(60, 10 * int(np.ceil(np.sqrt((num_letters + 9) * length) / 10))))
    starts = range(0, length, per_row)
    cell = float(np.clip(11 / per_row, 0.05, 0.14))
    figure, axes = plt.subplots(
        len(starts),
        1,
        figsize=(cell * per_row + 1.8, len(starts) * (cell * num_letters + 0.45) + 0.9),
        squeeze=False,
        layout="constrained",
    )
    limit = max(float(np.nanquantile(np.abs(scores), 0.99)), 1e-12)
    norm, colors = Normalize(-limit, limit), plt.get_cmap("vlag").with_extremes(bad="0.8")
    letter_size = min(7.0, 60 * cell)
    for axis, start in zip(axes[:, 0], starts, strict=True):
        span = slice(start, start + per_row)
        part = columns[:, span]
        first = first_residue + start
        axis.imshow(
            part,
            cmap=colors,
            norm=norm,
            extent=(first - 0.5, first + part.shape[1] - 0.5, num_letters - 0.5, -0.5),
            interpolation="nearest",
            aspect="auto",
        )
        known = [(place, order.index(own)) for place, own in enumerate(wild_type[span]) if own in order]
        if known:
            places, rows = zip(*known, strict=True)
            axis.scatter(np.array(places) + first, rows, s=(22 * cell) ** 2, color="black", linewidths=0)
        axis.set_xlim(first - 0.5, first + per_row - 0.5)
        axis.set_yticks(range(num_letters), order, fontsize=letter_size)
        step, last = 10 if per_row <= 150 else 50, first + part.shape[1] - 1
        axis.set_xticks([number for number in range(first, last + 1) if number % step == 0])
        axis.tick_params(axis="x", labelsize=7)
        axis.tick_params(length=2)
        sns.despine(ax=axis, left=True, bottom=True)
    bar = figure.colorbar(
        ScalarMappable(norm, colors), ax=axes, shrink=min(1.0, 3 / figure.get_figheight()), extend="both"
    )
    bar.set_label("score (nats); above 0: likelier than the wild type", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.supxlabel("residue; dots mark the wild type", fontsize=8)
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
