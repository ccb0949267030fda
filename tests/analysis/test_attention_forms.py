"""Every form is what the whole matrices say, however few rows pass by at a time."""

import itertools

import numpy as np
import pytest
import torch

from protein_lm.analysis.attention import maps as attention_maps
from protein_lm.analysis.attention.forms import (
    BlockMeans,
    LargestWeights,
    Matrices,
    Region,
    Rollout,
    attention_matrices,
)
from protein_lm.analysis.attention.maps import read_attention
from protein_lm.analysis.attention.redraws import check_draws, draw_features
from protein_lm.errors import ConfigError
from tests.conftest import EVERY_FORM, fresh_model
from tests.inference.toys import records

PROTEIN = records("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILS")[0]
LENGTH = len(PROTEIN) + 2
ALL = {"layers": [1, 2], "heads": [1, 2]}
WHOLE = Region(slice(0, LENGTH), slice(0, LENGTH))
PART = Region(slice(5, 22), slice(3, 31))
every_model = pytest.mark.parametrize(("attention", "objective"), EVERY_FORM)


@pytest.fixture(autouse=True)
def few_rows_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(attention_maps, "BLOCK_BYTES", 4 * 2 * LENGTH * 7)


def block_means(matrices: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            np.stack([matrices[..., a:b, c:d].mean((-2, -1)) for c, d in itertools.pairwise(columns)], -1)
            for a, b in itertools.pairwise(rows)
        ],
        -2,
    )


@every_model
def test_forms_equal_those_of_the_whole_matrices(attention, objective) -> None:
    model = fresh_model(attention=attention, objective=objective)
    whole = attention_matrices(model, PROTEIN)
    part, means, rollout = Matrices(PART, 2, 2), BlockMeans(PART, 6, 2, 2), Rollout(WHOLE, LENGTH, LENGTH)
    largest, of_blocks = LargestWeights(PART, 3), Rollout(PART, 6, LENGTH)
    read_attention(model, PROTEIN, [part, means, rollout, largest, of_blocks], **ALL)
    cut = whole[:, :, PART.rows, PART.columns]
    np.testing.assert_array_equal(part.values, cut)
    expected = block_means(cut, means.row_edges, means.column_edges)
    assert expected.shape == (2, 2, 6, 6)
    np.testing.assert_allclose(means.values, expected, rtol=1e-4, atol=1e-6)
    product = np.eye(LENGTH)
    for layer in whole.astype(np.float64):
        product = (layer.mean(0) + np.eye(LENGTH)) / 2 @ product
    np.testing.assert_allclose(rollout.values, product, rtol=1e-4, atol=1e-6)
    if model.operations()[0].weights_are_positive:
        np.testing.assert_allclose(rollout.values.sum(1), 1, rtol=1e-5)
    rows, columns = of_blocks.row_edges, of_blocks.column_edges
    expected = block_means(product[PART.rows, PART.columns], rows, columns)
    np.testing.assert_allclose(of_blocks.values, expected, rtol=1e-4, atol=1e-6)
    table = largest.table(**ALL)
    for (layer, head, residue), group in table.groupby(["layer", "head", "residue"]):
        row = whole[layer - 1, head - 1, residue, PART.columns]
        np.testing.assert_array_equal(group["weight"], np.sort(row)[::-1][: len(group)])
        np.testing.assert_array_equal(whole[layer - 1, head - 1, residue, group["attended"]], group["weight"])
        assert len(group) == min(3, np.count_nonzero(row))


def test_a_block_for_each_token_is_the_matrix_itself() -> None:
    model = fresh_model(objective="masked")
    matrices, means = Matrices(WHOLE, 2, 2), BlockMeans(WHOLE, 1000, 2, 2)
    read_attention(model, PROTEIN, [matrices, means], **ALL)
    np.testing.assert_array_equal(means.values, matrices.values)


@pytest.mark.parametrize("sequence", ["M", "XXXXXXXX"])
def test_one_residue_and_nothing_but_x(sequence) -> None:
    protein = records(sequence)[0]
    inside = slice(1, len(protein) + 1)
    means = BlockMeans(Region(inside, inside), 4, 2, 2)
    read_attention(fresh_model(), protein, [means], **ALL)
    assert means.values.shape[2] == min(4, len(protein)) and np.isfinite(means.values).all()


def test_draws_have_the_standard_error_of_their_mean() -> None:
    model = fresh_model(objective="masked", attention=["performer-relu", "exact"])
    before = attention_matrices(model, PROTEIN)

    def draws(**chosen):
        return draw_features(model, PROTEIN, lambda: Matrices(PART, 1, 2), region=PART, num_draws=3, **chosen)

    found = draws(layers=[1], heads=[2, 1])
    single = []
    for seed in range(3):
        other = fresh_model(objective="masked", attention=["performer-relu", "exact"])
        other.operations()[0].feature_map.redraw(torch.Generator().manual_seed(seed))
        single.append(attention_matrices(other, PROTEIN, layers=[1], heads=[2, 1])[:, :, PART.rows, PART.columns])
    np.testing.assert_allclose(found.mean, np.mean(single, 0), rtol=1e-5)
    np.testing.assert_allclose(found.standard_error, np.std(single, 0, ddof=1) / 3**0.5, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(attention_matrices(model, PROTEIN), before)
    with pytest.raises(
        ConfigError, match="layer 2 has exact attention, which draws nothing at random; leave out --num-draws"
    ):
        check_draws(model, [1, 2])


def test_nothing_is_largest_where_nothing_is_seen() -> None:
    later = Region(slice(1, 4), slice(10, 20))
    largest, means = LargestWeights(later, 2), BlockMeans(later, 3, 2, 2)
    read_attention(fresh_model(objective="causal"), PROTEIN, [largest, means], **ALL)
    assert len(largest.table(**ALL)) == 0 and (means.values == 0).all()
