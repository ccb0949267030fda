"""What the scripts of this folder share: their command line, and attention as times what even attention would give."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from protein_lm.checkpoint.directory import load_model
from protein_lm.errors import InputError
from protein_lm.io.readers import read_records
from protein_lm.io.records import SequenceRecord
from protein_lm.model.language_model import ProteinLM
from protein_lm.plots.saving import check_figure_output

ROOT = Path(__file__).resolve().parents[2]


def parser(purpose: str, figure: str) -> argparse.ArgumentParser:
    """The arguments of all scripts: a model, a protein, a figure."""
    made = argparse.ArgumentParser(description=purpose)
    made.add_argument("model", help="model directory or run")
    made.add_argument(
        "protein", nargs="?", type=Path, default=ROOT / "data/P00974.fasta", help="FASTA of one protein (BPTI)"
    )
    made.add_argument(
        "-o", "--output", type=Path, default=Path(figure), help=f"{figure} unless given; .png, .svg or .pdf"
    )
    return made


def model_and_protein(options: argparse.Namespace) -> tuple[ProteinLM, SequenceRecord]:
    """As the arguments name them.

    Raises:
        ProteinLMError: one of them cannot be read; the figure exists or has another format.
    """
    check_figure_output(options.output)
    records = list(read_records(options.protein))
    if len(records) != 1:
        raise InputError(f"{options.protein} has {len(records):,} sequences; give a file with one")
    return load_model(options.model), records[0]


def times_even(matrices: NDArray[np.float32], *, causal: bool) -> NDArray[np.float32]:
    """Attention (..., L + 2, L + 2) of residues to residues (..., L, L), divided by what attention to all alike would give.

    A causal model's first residues have few to choose from, so that even attention is no constant there.
    """
    length = matrices.shape[-1]
    visible = np.arange(1, length + 1)[:, None] if causal else length
    return (visible * matrices)[..., 1:-1, 1:-1]


def draw_matrix(axis: Axes, matrix: NDArray[np.float32], *, limit: float) -> Any:
    """A matrix of residues (L, L), colours from 0 to `limit`; the image."""
    size = len(matrix)
    extent = (0.5, size + 0.5, size + 0.5, 0.5)
    return axis.imshow(matrix, cmap="magma_r", vmin=0, vmax=limit, extent=extent, interpolation="nearest")


def panels(count: int, width: float, height: float) -> tuple[Any, list[Axes]]:
    """A figure with panels side by side, in the style of the project."""
    with sns.axes_style("ticks"):
        figure, axes = plt.subplots(1, count, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, list(axes[0])
