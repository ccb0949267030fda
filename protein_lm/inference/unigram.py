"""The unigram baseline: every residue with the frequency that it has in the split `train`, whatever stands beside it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protein_lm import alphabet
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.split import Split
from protein_lm.inference.likelihood import ResidueLogProbabilities, Residues, evaluation_positions


def unigram_log_probabilities(store: Corpus, *, max_sequences: int | None = None) -> NDArray[np.float64]:
    """Log-frequency (V,) of each residue token in the split `train`; every residue token counts once more than seen.

    Args:
        store: a prepared corpus.
        max_sequences: count in no more than so many sequences, spread evenly over the split.
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
    """The baseline on the very residues that a causal or a masked model is measured on, for each of `sequences`."""
    most_frequent = log_probabilities.argmax()
    scored = sequences if is_causal else [residues[evaluation_positions(residues)] for residues in sequences]
    return [ResidueLogProbabilities(log_probabilities[residues], residues == most_frequent) for residues in scored]
