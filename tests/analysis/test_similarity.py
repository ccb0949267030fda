"""Similarity of amino acids out of sums of attention and out of a kernel, and how it agrees with substitution matrices."""

import numpy as np
import pytest
import torch
from scipy import stats

from protein_lm import alphabet
from protein_lm.analysis.pair_attention import AMINO_ACIDS, PairSums, pair_attention
from protein_lm.analysis.similarity import (
    correlation_over_heads,
    enrichment,
    frame,
    kernel_similarity,
    share_of_target,
)
from protein_lm.analysis.substitution import Resamples, agreement, matrix_names, normalized, substitution_matrix
from protein_lm.errors import ConfigError
from tests.conftest import fresh_model, grammar

BLOSUM62 = substitution_matrix()


def test_vigs_similarity_by_hand() -> None:
    sums = np.ones((1, 3, 20, 20))
    sums[0, :, :, 0] = np.array([5.0, 1, 1])[:, None]
    sums[0, :, :, 1] = np.array([5.0, 1, 1])[:, None]
    sums[0, :, :, 2] = np.array([1.0, 7, 1])[:, None]
    share = share_of_target(sums)
    assert share[0, 0] == pytest.approx(5 / 28) and share.sum(1) == pytest.approx(np.ones(3))
    similarity = frame(correlation_over_heads(sums))
    assert similarity.loc["A", "C"] == pytest.approx(1.0)
    assert similarity.loc["A", "D"] < 0


def test_heads_without_arcs_are_left_out() -> None:
    arcs = np.random.default_rng(0).integers(0, 9, (2, 3, 20, 20)).astype(float)
    silent = np.concatenate((arcs, np.zeros((1, 3, 20, 20))))
    np.testing.assert_array_equal(correlation_over_heads(silent), correlation_over_heads(arcs))
    assert np.isnan(correlation_over_heads(np.zeros((2, 3, 20, 20)))).all()
    assert np.isnan(correlation_over_heads(arcs[:1, :1])).all(), "one head correlates with nothing"


def test_enrichment_by_hand() -> None:
    sums = np.ones((1, 1, 20, 20))
    assert enrichment(sums) == pytest.approx(np.zeros((20, 20)), abs=1e-12)
    sums[0, 0, 0, 1] = sums[0, 0, 1, 0] = 3.0
    assert enrichment(sums)[0, 1] == pytest.approx(np.log2((3 / 22) / (22 / 404)))


def test_absent_amino_acids_are_empty_and_left_out() -> None:
    sums = pair_attention(fresh_model(), [alphabet.encode("ACDEFGHIKLMNPQRSTVY" * 2)])
    similarity = frame(correlation_over_heads(sums))
    assert similarity["W"].isna().all() and frame(enrichment(sums))["W"].isna().all()
    assert agreement(similarity, BLOSUM62).num_pairs == 19 * 18 // 2


@pytest.mark.parametrize("attention", ["performer-relu", "performer-softmax", "cosformer", "hedgehog"])
def test_the_kernel_is_that_of_the_first_token(attention) -> None:
    """A protein of one residue, without special tokens, is read by the first layer as the kernel measure reads it."""
    model = fresh_model(attention=attention)
    ids = torch.tensor([alphabet.TOKENS.index(letter) for letter in AMINO_ACIDS])
    attention_layer = model.blocks[0].attention
    keys = []
    with torch.no_grad():
        hook = attention_layer.operation.register_forward_pre_hook(lambda _, inputs: keys.append(inputs[1]))
        model.hidden_states(ids[:, None])
        hook.remove()
        features = attention_layer.operation.key_features(keys[0])[:, :, 0].double()
    cosine = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=-1).mean(-1)
    kernel = kernel_similarity(model)
    np.testing.assert_allclose(kernel, cosine, atol=1e-5)
    np.testing.assert_allclose(np.diag(kernel), 1)
    assert kernel_similarity(fresh_model(attention="exact")) is None


def test_agreement_finds_a_hidden_matrix_and_not_chance() -> None:
    noise = np.random.default_rng(0).normal(size=(20, 20))
    near = BLOSUM62 + (noise + noise.T) / 2
    found = agreement(near, BLOSUM62)
    lower = np.tril_indices(20, -1)
    left, right = near.to_numpy()[lower], BLOSUM62.to_numpy()[lower]
    assert found.pearson == pytest.approx(stats.pearsonr(left, right)[0])
    assert found.spearman == pytest.approx(stats.spearmanr(left, right)[0])
    assert found.pearson > 0.8 and found.spearman > 0.7 and found.pearson_p <= 0.001
    chance = agreement(frame(noise + noise.T), BLOSUM62)
    assert abs(chance.pearson) < 0.3 and chance.pearson_p > 0.02
    assert found.num_pairs == 190


def test_pairs_without_values_take_no_part() -> None:
    noise = np.random.default_rng(1).normal(size=(20, 20))
    table = frame(noise + noise.T)
    table.loc["A", "C"] = table.loc["C", "A"] = np.nan
    lower = np.tril_indices(20, -1)
    known = np.isfinite(table.to_numpy()[lower])
    left, right = table.to_numpy()[lower][known], BLOSUM62.to_numpy()[lower][known]
    found = agreement(table, BLOSUM62)
    assert found.num_pairs == 189
    assert found.pearson == pytest.approx(stats.pearsonr(left, right)[0])
    assert found.spearman == pytest.approx(stats.spearmanr(left, right)[0])


def test_too_little_to_correlate_gives_no_number() -> None:
    """Two tiny proteins: most amino acids are absent, most pairs never meet."""
    table = frame(enrichment(pair_attention(fresh_model(), [alphabet.encode("MK"), alphabet.encode("AC")])))
    assert np.isnan(table.loc["M", "A"])
    few = agreement(table, BLOSUM62)
    assert np.isnan([few.pearson, few.spearman, few.pearson_p, few.spearman_p]).all() and few.num_pairs < 3
    assert np.isnan(agreement(frame(np.full((20, 20), np.nan)), BLOSUM62).pearson)


def test_intervals_over_proteins_hold_the_value_and_shrink_with_more_of_them() -> None:
    model, sequences = fresh_model(), [alphabet.encode(sequence) for sequence in grammar(240).values()]
    widths = []
    for count in (30, 240):
        pairs = PairSums(model, num_groups=20)
        pairs.add(sequences[:count], np.arange(count) % 20)
        low, high = Resamples.of(pairs.sums(), {"it": enrichment})["it"].interval(BLOSUM62)[0]
        value = agreement(frame(enrichment(pairs.sums().sum(0))), BLOSUM62).pearson
        assert low < value < high
        widths.append(high - low)
    assert widths[1] < widths[0]
    one = Resamples.of(pairs.sums()[:1], {"it": enrichment})["it"]
    assert np.isnan(one.interval(BLOSUM62)).all(), "one group says nothing about others"


def test_matrices_are_the_published_ones() -> None:
    cells = [BLOSUM62.loc[pair] for pair in (("W", "W"), ("D", "E"), ("F", "Y"), ("C", "E"))]
    assert cells == [11, 2, 3, -4]
    assert substitution_matrix("PAM250").loc["W", "W"] == 17
    assert normalized(BLOSUM62).min().min() == 0 and normalized(BLOSUM62).loc["W", "W"] == 1
    for name in matrix_names():
        matrix = substitution_matrix(name).to_numpy()
        np.testing.assert_array_equal(matrix, matrix.T)
    with pytest.raises(ConfigError, match=r"unknown matrix 'NUC.4.4'; choose from BENNER22, .*PAM250"):
        substitution_matrix("NUC.4.4")
