"""Files of `compare`: generated proteins compared with the training split of a corpus."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from protein_lm.analysis.generated import compare, composition, reference
from protein_lm.corpus.clusters import nearest_in_training, shares_of_relatives
from protein_lm.corpus.corpus import Corpus
from protein_lm.files.output import new_directory
from protein_lm.io.proteins import without_repeats
from protein_lm.io.records import SequenceRecord
from protein_lm.plots.generated import generated_and_real
from protein_lm.plots.saving import save_figure


def write_comparison(
    records: Sequence[SequenceRecord],
    corpus: Corpus,
    output: Path,
    *,
    max_sequences: int,
    seed: int,
    with_relatives: bool,
    figure_format: str = ".png",
) -> pd.DataFrame:
    """Write comparison.csv (returned), composition.csv, a figure, and with relatives nearest.csv into a new folder.

    Args:
        records: the generated proteins.
        corpus: a prepared corpus.
        output: the folder.
        max_sequences: most sequences of the split train to compare with.
        seed: seed of their draw.
        with_relatives: search for the nearest relatives in training, with MMseqs2.
        figure_format: ending of the figure.

    Raises:
        InputError: an identifier comes twice, the corpus has too few training sequences, or MMseqs2 failed.
        OutputError: `output` exists or cannot be written.
    """
    letters = {record.sequence_id: record.sequence for record in without_repeats(records)}
    generated = [record.tokens for record in records]
    real = reference(corpus, max_sequences=max_sequences, seed=seed)
    table, shares = compare(generated, real, seed=seed), composition(generated, real.all)
    lengths = {name: np.array([r.size for r in rows]) for name, rows in (("generated", generated), ("real", real.all))}
    nearest = identities = None
    if with_relatives:
        nearest = nearest_in_training(corpus, letters)
        identity_of = dict(zip(nearest["sequence_id"], nearest["identity"], strict=True))
        identities = np.array([identity_of.get(name, 0.0) for name in letters])
        relatives = shares_of_relatives(identities)
        names = [f"relatives_{name}" for name in relatives]
        table = pd.concat([table, pd.DataFrame({"measure": names, "generated": list(relatives.values())})])
    with new_directory(output) as folder:
        table.to_csv(folder / "comparison.csv", index=False)
        shares.to_csv(folder / "composition.csv", index=False)
        if nearest is not None:
            nearest.to_csv(folder / "nearest.csv", index=False)
        title = f"{len(generated):,} generated proteins and {len(real.all):,} of the split train of {corpus.path.name}"
        figure = generated_and_real(table, shares, lengths, identities, title=title)
        save_figure(figure, folder / f"comparison{figure_format}")
    return table
