"""The unigram baseline: every residue has its frequency in the split `train`, whatever its neighbours are."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protein_lm import alphabet
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.split import Split
from protein_lm.inference.likelihood import ResidueLogProbabilities, Residues, evaluation_positions


def unigram_log_probabilities(store: Corpus, *, max_sequences: int | None = None) -> NDArray[np.float64]:
    """Log-frequency (V,) of each residue token in the split `train`, with 1 added to each count.

    Args:
        store: a prepared corpus.
        max_sequences: most sequences to count in, spread evenly over the split; None: all.
    """
    indices = store.indices(Split.TRAIN)
    if max_sequences is not None and indices.size > max_sequences:
        indices = indices[np.linspace(0, indices.size - 1, max_sequences).astype(np.int64)]
    counts = np.zeros(alphabet.VOCABULARY_SIZE, dtype=np.int64)
    for index in indices.tolist():
        counts += np.bincount(store.residues(index), minlength=alphabet.VOCABULARY_SIZE)
    residues = slice(alphabet.FIRST_RESIDUE, alphabet.FIRST_RESIDUE + alphabet.NUM_RESIDUES)
    log_probabilities = np.full(alphabet.VOCABULARY_SIZE, -np.inf)
    smoothed = counts[residues] + 1.0
    log_probabilities[residues] = np.log(smoothed / smoothed.sum())
    return log_probabilities


def unigram_results(
    log_probabilities: NDArray[np.float64], sequences: Sequence[Residues], *, is_causal: bool
) -> list[ResidueLogProbabilities]:
    """The baseline on the same residues on which a causal or a masked model is measured, for each of `sequences`."""
    most_frequent = log_probabilities.argmax()
    scored = sequences if is_causal else [residues[evaluation_positions(residues)] for residues in sequences]
    return [ResidueLogProbabilities(log_probabilities[residues], residues == most_frequent) for residues in scored]
