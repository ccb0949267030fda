"""Summary -> figure: time of the attention operation against length, both axes logarithmic."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import colormaps
from matplotlib import pyplot as plt

from benchmarks.cases import CASES

OURS_WIDTH, PEER_WIDTH = 2.5, 1.2
LINE_STYLES = {"default": "-", "tuned": ":"}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """One panel per direction (columns) and type (rows), one line per contestant.

    Whole layers have squares, measurements with tuned malloc are dotted.

    Raises:
        ValueError: there is nothing to draw.
    """
    rows = [row for row in results["results"] if row["spec"]["case"] == "attention" and "median_seconds" in row]
    if not rows:
        raise ValueError("there are no results of the case attention to draw")
    directions = list(dict.fromkeys(row["spec"]["direction"] for row in rows))
    dtypes = list(dict.fromkeys(row["spec"]["dtype"] for row in rows))
    figure, axes = plt.subplots(
        len(dtypes),
        len(directions),
        figsize=(6 * len(directions), 4.5 * len(dtypes)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for line, dtype in enumerate(dtypes):
        for column, direction in enumerate(directions):
            panel = axes[line, column]
            panel.set_title(f"{direction}, {dtype}")
            _lines(
                panel, [row for row in rows if (row["spec"]["direction"], row["spec"]["dtype"]) == (direction, dtype)]
            )
    for panel in axes[-1]:
        panel.set_xlabel("length in tokens")
    for panel in axes[:, 0]:
        panel.set_ylabel("seconds, forward + backward")
    named = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in axes.flat]
    handles = {label: handle for pairs in named for handle, label in pairs}
    figure.legend(list(handles.values()), list(handles), loc="upper left", bbox_to_anchor=(1.0, 0.98), fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def _lines(panel: Any, rows: list[dict[str, Any]]) -> None:
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.set_yscale("log")
    panel.grid(alpha=0.3)
    for number, contestant in enumerate(CASES["attention"].contestants):
        for allocator, style in LINE_STYLES.items():
            points = sorted(
                (row["spec"]["length"], row["median_seconds"])
                for row in rows
                if (row["spec"]["contestant"], row["spec"]["allocator"]) == (contestant, allocator)
            )
            if points:
                panel.plot(
                    *zip(*points, strict=True),
                    style,
                    marker="s" if contestant.endswith("-layer") else "o",
                    markersize=3,
                    color=colormaps["tab20"](number),
                    linewidth=OURS_WIDTH if contestant.startswith("ours") else PEER_WIDTH,
                    label=contestant + (", tuned malloc" if allocator == "tuned" else ""),
                )
