"""Figures of attention: a grid of matrices, rollout, and profiles by offset and by residue."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from protein_lm.plots.style import set_title


def attention_grid(
    matrices: NDArray[np.float32],
    *,
    layers: Sequence[int],
    heads: Sequence[int],
    title: str,
    rows: tuple[int, int],
    columns: tuple[int, int],
) -> Figure:
    """Draw a panel for each layer (down) and head (across): rows attend, columns are attended.

    Each panel's colours run from 0 to the 99th percentile of its own matrix, since heads differ by orders of magnitude.

    Args:
        matrices: (layers, heads, R, C), weights of residues or means over even blocks of residues.
        layers: numbers of the layers of `matrices`, from 1.
        heads: numbers of the heads of `matrices`, from 1.
        title: title of the whole figure.
        rows: positions of the first and the last attending residue.
        columns: positions of the first and the last attended residue.
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
                axis.set_title(f"head {head}", fontsize=8)
            if j == 0:
                axis.set_ylabel(f"layer {layer}", fontsize=8)
    set_title(figure, title)
    figure.supxlabel("attended residue", fontsize=8)
    figure.supylabel("attending residue", fontsize=8)
    return figure


def attention_rollout(
    matrix: NDArray[np.float32], *, title: str, rows: tuple[int, int], columns: tuple[int, int]
) -> Figure:
    """Draw attention through all layers, (R, C), with the axes of `attention_grid`."""
    figure, axis = plt.subplots(figsize=(5, 4.6), layout="constrained")
    _draw_attention(axis, matrix, rows, columns)
    axis.set(xlabel="attended residue", ylabel="attending residue")
    set_title(figure, title)
    return figure


def attention_profiles(offsets: pd.DataFrame, received: pd.DataFrame, *, title: str) -> Figure:
    """Draw a row of panels for each layer, with a line for each head.

    Left: mean weight against the offset of the attended residue. Right: attention that each residue receives from all.

    Args:
        offsets: as `HeadSums.offset_table` gives it.
        received: as `HeadSums.received_table` gives it.
        title: title of the whole figure.
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
    set_title(figure, title)
    sns.despine(figure)
    return figure


def _draw_attention(axis: Axes, matrix: NDArray[np.float32], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """Draw a matrix (R, C) in an axis that counts residues."""
    axis.imshow(
        matrix,
        cmap="magma_r",
        vmin=0,
        vmax=max(float(np.quantile(matrix, 0.99)), 1e-12),
        extent=(columns[0] - 0.5, columns[1] + 0.5, rows[1] + 0.5, rows[0] - 0.5),
        interpolation="nearest",
    )
