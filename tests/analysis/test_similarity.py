"""Pair attention without the matrix equals pair attention out of the matrix."""

import numpy as np
import pandas as pd
import pytest
import torch

from protein_lm import alphabet
from protein_lm.analysis.attention_maps import attention_matrices, recorded_calls
from protein_lm.analysis.similarity import (
    AMINO_ACIDS,
    PairAttention,
    agreement,
    amino_acid_indicators,
    blosum62,
    draw_sequences,
    normalized,
    pair_attention,
)
from protein_lm.data.batches import pack
from protein_lm.errors import InputError
from tests.conftest import EVERY_FORM, fresh_model, grammar, write_fasta
from tests.inference.toys import records

PROTEINS = records("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILS", "ACDEFGHIKLMNPQRSTVWYX", "GGGG")


@pytest.mark.parametrize(("attention", "objective"), EVERY_FORM)
def test_equals_the_sum_over_the_matrix(attention, objective) -> None:
    model = fresh_model(attention=attention, objective=objective)
    expected = np.zeros((2, 2, 20, 20))
    for protein in PROTEINS:
        indicators = np.array([[letter == acid for acid in AMINO_ACIDS] for letter in f"<{protein.sequence}>"], float)
        expected += np.einsum("ia,lhij,jb->lhab", indicators, attention_matrices(model, protein), indicators)
    result = pair_attention(model, [protein.tokens for protein in PROTEINS])
    np.testing.assert_allclose(result.sums, expected, rtol=1e-3, atol=1e-4)
    assert (result.num_sequences, result.num_residues) == (3, 38 + 21 + 4)


def test_equals_the_product_of_two_sums_over_features() -> None:
    """For a bidirectional linear kernel the pair sums are (20 × M)·(20 × M)ᵀ; no residue pair is ever looked at."""
    model = fresh_model(objective="masked")
    residues = PROTEINS[0].tokens
    tokens, packing = pack([residues])
    with recorded_calls(model) as calls, torch.no_grad():
        model(tokens, packing=packing)
        call = calls[1]
        feature_map = call.operation.feature_map
        queries, keys = feature_map.query_features(call.query)[0], feature_map.key_features(call.key)[0]
    normalizer = queries @ keys.sum(1).unsqueeze(-1)
    kinds = amino_acid_indicators(tokens)[0]
    left, right = kinds.T @ (queries / normalizer), kinds.T @ keys
    np.testing.assert_allclose(pair_attention(model, [residues]).sums[1], left @ right.mT, rtol=1e-3, atol=1e-5)


def test_batches_do_not_matter() -> None:
    model = fresh_model()
    sequences = [alphabet.encode(sequence) for sequence in grammar(30).values()]
    one, two = (pair_attention(model, sequences, tokens_per_batch=budget).sums for budget in (70, 4000))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="nothing to compute a similarity from"):
        pair_attention(model, [])


def test_vigs_similarity_by_hand() -> None:
    sums = np.ones((1, 3, 20, 20))
    sums[0, :, :, 0] = np.array([5.0, 1, 1])[:, None]
    sums[0, :, :, 1] = np.array([5.0, 1, 1])[:, None]
    sums[0, :, :, 2] = np.array([1.0, 7, 1])[:, None]
    pairs = PairAttention(sums, 1, 1)
    share = pairs.share_of_target()
    assert share[0, 0] == pytest.approx(5 / 28) and share.sum(1) == pytest.approx(np.ones(3))
    similarity = pairs.similarity()
    assert similarity.loc["A", "C"] == pytest.approx(1.0)
    assert similarity.loc["A", "D"] < 0


def test_enrichment_by_hand() -> None:
    sums = np.ones((1, 1, 20, 20))
    assert pairs_enrichment(sums).to_numpy() == pytest.approx(np.zeros((20, 20)), abs=1e-12)
    sums[0, 0, 0, 1] = sums[0, 0, 1, 0] = 3.0
    expected = np.log2((3 / 22) / (22 / 404))
    assert pairs_enrichment(sums).loc["A", "C"] == pytest.approx(expected)


def pairs_enrichment(sums) -> pd.DataFrame:
    return PairAttention(sums, 1, 1).enrichment()


def test_absent_amino_acids_are_empty_and_left_out() -> None:
    result = pair_attention(fresh_model(), [alphabet.encode("ACDEFGHIKLMNPQRSTVY" * 2)])
    assert result.similarity()["W"].isna().all() and result.enrichment()["W"].isna().all()
    assert agreement(result.similarity(), blosum62()).num_pairs == 19 * 18 // 2


def test_agreement_finds_a_hidden_matrix_and_not_chance() -> None:
    reference = blosum62()
    noise = np.random.default_rng(0).normal(size=(20, 20))
    near = reference + (noise + noise.T) / 2
    found = agreement(near, reference)
    assert found.pearson > 0.8 and found.spearman > 0.7 and found.pearson_p <= 0.001
    chance = agreement(pd.DataFrame(noise + noise.T, reference.index, reference.columns), reference)
    assert abs(chance.pearson) < 0.3 and chance.pearson_p > 0.02
    assert found.num_pairs == 190


def test_blosum62_is_the_published_one() -> None:
    matrix = blosum62()
    assert (matrix.loc["W", "W"], matrix.loc["D", "E"], matrix.loc["F", "Y"], matrix.loc["C", "E"]) == (11, 2, 3, -4)
    assert normalized(matrix).min().min() == 0 and normalized(matrix).loc["W", "W"] == 1


def test_drawing_is_seeded_and_leaves_long_sequences_out(tmp_path, corpus) -> None:
    fasta = write_fasta(tmp_path / "a.fasta", grammar(50) | {"long": "A" * 100})
    drawn, dropped = draw_sequences(fasta, 10, max_length=62, seed=3)
    again, _ = draw_sequences(fasta, 10, max_length=62, seed=3)
    other, _ = draw_sequences(fasta, 10, max_length=62, seed=4)
    assert len(drawn) == 10 and dropped == ["long"]
    assert [a.tobytes() for a in drawn] == [a.tobytes() for a in again] != [a.tobytes() for a in other]
    everything, dropped = draw_sequences(corpus.path, 10_000, max_length=62)
    assert len(everything) + len(dropped) == corpus.num_sequences


def test_too_little_to_correlate_gives_no_number() -> None:
    """Two tiny proteins: most amino acids are absent, most pairs never meet."""
    result = pair_attention(fresh_model(), [alphabet.encode("MK"), alphabet.encode("AC")])
    assert np.isnan(result.enrichment().loc["M", "A"])
    few = agreement(result.enrichment(), blosum62())
    assert np.isnan([few.pearson, few.spearman, few.pearson_p, few.spearman_p]).all() and few.num_pairs < 3
