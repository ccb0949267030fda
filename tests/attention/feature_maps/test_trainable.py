"""Trainable kernels: what is drawn, what is shared, what the penalty sees."""

import pytest
import torch
from torch.nn import functional

from protein_lm.attention.feature_maps.generalized import EluFeatures, ExponentialFeatures, GeneralizedFeatures
from protein_lm.attention.feature_maps.trainable import FeedForwardFeatures, HedgehogFeatures
from tests.conftest import fresh_model

ROWS = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(0))


def test_a_stack_is_its_formula() -> None:
    features = FeedForwardFeatures(3, 16, num_layers=2, gated=True)
    (first, second), (gate_1, gate_2) = features.weights, features.gates
    inner = (ROWS @ first) * torch.sigmoid(ROWS @ gate_1)
    expected = functional.softplus(inner @ second) * torch.sigmoid(inner @ gate_2)
    torch.testing.assert_close(features.query_features(ROWS), expected)
    torch.testing.assert_close(features.key_features(ROWS), expected)


def test_low_rank_gates_have_two_factors() -> None:
    features = FeedForwardFeatures(3, 16, num_layers=3, gated=True, low_rank_gates=True)
    assert [tuple(gate.shape) for gate in features.gates] == [(3, 16, 4), (3, 4, 16)] * 3
    plain = FeedForwardFeatures(3, 16, num_layers=3, gated=True)
    assert sum(p.numel() for p in features.parameters()) < sum(p.numel() for p in plain.parameters())


def test_weights_begin_orthogonal_and_follow_the_generator() -> None:
    features = FeedForwardFeatures(3, 16, gated=True)
    for weight in features.parameters():
        torch.testing.assert_close(weight @ weight.mT, torch.eye(16).expand(3, -1, -1), rtol=0, atol=1e-5)
    before = features.weights[0].clone()
    features.initialize(torch.Generator().manual_seed(1))
    after = features.weights[0].clone()
    features.initialize(torch.Generator().manual_seed(1))
    assert not torch.equal(before, after) and torch.equal(after, features.weights[0])


def test_hedgehog_begins_as_a_softmax_of_both_signs() -> None:
    found = HedgehogFeatures(3, 16).query_features(ROWS)
    torch.testing.assert_close(found, torch.softmax(torch.cat((ROWS, -ROWS), -1), -1))


def test_generalized_features_are_their_formula() -> None:
    for name, function in (("gelu", functional.gelu), ("cos", torch.cos), ("sigmoid", torch.sigmoid)):
        features = GeneralizedFeatures(16, 24, function=name)
        expected = function(ROWS * 16**-0.25 @ features.projection.T) / 24**0.5 + 1e-3
        torch.testing.assert_close(features.query_features(ROWS), expected)
        unprojected = GeneralizedFeatures(16, 24, "none", function=name)
        assert unprojected.num_features == 16
        torch.testing.assert_close(unprojected.query_features(ROWS), function(ROWS * 16**-0.25) / 4 + 1e-3)


def test_exponential_features_keep_the_kernel_up_to_a_factor_per_query() -> None:
    features = ExponentialFeatures(16, 24)
    textbook = torch.exp(ROWS * 16**-0.25 @ features.projection.T) / 24**0.5 + 1e-3
    ratio = features.query_features(ROWS) / textbook
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    torch.testing.assert_close(features.key_features(ROWS), textbook)


def test_elu_features() -> None:
    torch.testing.assert_close(EluFeatures(16).query_features(ROWS), functional.elu(ROWS) + 1)


@pytest.mark.parametrize("attention", ["softplus", "orthogonal-softplus", "glu-3", "oglu-2", "aoglu-3"])
def test_kernels_add_less_than_a_tenth_of_the_weights_in_the_shape_of_the_paper(attention) -> None:
    shape = {"width": 512, "num_heads": 8, "feedforward_width": 1024, "num_layers": 1}
    model = fresh_model(attention=attention, **shape)
    plain = fresh_model(attention="elu", **shape)
    assert model.num_parameters - plain.num_parameters == model.num_kernel_parameters
    assert 0 < model.num_kernel_parameters < 0.1 * plain.num_parameters


def test_the_penalty_sees_what_should_be_orthogonal() -> None:
    model = fresh_model(attention="oglu")
    assert model.orthogonality() < 1e-6
    weights = [block.attention.operation.feature_map.weights[0] for block in model.blocks]
    with torch.no_grad():
        for weight in weights:
            weight *= 2
    # ‖4 I - I‖² = 9 E for each of 2 layers × 2 heads, E = 16
    assert model.orthogonality().item() == pytest.approx(2 * 2 * 9 * 16, rel=1e-4)
    model.orthogonality().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights)
