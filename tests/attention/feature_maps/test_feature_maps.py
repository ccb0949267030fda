"""The statistics and the numerics of the random features."""

import pytest
import torch

from protein_lm.attention.feature_maps.performer import ReLUFeatures, SoftmaxFeatures
from protein_lm.attention.feature_maps.projections import PROJECTIONS, orthogonal_projection


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rows_are_orthogonal_within_blocks_and_only_there() -> None:
    rows = orthogonal_projection(40, 16, generator()).double()
    directions = rows / rows.norm(dim=1, keepdim=True)
    products = directions @ directions.T
    for block in (slice(0, 16), slice(16, 32), slice(32, 40)):
        inside = products[block, block]
        torch.testing.assert_close(inside, torch.eye(inside.shape[0], dtype=torch.float64), rtol=0, atol=1e-6)
    assert products[:16, 16:32].abs().max() > 0.1


def test_each_row_is_a_standard_normal_vector() -> None:
    rows = torch.stack([orthogonal_projection(16, 16, generator(seed)) for seed in range(400)]).reshape(-1, 16)
    assert rows.mean(0).abs().max() < 5 / len(rows) ** 0.5
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(16), rtol=0, atol=0.08)
    assert abs(rows.square().sum(1).mean() - 16) < 0.5
    # The fourth moment tells a chi(16) norm from a fixed one of √16: E|w|⁴ = E² + 2E = 288, not 256.
    assert abs(rows.square().sum(1).square().mean() - 288) < 12


@pytest.mark.parametrize("projection", ["orthogonal", "iid", "hyperbolic"])
def test_softmax_features_estimate_the_exponential_kernel_without_bias(projection) -> None:
    torch.manual_seed(0)
    query, key = 0.7 * torch.randn(1, 1, 6, 8, dtype=torch.float64), 0.7 * torch.randn(1, 1, 6, 8, dtype=torch.float64)
    estimates = []
    for seed in range(3000):
        features = SoftmaxFeatures(8, 16, projection)
        features.redraw(generator(seed))
        # Undo the factor per query (maximum and exp(-|q|²/2)) to get at the kernel estimate itself.
        x = query * 8**-0.25
        rows = features.projection.double()
        exponent = x @ rows.T + rows.square().sum(-1) / 2
        scale = torch.exp(exponent.amax(-1, keepdim=True) - x.square().sum(-1, keepdim=True) / 2 - features.headroom)
        estimates.append((features.query_features(query) * scale @ features.key_features(key).mT)[0, 0] / 16)
    stacked = torch.stack(estimates)
    truth = torch.exp(query @ key.mT / 8**0.5)[0, 0]
    standard_error = stacked.std(0) / len(stacked) ** 0.5
    assert ((stacked.mean(0) - truth).abs() < 4.5 * standard_error).all()


def kernel_estimates(projection: str, query: torch.Tensor, key: torch.Tensor, num_draws: int) -> torch.Tensor:
    """Textbook estimates (draws, N) of exp(q·k) for rows (N, 16), 16 features each."""
    estimates = []
    for seed in range(num_draws):
        w = PROJECTIONS[projection](16, 16, generator(seed))
        phi_q, phi_k = (torch.exp(x @ w.T - x.square().sum(-1, keepdim=True) / 2) for x in (query, key))
        estimates.append((phi_q * phi_k).mean(-1))
    return torch.stack(estimates)


def test_variance_falls_from_independent_to_orthogonal_to_hyperbolic_and_regularized() -> None:
    torch.manual_seed(0)
    # Small norms: at large ones a few draws decide the mean, and no test of this length could tell.
    query, key = 0.1 * torch.randn(64, 16), 0.1 * torch.randn(64, 16)
    truth = torch.exp((query * key).sum(-1))
    error = {
        name: float((kernel_estimates(name, query, key, 1000) / truth - 1).square().mean()) for name in PROJECTIONS
    }
    assert error["orthogonal"] < 0.95 * error["iid"]
    assert error["hyperbolic"] < 0.5 * error["orthogonal"]
    assert error["regularized"] < 0.95 * error["orthogonal"]


def test_regularized_features_stay_below_the_kernel_and_near_it() -> None:
    """SMREG <= SM (Choromanski et al. 2021, theorem 1), with a ratio that tends to 1."""
    torch.manual_seed(0)
    query, key = 0.4 * torch.randn(64, 16), 0.4 * torch.randn(64, 16)
    truth = torch.exp((query * key).sum(-1))
    ratio = kernel_estimates("regularized", query, key, 4000).mean(0) / truth
    assert ratio.max() < 1.05 and 0.7 < ratio.mean() < 1.0


def test_hyperbolic_features_come_in_pairs() -> None:
    rows = PROJECTIONS["hyperbolic"](12, 8, generator())
    assert torch.equal(rows[:6], -rows[6:])
    with pytest.raises(ValueError, match="hyperbolic features come in pairs: 7 is odd"):
        PROJECTIONS["hyperbolic"](7, 8, generator())


@pytest.mark.parametrize("projection", sorted(PROJECTIONS.keys() - {"none"}))
@pytest.mark.parametrize("width", [64, 128])
def test_softmax_features_are_usable_up_to_norm_30(width, projection) -> None:
    torch.manual_seed(1)
    features = SoftmaxFeatures(width, 256, projection)
    directions = torch.nn.functional.normalize(torch.randn(1, 1, 64, width), dim=-1)
    query, key = 30 * directions, 30 * torch.cat([directions[:, :, 32:], -directions[:, :, :32]], dim=2)
    kernel = features.query_features(query) @ features.key_features(key).mT
    assert kernel.isfinite().all()
    assert (kernel.sum(-1) > 0).all()


def test_redraw_changes_the_buffer_in_place_and_repeats_with_the_generator() -> None:
    features = ReLUFeatures(8, 12)
    first, address = features.projection.clone(), features.projection.data_ptr()
    features.redraw(generator(5))
    second = features.projection.clone()
    assert not torch.equal(first, second) and features.projection.data_ptr() == address
    features.redraw(generator(5))
    assert torch.equal(features.projection, second)
    assert "projection" in features.state_dict()


def test_relu_features_by_hand() -> None:
    features = ReLUFeatures(4, 2)
    features.projection.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
    query = torch.tensor([3.0, 9, 9, 9]).view(1, 1, 1, 4)
    expected = torch.tensor([3 / 4**0.25 / 2**0.5 + 2**-10, 2**-10]).view(1, 1, 1, 2)
    torch.testing.assert_close(features.query_features(query), expected)


@pytest.mark.parametrize(("head_width", "num_features"), [(8, 12), (32, 64), (64, 256)])
def test_relu_features_of_bfloat16_rows_are_those_of_float32_rounded_once(head_width, num_features) -> None:
    torch.manual_seed(0)
    features = ReLUFeatures(head_width, num_features)
    rows = torch.randn(1, 4, 500, head_width).to(torch.bfloat16)
    result = features.query_features(rows)
    expected = features.query_features(rows.float()).to(torch.bfloat16)
    assert result.dtype == torch.bfloat16
    # But for sums that end within a float32 rounding of the middle between two numbers of bfloat16.
    assert (result != expected).float().mean() < 1e-3
    torch.testing.assert_close(result, expected, rtol=2**-7, atol=0)


def test_no_features_is_refused() -> None:
    with pytest.raises(ValueError, match="head width 8 and number of features 0 must both be at least 1"):
        ReLUFeatures(8, 0)


@pytest.mark.parametrize("map_class", [ReLUFeatures, SoftmaxFeatures])
@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("role", ["query", "key"])
def test_gradients_in_closed_form_equal_those_of_autograd(map_class, scale, role) -> None:
    torch.manual_seed(0)
    features = map_class(8, 12).double()
    rows = (scale * torch.randn(2, 3, 20, 8, dtype=torch.float64)).requires_grad_()
    forward = features.query_features if role == "query" else features.key_features
    backward = features.query_gradient if role == "query" else features.key_gradient
    output = forward(rows)
    gradient = torch.randn_like(output)
    (expected,) = torch.autograd.grad(output, rows, gradient)
    with torch.no_grad():
        result = backward(rows, output, gradient.clone())
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
