"""As in the appendix of the Performer paper: one local and one vertical head in detail, for BPTI.

    python scripts/paper_figures/attention_heads.py MODEL [PROTEIN.fasta] [-o FIGURE]

The most local head is the one that keeps most attention within 3 tokens, the most vertical one gives most to the 2 % of the
tokens that get most (`analysis.attention.heads`). Below the vertical head's matrix the residues that it attends to are named.

Source: Choromanski et al. 2021 (arXiv 2009.14794).
"""

import sys
from collections.abc import Sequence

import numpy as np
from common import draw_matrix, model_and_protein, panels, parser, times_even

from protein_lm.analysis.attention.forms import attention_matrices
from protein_lm.analysis.attention.heads import HeadSums
from protein_lm.analysis.attention.maps import chosen_heads, chosen_layers, read_attention
from protein_lm.errors import ProteinLMError
from protein_lm.plots.saving import save_figure

NUM_NAMED = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw it."""
    options = parser("The most local and the most vertical head.", "attention_heads.png").parse_args(arguments)
    model, protein = model_and_protein(options)
    layers, heads = chosen_layers(model, None), chosen_heads(model, None)
    sums = HeadSums(len(layers), len(heads), len(protein) + 2)
    read_attention(model, protein, [sums], layers=layers, heads=heads)
    table = sums.table(model, layers=layers, heads=heads)
    figure, axes = panels(2, 9.6, 4.8)
    image = None
    for axis, kind in zip(axes, ("local", "vertical"), strict=True):
        head = table.loc[table[f"{kind}_share"].idxmax()]
        at = {"layers": [int(head["layer"])], "heads": [int(head["head"])]}
        weights = times_even(attention_matrices(model, protein, **at), causal=model.is_causal)[0, 0]
        image = draw_matrix(axis, weights, limit=4)
        title = f"most {kind}: layer {head['layer']}, head {head['head']}\n{kind} share {head[f'{kind}_share']:.0%}"
        if kind == "vertical":
            attended = weights.mean(0) if not model.is_causal else _mean_of_those_that_see(weights)
            named = np.argsort(-np.nan_to_num(attended))[:NUM_NAMED]
            title += ", to " + ", ".join(f"{protein.sequence[place]}{place + 1}" for place in sorted(named))
        axis.set_title(title, fontsize=9)
        axis.set(xlabel=f"attended residue of {protein.sequence_id}")
    axes[0].set_ylabel("attending residue")
    figure.colorbar(image, ax=axes, shrink=0.8, extend="max", label="attention, times even attention")
    save_figure(figure, options.output)
    print(options.output)


def _mean_of_those_that_see(weights: np.ndarray) -> np.ndarray:
    """Mean of each column over the rows that see it; the last fifth of the columns, which few see, is left out."""
    means = np.array([weights[place:, place].mean() for place in range(len(weights))])
    means[-max(1, len(weights) // 5) :] = np.nan
    return means


if __name__ == "__main__":
    try:
        main()
    except ProteinLMError as error:
        print(f"attention_heads.py: error: {error}", file=sys.stderr)
        sys.exit(2)
