"""Maps of predicted contacts, next to the contacts of a structure."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray

from protein_lm.plots.style import set_title


def contact_maps(
    probabilities: NDArray[np.float64],
    distances: NDArray[np.float64] | None,
    *,
    title: str,
    contact_distance: float,
    min_separation: int,
) -> Figure:
    """Draw the probability of contact of all pairs of residues (left), and the contacts of a structure (right), if given.

    Args:
        probabilities: (L, L).
        distances: (L, L) in Å, NaN where a residue was not seen, which is drawn grey; None: no structure.
        title: title of the whole figure.
        contact_distance: distance in Å below which a pair is in contact.
        min_separation: least |i - j| that is predicted; nearer pairs are drawn grey.
    """
    count = 1 if distances is None else 2
    figure, axes = plt.subplots(1, count, figsize=(5 * count, 4.6), squeeze=False, sharey=True, layout="constrained")
    size = len(probabilities)
    extent = (0.5, size + 0.5, size + 0.5, 0.5)
    colors = plt.get_cmap("magma_r").with_extremes(bad="0.85")
    far = np.abs(np.subtract.outer(np.arange(size), np.arange(size))) >= min_separation
    predicted = np.where(far, probabilities, np.nan)
    image = axes[0, 0].imshow(predicted, cmap=colors, vmin=0, vmax=1, extent=extent, interpolation="nearest")
    axes[0, 0].set(title="predicted", xlabel="residue", ylabel="residue")
    figure.colorbar(image, ax=axes[0, 0], shrink=0.8, label="probability of contact")
    if distances is not None:
        shown = np.where(np.isnan(distances), np.nan, distances < contact_distance)
        axes[0, 1].imshow(shown, cmap=colors, vmin=0, vmax=1, extent=extent, interpolation="nearest")
        axes[0, 1].set(title=f"structure, under {contact_distance:g} Å", xlabel="residue")
    set_title(figure, title)
    return figure
