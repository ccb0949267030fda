"""Weights move between kinds of attention, and random features stay unbiased estimates through redraws."""

import pytest
import torch

from protein_lm.analysis.attention.maps import recorded_calls
from protein_lm.attention.reference import exact_attention_matrix
from protein_lm.errors import ConfigError
from protein_lm.model.conversion import with_attention
from tests.conftest import fresh_model
from tests.model.test_language_model import random_tokens


def test_all_weights_move_and_the_original_stays() -> None:
    model = fresh_model(attention="exact")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    converted = with_attention(model, attention=[{"kind": "performer-softmax", "num_features": 8}, "oglu"])
    assert converted.config.attention_name == "performer-softmax, oglu"
    for name, weight in before.items():
        assert torch.equal(converted.state_dict()[name], weight) and torch.equal(model.state_dict()[name], weight)
    back = with_attention(converted, attention="exact")
    tokens = random_tokens(2, 30)
    assert torch.equal(back(tokens), model(tokens))


def test_the_seed_decides_the_draw() -> None:
    model = fresh_model(attention="exact")
    draws = [
        with_attention(model, attention="performer-relu", seed=seed).operations()[0].feature_map.projection
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_over_redraws_the_first_layer_is_that_of_the_exact_model() -> None:
    """The mean of numerator and normalizer over draws are those of exact attention: their ratio is its output."""
    model = fresh_model(attention="exact", objective="masked")
    converted = with_attention(model, attention={"kind": "performer-softmax", "num_features": 16})
    tokens = random_tokens(1, 12)
    with torch.no_grad():
        with recorded_calls(model) as exact_calls:
            model(tokens)
        # Halved: at the norms of an untrained model the variance is too large for a mean over a test's draws.
        query, key = exact_calls[0].query.double() / 2, exact_calls[0].key.double() / 2
        feature_map = converted.operations()[0].feature_map
        kernels = []
        for seed in range(2000):
            converted.redraw_features(torch.Generator().manual_seed(seed))
            phi_q, phi_k = feature_map.query_features(query), feature_map.key_features(key)
            w = feature_map.projection.double()
            stabilizer = (query * 16**-0.25 @ w.T + w.square().sum(-1) / 2).amax(-1, keepdim=True)
            kernels.append((phi_q * (stabilizer - feature_map.headroom).exp()) @ phi_k.mT)
        mean = torch.stack(kernels).mean(0)
        found = mean / mean.sum(-1, keepdim=True) @ exact_calls[0].value.double()
    expected = exact_attention_matrix(query, key, causal=False) @ exact_calls[0].value.double()
    assert (found - expected).norm() / expected.norm() < 0.02


def test_kinds_with_other_projections_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"input_projection.weight of shape \(96, 32\) has no counterpart in a model with lsh"
    ):
        with_attention(fresh_model(), attention="lsh")
    with pytest.raises(ConfigError, match="'magic' is no kind of attention; known ones: exact, performer-relu"):
        with_attention(fresh_model(), attention="magic")


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal", "learned", "axial", "none"])
@pytest.mark.parametrize("attention", ["performer-relu", "local", "lsh"])
def test_positions_with_any_kind(positions, attention) -> None:
    """Decoding goes on where the positions stand, packed sequences begin anew, and order counts unless there are none."""
    model = fresh_model(attention=attention, positions=positions, axial_shape=(7, 10))
    tokens = random_tokens(1, 40)
    with torch.no_grad():
        expected = model(tokens)
        state = model.new_state()
        parts = [model.extend(tokens[:, :25], state), model.extend(tokens[:, 25:], state)]
        torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-5, atol=1e-5)
        swapped = tokens.clone()
        swapped[:, [3, 11]] = tokens[:, [11, 3]]
    if attention == "performer-relu":
        first_layer_only = fresh_model(attention=attention, positions=positions, axial_shape=(7, 10), num_layers=1)
        with torch.no_grad():
            moved = (first_layer_only(swapped)[:, -1] - first_layer_only(tokens)[:, -1]).abs().max()
        assert (moved < 1e-6) == (positions == "none")


def test_a_mixture_of_kinds_keeps_the_promises_of_each() -> None:
    model = fresh_model(attention=["local", "performer-relu"], window=8)
    assert [type(operation).__name__ for operation in model.operations()] == ["SparseOperation", "LinearOperation"]
    tokens = random_tokens(1, 50)
    changed = tokens.clone()
    changed[0, 30:] = 5
    with torch.no_grad():
        assert torch.equal(model(tokens)[:, :30], model(changed)[:, :30])
