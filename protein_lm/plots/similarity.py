"""Figures of the similarity of amino acids: heatmaps, trees, agreement with substitution matrices."""

from functools import partial

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from scipy.cluster import hierarchy

from protein_lm.plots.style import BLUE, CLASS_ORDER, REFERENCE

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
"""Physico-chemical classes: letters in the order of `CLASS_ORDER`, and the colour of their labels."""
SIGNED, POSITIVE = "vlag", "mako_r"
"""Colours of measures around 0, and of measures that are not negative."""


def similarity_heatmaps(tables: dict[str, pd.DataFrame], reference: pd.DataFrame, *, name: str, caption: str) -> Figure:
    """Draw a 20 × 20 panel for each measure of the similarity, and one for the normalized substitution matrix.

    Diagonals are largest by construction, so the colour range leaves them out. Frames mark the pairs D-E and F-Y, which the
    papers point out. Negative values have a dash.

    Args:
        tables: measures by name; those that may be negative are drawn around 0.
        reference: normalized substitution matrix, 0 to 1.
        name: name of that matrix.
        caption: one line above the panels.
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
            heatmap(values, ax=axis, cmap=POSITIVE, vmin=float(finite.min()), vmax=float(finite.max()))
        else:
            limit = float(np.abs(finite).max()) if finite.size else 1.0
            heatmap(values, ax=axis, cmap=SIGNED, center=0, vmin=-limit, vmax=limit)
            rows, columns = np.nonzero(values.to_numpy() < 0)  # in grey, the colours alone do not tell the sign
            inks = np.where(values.to_numpy()[rows, columns] < -limit / 2, "white", "black")
            axis.scatter(columns + 0.5, rows + 0.5, marker="_", s=14, c=inks, linewidths=0.7)
        axis.set_title(MEASURES[measure], fontsize=10)
    heatmap(reference.loc[order, order], ax=axes[len(tables)], cmap=POSITIVE, vmin=0, vmax=1)
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
    """Draw correlations and cosines of amino acids, and a substitution matrix, each ordered by its own tree.

    Trees have average linkage. Amino acids are coloured by their class; those without values in one of the tables are left
    out. Returns None if fewer than three are left.

    Args:
        tables: measures by name, 1 for equal amino acids; distances are 1 - value.
        matrix: a substitution matrix; distances are the differences to its largest value.
        name: name of that matrix.
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
            cmap=SIGNED if is_signed else POSITIVE,
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


def agreement_intervals(table: pd.DataFrame) -> Figure:
    """Draw the Pearson correlation of each measure with each substitution matrix, its 95 % interval, and untrained models.

    Args:
        table: columns model (`trained` and others), measure, matrix, pearson, pearson_low, pearson_high.
    """
    pairs = list(dict.fromkeys(zip(table["measure"], table["matrix"], strict=True)))[::-1]
    with sns.axes_style("ticks"):
        figure, axis = plt.subplots(figsize=(7, 1.4 + 0.34 * len(pairs)), layout="constrained")
    for height, (measure, matrix) in enumerate(pairs):
        rows = table[(table["measure"] == measure) & (table["matrix"] == matrix)]
        trained, others = (pd.DataFrame(rows[(rows["model"] == "trained") == each]) for each in (True, False))
        axis.hlines(height, trained["pearson_low"], trained["pearson_high"], color=BLUE, linewidth=1.6)
        labels = ("this model, 95 % over proteins", "untrained") if height == 0 else ("", "")
        axis.plot(others["pearson"], [height] * len(others), "o", color="0.6", markersize=4, label=labels[1])
        axis.plot(trained["pearson"], [height], "o", color=BLUE, markersize=6, label=labels[0])
    axis.axvline(0, color=REFERENCE, linestyle=":", linewidth=1)
    axis.set_yticks(range(len(pairs)), [f"{measure}, {matrix}" for measure, matrix in pairs], fontsize=8)
    axis.set(xlabel="Pearson correlation over pairs of amino acids", ylim=(-0.7, len(pairs) - 0.3))
    handles, labels = axis.get_legend_handles_labels()
    shown = 2 if (table["model"] != "trained").any() else 1
    figure.legend(
        handles[::-1][:shown], labels[::-1][:shown], frameon=False, fontsize=8, loc="outside upper right", ncols=2
    )
    sns.despine(figure)
    return figure
