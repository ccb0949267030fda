"""Figure of the errors of random features, against their number."""

from itertools import cycle

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from protein_lm.plots.style import REFERENCE


def kernel_errors(table: pd.DataFrame, *, error: str = "matrix_error") -> Figure:
    """Draw the error of each feature type against M, and that of uniform attention; a panel for each scale of the norms.

    Lines are means over proteins, layers and heads. Bands run from the 10th to the 90th percentile.

    Args:
        table: as `analysis.kernel_error` gives it.
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
            axis.axhline(floor, color=REFERENCE, linestyle=":", label=f"uniform attention ({kernel})")
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
