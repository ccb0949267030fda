"""Figures as files: checked before the work, written whole or not at all."""

from io import BytesIO
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from protein_lm.choices import FigureFormat
from protein_lm.errors import OutputError
from protein_lm.files.output import check_absent, new_file

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
    """Return a figure as PNG, for a page, and close it."""
    content = BytesIO()
    try:
        figure.savefig(content, format="png", dpi=150, bbox_inches="tight")
    finally:
        plt.close(figure)
    return content.getvalue()
