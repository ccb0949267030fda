"""Errors of random features: by hand, and in the order that the papers found."""

import numpy as np
import pandas as pd
import pytest
import torch

from protein_lm.analysis.kernel_error import (
    FEATURE_TYPES,
    SOFTMAX_TYPES,
    kernel_error,
    matrix_errors,
    relu_kernel_matrix,
)
from protein_lm.attention.feature_maps.performer import ReLUFeatures
from protein_lm.attention.reference import linear_attention_matrix
from protein_lm.errors import ConfigError, InputError
from tests.conftest import fresh_model
from tests.inference.toys import records

PROTEINS = records("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILS", "ACDEFGHIKLMNPQRSTVWY")


def gaussian(length: int, width: int, scale: float) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [factor * torch.randn(1, 1, length, width) for factor in (scale, scale, 1.0)]


def test_a_row_for_everything() -> None:
    model = fresh_model(attention="exact", objective="masked")
    table = kernel_error(
        model,
        PROTEINS,
        feature_types=["positive-iid", "relu-orthogonal"],
        num_features=[16, 32],
        lengths=[10, 30],
        norm_scales=[0.5, 1.0],
        num_draws=2,
    )
    # 10 tokens of both proteins, 30 of the longer one; 2 layers, 2 heads, 2 scales, 2 types, 2 M
    assert len(table) == 3 * 2 * 2 * 2 * 2 * 2
    assert (
        set(table["layer"]) == {1, 2} and set(table["head"]) == {1, 2} and set(table["kernel"]) == {"softmax", "relu"}
    )
    assert np.isfinite(table.select_dtypes("number").to_numpy()).all()
    by_scale = table.groupby("norm_scale")["query_norm"].mean()
    assert by_scale[1.0] == pytest.approx(2 * by_scale[0.5])
    assert (table.groupby("norm_scale")["matrix_error"].mean().diff().dropna() > 0).all()


def test_errors_fall_with_the_number_of_features() -> None:
    query, key, value = gaussian(60, 16, 0.5)
    for causal in (True, False):
        unbiased = [name for name in SOFTMAX_TYPES if not name.endswith("regularized")]
        table = matrix_errors(
            query, key, value, causal=causal, feature_types=unbiased, num_features=[16, 4096], num_draws=3
        )
        wide = table.pivot_table(index="feature_type", columns="num_features", values="matrix_error")
        assert (wide[4096] < 0.35 * wide[16]).all()


def test_the_relu_kernel_is_the_mean_over_projections() -> None:
    query, key, _ = (tensor.double() for tensor in gaussian(20, 8, 1.0))
    features = ReLUFeatures(8, 8192, "iid").double()
    for seed in range(3):
        features.redraw(torch.Generator().manual_seed(seed))
        found = linear_attention_matrix(query, key, features, causal=True)
        expected = relu_kernel_matrix(query, key, num_features=8192, epsilon=features.epsilon, causal=True)
        assert (found - expected).norm() / expected.norm() < 0.02


def by_type(scale: float, types: list[str], num_draws: int) -> pd.DataFrame:
    table = matrix_errors(
        *gaussian(512, 16, scale), causal=False, feature_types=types, num_features=[64, 256, 512], num_draws=num_draws
    )
    return table.pivot_table(index="num_features", columns="feature_type", values="output_error")


@pytest.mark.slow
def test_the_order_of_the_papers_at_norms_where_estimates_are_good() -> None:
    error = by_type(0.35, ["positive-orthogonal", "positive-iid", "positive-simplex", "optimal-orthogonal"], 100)
    assert (error["positive-orthogonal"] < error["positive-iid"]).all()
    assert (error["positive-simplex"] < error["positive-orthogonal"]).all()
    assert (error["optimal-orthogonal"] < error["positive-orthogonal"]).all()


@pytest.mark.slow
def test_the_order_of_the_papers_at_larger_norms() -> None:
    """Small norms favour trigonometric features; from here on they drown, and optimal ones gain."""
    types = ["positive-orthogonal", "optimal-orthogonal", "trigonometric-orthogonal", "trigonometric-iid"]
    error = by_type(0.85, types, 20)
    for trigonometric in ("trigonometric-orthogonal", "trigonometric-iid"):
        assert (error["positive-orthogonal"] < 0.5 * error[trigonometric]).all()
    assert (error["optimal-orthogonal"] < 0.9 * error["positive-orthogonal"]).all()


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigError, match="'magic' is no feature type; known ones: positive-orthogonal, positive-iid"):
        kernel_error(fresh_model(), PROTEINS, feature_types=["magic"])
    with pytest.raises(ConfigError, match="layer 1 has lsh attention, whose queries and keys estimate no kernel"):
        kernel_error(fresh_model(attention="lsh"), PROTEINS)
    with pytest.raises(InputError, match="no protein has 60 tokens or more"):
        kernel_error(fresh_model(), PROTEINS, lengths=[60])
    with pytest.raises(InputError, match="sequence P0 has 63 residues; this model reads 62"):
        kernel_error(fresh_model(), records("A" * 63))
    assert len(FEATURE_TYPES) == 12
