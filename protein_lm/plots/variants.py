"""Heatmap of the scores of all substitutions of a protein."""

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from protein_lm.plots.style import CLASS_ORDER


def substitution_heatmap(scores: NDArray[np.float64], wild_type: str, *, title: str, first_residue: int = 1) -> Figure:
    """Draw the score of each substitution: residues along, amino acids down, a dot for the wild type.

    Residues without scores are grey. Long proteins wrap into rows, so that the figure stays near a square. The colours end
    at the 99th percentile of the scores' sizes.

    Args:
        scores: (L, 20) in nats, columns in alphabetical order, NaN where there is none.
        wild_type: its L letters.
        title: title of the whole figure.
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
        known = [(position, order.index(own)) for position, own in enumerate(wild_type[span], first) if own in order]
        if known:
            axis.scatter(*zip(*known, strict=True), s=(22 * cell) ** 2, color="black", linewidths=0)
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
