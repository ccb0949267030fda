"""Parts that several figures share: colours, the order of amino acids, titles, histograms of lengths."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter
from numpy.typing import NDArray

BLUE, ORANGE = "#1b4f8a", "#c4601d"
"""The main colour of all figures, and that of generated proteins."""
REFERENCE = "0.4"
"""Grey of lines to compare with: baselines, medians, zero."""
CLASS_ORDER = "AVILMCFWYHKRDENQSTGP"
"""Amino acids in an order that keeps each physico-chemical class together."""
_LONGEST_TITLE = 90


def set_title(figure: Figure, title: str) -> None:
    """Set a title that may hold any identifier: shortened, and never read as mathematics."""
    if len(title) > _LONGEST_TITLE:
        title = title[: _LONGEST_TITLE // 2] + " … " + title[-_LONGEST_TITLE // 2 :]
    figure.suptitle(title, fontsize=10, parse_math=False)


def length_edges(shortest: int, longest: int, num_bins: int) -> NDArray[np.float64]:
    """Edges of bins of lengths that are even on a logarithmic axis; short bins that hold no whole number are joined."""
    return np.asarray(np.unique(np.geomspace(shortest, longest + 1, num_bins + 1).round()) - 0.5, dtype=np.float64)


def draw_lengths(
    axis: Axes,
    edges: NDArray[np.float64],
    lengths: NDArray[np.int64],
    numbers: NDArray[np.int64],
    *,
    name: str,
    color: Any,
    linestyle: str = "-",
) -> None:
    """Draw a histogram whose area over a doubling of length is the share of the sequences in it.

    So sets of all sizes can be compared, whatever the bins.

    Args:
        axis: where to draw.
        edges: as `length_edges` gives them.
        lengths: (K,) lengths in residues.
        numbers: (K,) sequences of each length.
        name: the set's name, to which the legend adds its number of sequences.
        color: colour of the line.
        linestyle: style of the line.
    """
    shares = 100 * np.histogram(lengths, edges, weights=numbers)[0] / numbers.sum() / np.diff(np.log2(edges))
    label = f"{name}, {numbers.sum():,}"
    axis.stairs(shares, edges, color=color, linestyle=linestyle, linewidth=1.4, label=label)


def label_lengths(axis: Axes) -> None:
    """Label the axes of what `draw_lengths` drew."""
    axis.set(xscale="log", xlabel="length (residues)", ylabel="sequences per doubling of length (%)", ylim=(0, None))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8)
