"""Attention against structure, as in the appendix of the Performer paper: mean attention of all heads to BPTI beside the
contacts of its structure, with the disulfide bridges marked.

    python scripts/paper_figures/attention_and_structure.py MODEL [PROTEIN.fasta] [--structure FILE:CHAIN]
        [--bridges 40-90,49-73,65-86] [-o FIGURE]

The bundled structure is chain I of PDB entry 2PTC, whose residue 1 is residue 36 of P00974: the bridges 5-55, 14-38 and 30-51
of mature BPTI are 40-90, 49-73 and 65-86 there. The title has the mean attention of pairs in contact (Cβ, of glycine Cα,
under 8 Å, 6 or more residues apart) over that of all pairs as far apart.

Source: Choromanski et al. 2021 (arXiv 2009.14794); Vig et al. 2021 (arXiv 2006.15222) for the comparison with contacts.
"""

import re
import sys
from collections.abc import Sequence

import numpy as np
from common import ROOT, draw_matrix, model_and_protein, panels, parser, times_even

from protein_lm.analysis.attention.forms import attention_matrices
from protein_lm.analysis.contacts import CONTACT_DISTANCE, MIN_SEPARATION, distances
from protein_lm.errors import ConfigError, ProteinLMError
from protein_lm.io.structures.chains import read_chain
from protein_lm.plots.saving import save_figure

BRIDGES = "40-90,49-73,65-86"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw it."""
    made = parser("Attention beside the contacts of a structure.", "attention_and_structure.png")
    made.add_argument(
        "--structure", default=str(ROOT / "data/bpti.pdb"), help="PDB or mmCIF, FILE or FILE:CHAIN (BPTI's)"
    )
    made.add_argument(
        "--bridges", default=BRIDGES, help=f"bonded residues, as in the FASTA file ({BRIDGES}); '' for none"
    )
    options = made.parse_args(arguments)
    model, protein = model_and_protein(options)
    bridges = [_pair(text, len(protein)) for text in options.bridges.split(",") if text]
    between = distances(read_chain(options.structure).placed_in(protein))
    attention = times_even(attention_matrices(model, protein), causal=model.is_causal).mean((0, 1))
    seen = np.flatnonzero(np.isfinite(between).any(0))
    first, last = int(seen[0]) + 1, int(seen[-1]) + 1

    separation = np.abs(np.subtract.outer(np.arange(len(protein)), np.arange(len(protein))))
    counted = (separation >= MIN_SEPARATION) & np.isfinite(between)
    if model.is_causal:
        counted &= np.tri(len(protein), dtype=bool)
    in_contact = counted & (between < CONTACT_DISTANCE)
    ratio = attention[in_contact].mean() / attention[counted].mean()

    figure, (left, right) = panels(2, 9.8, 4.8)
    image = draw_matrix(left, attention, limit=3)
    figure.colorbar(image, ax=left, shrink=0.8, extend="max", label="mean attention, times even attention")
    left.set_title(f"{model.config.attention_name}: contacts get {ratio:.2f} times the mean of all pairs", fontsize=9)
    shown = np.where(np.isnan(between), np.nan, between < CONTACT_DISTANCE)
    extent = (0.5, len(protein) + 0.5, len(protein) + 0.5, 0.5)
    right.imshow(shown, cmap="Greys", vmin=0, vmax=1.4, extent=extent, interpolation="nearest")
    right.set_title(f"structure: under {CONTACT_DISTANCE:g} Å", fontsize=9)
    label = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    for axis in (left, right):
        for early, late in bridges:
            for x, y in ((early, late), (late, early))[: 1 if axis is left and model.is_causal else 2]:
                axis.plot(x, y, "s", markersize=9, markerfacecolor="none", markeredgecolor="black")
            axis.annotate(f"{early}-{late}", (early, late), (8, 8), textcoords="offset points", fontsize=7, bbox=label)
        axis.set(xlim=(first - 0.5, last + 0.5), ylim=(last + 0.5, first - 0.5))
        axis.set_xlabel(f"{'attended ' if axis is left else ''}residue of {protein.sequence_id}")
    left.set_ylabel("attending residue")
    save_figure(figure, options.output)
    print(
        f"{options.output}: {in_contact.sum():,} pairs in contact get {ratio:.3f} times the attention of all "
        f"{counted.sum():,}"
    )


def _pair(text: str, length: int) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d+)-(\d+)\s*", text)
    if not match or not 1 <= int(match[1]) < int(match[2]) <= length:
        raise ConfigError(f"--bridges: {text!r} is no pair of residues 1 to {length}; write 40-90")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    try:
        main()
    except ProteinLMError as error:
        print(f"attention_and_structure.py: error: {error}", file=sys.stderr)
        sys.exit(2)
