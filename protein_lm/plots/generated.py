"""Figure of generated proteins, compared with real ones."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from protein_lm.plots.style import BLUE, CLASS_ORDER, ORANGE, draw_lengths, label_lengths, length_edges

COLORS = {"generated": ORANGE, "real": BLUE}


def generated_and_real(
    table: pd.DataFrame,
    composition: pd.DataFrame,
    lengths: dict[str, NDArray[np.int64]],
    identities: NDArray[np.float64] | None,
    *,
    title: str,
) -> Figure:
    """Compare generated proteins with real ones: lengths, residues, k-mers with their null, nearest training sequence.

    Args:
        table: as `analysis.generated.compare` gives it.
        composition: as `analysis.generated.composition` gives it.
        lengths: residues of each sequence, `generated` and `real`.
        identities: (N,) identity of each generated sequence to its nearest relative in training, 0 if there is none; None:
            not known.
        title: title of the whole figure.
    """
    with sns.axes_style("ticks"):
        figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    histogram, bars, distances, nearest = axes.flat
    both = np.concatenate(list(lengths.values()))
    edges = length_edges(both.min(), both.max(), 30)
    for name, values in lengths.items():
        draw_lengths(histogram, edges, values, np.ones_like(values), name=name, color=COLORS[name])
    label_lengths(histogram)
    ordered = composition.set_index("residue").loc[list(CLASS_ORDER)]
    for shift, name in ((-0.2, "generated"), (0.2, "real")):
        bars.bar(np.arange(len(ordered)) + shift, 100 * ordered[name], 0.4, color=COLORS[name], label=name)
    bars.set_xticks(range(len(ordered)), list(ordered.index))
    bars.set(xlabel="residue", ylabel="share of all residues (%)")
    bars.margins(x=0.02)
    _draw_kmers(distances, pd.DataFrame(table[table["measure"].str.startswith("kmer_distance_")]))
    if identities is None:
        nearest.set_axis_off()
    else:
        _draw_identities(nearest, identities)
    figure.suptitle(title, fontsize=10)
    sns.despine(figure)
    return figure


def _draw_kmers(axis: Axes, rows: pd.DataFrame) -> None:
    """Draw the distances of k-mers next to those of as many real proteins."""
    positions = np.arange(len(rows))
    around = [rows["null_mean"] - rows["null_low"], rows["null_high"] - rows["null_mean"]]
    axis.bar(positions - 0.2, rows["generated"], 0.4, color=COLORS["generated"], label="generated")
    label = "as many real (95 %)"
    axis.bar(positions + 0.2, rows["null_mean"], 0.4, color=COLORS["real"], yerr=around, capsize=3, label=label)
    axis.set_xticks(positions, [f"{name.rpartition('_')[2]}-mers" for name in rows["measure"]])
    axis.set_ylabel("Jensen-Shannon distance to real")
    axis.legend(frameon=False, fontsize=8)


def _draw_identities(axis: Axes, identities: NDArray[np.float64]) -> None:
    """Draw a histogram of the identities to the nearest training sequences."""
    axis.hist(100 * identities[identities > 0], list(range(30, 101, 5)), color=COLORS["generated"])
    axis.set(xlabel="identity to the nearest training sequence (%)", ylabel="generated sequences", xlim=(28, 102))
    axis.set_ylim(0, max(1.0, axis.get_ylim()[1]))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_title(f"{(identities == 0).sum():,} of {identities.size:,} have no relative over 30 %", fontsize=9)
