"""Figure of a corpus: lengths of its sequences and shares of its residues."""

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from protein_lm.plots.style import BLUE, REFERENCE, draw_lengths, label_lengths, length_edges

_BINS_PER_DOUBLING = 4
_WINDOWS = (1022, 8190)
"""Residues of the longest sequences that windows of 1,024 and 8,192 tokens hold."""


def corpus_contents(
    lengths: NDArray[np.int64], numbers: dict[str, NDArray[np.int64]], residue_counts: dict[str, int], *, title: str
) -> Figure:
    """Draw the lengths of the sequences of each split, and the shares of the residues.

    Args:
        lengths: (K,) different lengths in residues, ascending.
        numbers: (K,) sequences of each length by split; splits without sequences are left out.
        residue_counts: number of each letter, in the order of the bars.
        title: title of the whole figure.
    """
    num_bins = 1 + int(_BINS_PER_DOUBLING * np.log2((lengths[-1] + 1) / lengths[0]))
    edges = length_edges(lengths[0], lengths[-1], num_bins)
    filled = {name: counts for name, counts in numbers.items() if counts.any()}
    with sns.axes_style("ticks"):
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11, 3.8), layout="constrained", gridspec_kw={"width_ratios": [3, 2]}
        )
    palette, styles = sns.color_palette("colorblind", len(filled)), ("-", "--", "-.", ":")[: len(filled)]
    for (name, counts), color, style in zip(filled.items(), palette, styles, strict=True):
        draw_lengths(left, edges, lengths, counts, name=name.replace("_", " "), color=color, linestyle=style)
    label_lengths(left)
    left.tick_params(axis="x", labelsize=8)
    _mark_lengths(left, lengths, np.sum(list(filled.values()), axis=0))
    counts = np.array(list(residue_counts.values()))
    right.bar(list(residue_counts), 100 * counts / counts.sum(), color=BLUE)
    right.set(xlabel="residue", ylabel="share of all residues (%)")
    right.margins(x=0.02)
    figure.suptitle(title, fontsize=10)
    sns.despine(figure)
    return figure


def _mark_lengths(axis: Axes, lengths: NDArray[np.int64], numbers: NDArray[np.int64]) -> None:
    """Mark the median length of all sequences, and the usual windows."""
    up_to = np.cumsum(numbers)
    median = int(lengths[np.searchsorted(up_to, (up_to[-1] + 1) // 2)])
    for length, text, style in ((median, f"median {median:,}", "--"), *((w, f"{w:,}", ":") for w in _WINDOWS)):
        if lengths[0] <= length <= lengths[-1]:
            axis.axvline(length, color=REFERENCE, linestyle=style, linewidth=1)
            axis.text(length, 1.01, text, transform=axis.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)
