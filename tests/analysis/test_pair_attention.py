"""Pair attention without the matrix equals pair attention out of the matrix."""

import numpy as np
import pytest
import torch

from protein_lm import alphabet
from protein_lm.analysis.attention.forms import attention_matrices
from protein_lm.analysis.attention.maps import recorded_calls
from protein_lm.analysis.pair_attention import (
    AMINO_ACIDS,
    LEAST_ARC,
    PairSums,
    amino_acid_indicators,
    pair_attention,
)
from protein_lm.batches.packed_batches import pack
from protein_lm.errors import InputError
from tests.conftest import EVERY_FORM, fresh_model, grammar
from tests.inference.toys import records

PROTEINS = records("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILS", "ACDEFGHIKLMNPQRSTVWYX", "GGGG", "XXX", "W")


def indicators(sequence: str) -> np.ndarray:
    return np.array([[letter == acid for acid in AMINO_ACIDS] for letter in f"<{sequence}>"], float)


@pytest.mark.parametrize(("attention", "objective"), EVERY_FORM)
def test_equals_the_sum_over_the_matrix(attention, objective) -> None:
    """In each group, for all proteins in one packed row; arcs too."""
    model = fresh_model(attention=attention, objective=objective)
    expected, arcs = np.zeros((2, 2, 2, 20, 20)), np.zeros((2, 2, 2, 20, 20))
    groups = np.array([0, 1, 0, 1, 1])
    for protein, group in zip(PROTEINS, groups, strict=True):
        kinds, matrices = indicators(protein.sequence), attention_matrices(model, protein)
        expected[group] += np.einsum("ia,lhij,jb->lhab", kinds, matrices, kinds)
        arcs[group] += np.einsum("ia,lhij,jb->lhab", kinds, matrices >= LEAST_ARC, kinds)
    pairs = PairSums(model, num_groups=2, arcs=True)
    pairs.add([protein.tokens for protein in PROTEINS], groups)
    np.testing.assert_allclose(pairs.sums(), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(pairs.arcs(), arcs)
    with torch.no_grad():
        tokens, packing = pack([PROTEINS[0].tokens])
        assert model.hidden_states(tokens, packing=packing).shape == (1, 40, 32), "the model is as it was"


def test_equals_the_product_of_two_sums_over_features() -> None:
    """For a bidirectional linear kernel the pair sums are (20 × M)·(20 × M)ᵀ; no residue pair is ever looked at."""
    model = fresh_model(objective="masked")
    residues = PROTEINS[0].tokens
    tokens, packing = pack([residues])
    with recorded_calls(model) as calls, torch.no_grad():
        model(tokens, packing=packing)
        call = calls[1]
        queries = call.operation.feature_map.query_features(call.query)[0]
        keys = call.operation.key_features(call.key)[0]
    normalizer = queries @ keys.sum(1).unsqueeze(-1)
    kinds = amino_acid_indicators(tokens)[0]
    left, right = kinds.T @ (queries / normalizer), kinds.T @ keys
    np.testing.assert_allclose(pair_attention(model, [residues])[1], left @ right.mT, rtol=1e-3, atol=1e-5)


def test_batches_do_not_matter() -> None:
    model = fresh_model()
    sequences = [alphabet.encode(sequence) for sequence in grammar(30).values()]
    one, two = (pair_attention(model, sequences, tokens_per_batch=budget) for budget in (70, 4000))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="nothing to compute a similarity from"):
        pair_attention(model, [])


def test_sums_are_carried_over() -> None:
    model, tokens = fresh_model(), [PROTEINS[0].tokens]
    whole, first, second = (PairSums(model, num_groups=3, arcs=True) for _ in range(3))
    for group in (0, 2):
        whole.add(tokens, np.array([group]))
    first.add(tokens, np.array([0]))
    second.load(bytes(first.dump()))
    second.add(tokens, np.array([2]))
    assert bytes(second.dump()) == bytes(whole.dump()) and len(whole.dump()) == whole.num_bytes
