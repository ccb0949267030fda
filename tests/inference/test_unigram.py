"""The unigram baseline: the composition of the split `train`."""

import numpy as np
import pytest

from protein_lm import alphabet
from protein_lm.corpus.split import Split
from protein_lm.inference.likelihood import evaluation_positions
from protein_lm.inference.unigram import unigram_log_probabilities, unigram_results


def test_the_baseline_is_the_composition_of_the_training_split(corpus) -> None:
    probabilities = np.exp(unigram_log_probabilities(corpus))
    train = np.concatenate([corpus.residues(int(i)) for i in corpus.indices(Split.TRAIN)])
    alanine = alphabet.TOKENS.index("A")
    assert probabilities[alanine] == pytest.approx(
        ((train == alanine).sum() + 1) / (train.size + alphabet.NUM_RESIDUES)
    )
    assert probabilities.sum() == pytest.approx(1.0)
    assert (probabilities[[alphabet.CLS, alphabet.EOS, alphabet.MASK]] == 0).all()


def test_a_part_of_the_split_gives_nearly_the_same(corpus) -> None:
    whole, part = (np.exp(unigram_log_probabilities(corpus, max_sequences=number)) for number in (None, 100))
    assert 0 < np.abs(whole - part).max() < 0.01
    few = unigram_log_probabilities(corpus, max_sequences=10_000)
    np.testing.assert_array_equal(np.exp(few), whole)


def test_masked_models_are_compared_on_the_masked_residues(corpus) -> None:
    unigram = unigram_log_probabilities(corpus)
    sequences = [corpus.residues(index) for index in (0, 1)]
    for residues, causal, masked in zip(
        sequences,
        unigram_results(unigram, sequences, is_causal=True),
        unigram_results(unigram, sequences, is_causal=False),
        strict=True,
    ):
        np.testing.assert_array_equal(causal.log_probabilities, unigram[residues])
        np.testing.assert_array_equal(masked.log_probabilities, unigram[residues[evaluation_positions(residues)]])
        np.testing.assert_array_equal(causal.correct, residues == unigram.argmax())
