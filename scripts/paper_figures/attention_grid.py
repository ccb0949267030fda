"""As in the appendix of the Performer paper: attention of the first 4 layers x 8 heads, or as many as there are, for BPTI.

    python scripts/paper_figures/attention_grid.py MODEL [PROTEIN.fasta] [-o FIGURE]

Source: Choromanski et al. 2021 (arXiv 2009.14794), appendix C.4.
"""

import sys
from collections.abc import Sequence

from common import model_and_protein, parser

from protein_lm.analysis.attention.forms import attention_matrices
from protein_lm.errors import ProteinLMError
from protein_lm.plots.attention import attention_grid
from protein_lm.plots.saving import save_figure

NUM_LAYERS, NUM_HEADS = 4, 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw it."""
    options = parser("Attention of the first 4 layers x 8 heads.", "attention_grid.png").parse_args(arguments)
    model, protein = model_and_protein(options)
    layers = range(1, min(NUM_LAYERS, model.config.num_layers) + 1)
    heads = range(1, min(NUM_HEADS, model.config.num_heads) + 1)
    matrices = attention_matrices(model, protein, layers=layers, heads=heads)
    ends = 1, len(protein)
    title = f"{protein.sequence_id}, {model.config.attention_name}"
    figure = attention_grid(
        matrices[:, :, 1:-1, 1:-1], layers=layers, heads=heads, title=title, rows=ends, columns=ends
    )
    save_figure(figure, options.output)
    print(options.output)


if __name__ == "__main__":
    try:
        main()
    except ProteinLMError as error:
        print(f"attention_grid.py: error: {error}", file=sys.stderr)
        sys.exit(2)
