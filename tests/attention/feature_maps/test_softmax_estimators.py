"""The features that estimate the softmax kernel: unbiased, and the better ones with less error."""

import pytest
import torch

from protein_lm.attention.feature_maps.optimal import OptimalFeatures, SaderfFeatures
from protein_lm.attention.feature_maps.performer import SoftmaxFeatures
from protein_lm.attention.feature_maps.projections import simplex_projection
from protein_lm.attention.reference import exact_attention_matrix, linear_attention_matrix

WIDTH = 8


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    query, key = scale * torch.randn(2, 1, 1, 6, WIDTH, dtype=torch.float64)
    return query, key


def estimates(features: SoftmaxFeatures, query: torch.Tensor, key: torch.Tensor, num_draws: int) -> torch.Tensor:
    """Kernel estimates (draws, 6, 6) up to one factor per query that does not depend on the draw's stabilizer."""
    results = []
    for seed in range(num_draws):
        features.redraw(generator(seed))
        stretch = features.stretch.double() if isinstance(features, OptimalFeatures) else torch.ones(())
        x = query * WIDTH**-0.25
        w = features.projection.double()
        largest = (stretch * x @ w.T + w.square().sum(-1) / 2).amax(-1, keepdim=True)
        constant = features.headroom
        # What each draw has left out: D of the feature squared, the largest exponent, and the headroom of the keys.
        scale = torch.exp(largest - x.square().sum(-1, keepdim=True) / 2 - constant) * stretch**WIDTH
        phi_q, phi_k = features.query_features(query), features.key_features(key)
        results.append((phi_q * scale @ phi_k.mT)[0, 0] / features.num_features)
    return torch.stack(results).detach()


@pytest.mark.parametrize("projection", ["orthogonal", "iid", "hyperbolic", "simplex"])
def test_optimal_features_are_unbiased(projection) -> None:
    query, key = rows(0.8)
    features = OptimalFeatures(WIDTH, 16, projection)
    features.calibrate(query, key)
    found = estimates(features, query, key, 3000)
    truth = torch.exp(query @ key.mT / WIDTH**0.5)[0, 0]
    standard_error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - truth).abs() < 4.5 * standard_error).all()


def test_optimal_features_vary_less() -> None:
    query, key = rows(1.5)
    plain, optimal = SoftmaxFeatures(WIDTH, 16), OptimalFeatures(WIDTH, 16)
    optimal.calibrate(query, key)
    truth = torch.exp(query @ key.mT / WIDTH**0.5)[0, 0]
    errors = [((estimates(f, query, key, 400) - truth) / truth).square().mean() for f in (plain, optimal)]
    assert errors[1] < 0.7 * errors[0]


@torch.no_grad()
def matrix_error(features: SoftmaxFeatures, query: torch.Tensor, key: torch.Tensor) -> float:
    truth = exact_attention_matrix(query, key, causal=False)
    errors = []
    for seed in range(100):
        features.redraw(generator(seed))
        errors.append((linear_attention_matrix(query, key, features, causal=False) - truth).norm() / truth.norm())
    return float(torch.stack(errors).mean())


def test_saderf_mends_unequal_scales() -> None:
    torch.manual_seed(3)
    query, key = torch.randn(2, 1, 1, 40, WIDTH)
    query[..., : WIDTH // 2] *= 4
    key[..., : WIDTH // 2] /= 4
    optimal, saderf = OptimalFeatures(WIDTH, 32), SaderfFeatures(WIDTH, 32)
    for features in (optimal, saderf):
        features.calibrate(query, key)
    assert matrix_error(saderf, query, key) < 0.8 * matrix_error(optimal, query, key)


def test_calibration_finds_the_formulas() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 3, 2, 50, WIDTH, dtype=torch.float64)
    features = SaderfFeatures(WIDTH, 8)
    features.calibrate(query, 2 * key)
    expected = ((2 * key).square().sum((0, 1, 2)) / query.square().sum((0, 1, 2))) ** 0.25
    torch.testing.assert_close(features.log_balance.exp().double(), expected, rtol=1e-5, atol=0)
    x = (query * expected).reshape(-1, WIDTH) * WIDTH**-0.25
    y = (2 * key / expected).reshape(-1, WIDTH) * WIDTH**-0.25
    spread = (x[:, None] + y[None]).square().sum(-1).mean() / WIDTH
    torch.testing.assert_close(features.log_spread.exp().double(), spread, rtol=1e-5, atol=0)


def test_simplex_rows_are_at_the_widest_angles() -> None:
    rows_ = simplex_projection(20, 8, generator(0)).double()
    directions = rows_ / rows_.norm(dim=1, keepdim=True)
    for block in (slice(0, 8), slice(8, 16), slice(16, 20)):
        cosines = directions[block] @ directions[block].T
        off_diagonal = cosines[~torch.eye(len(cosines), dtype=torch.bool)]
        torch.testing.assert_close(off_diagonal, torch.full_like(off_diagonal, -1 / 7), rtol=0, atol=1e-6)
    many = torch.cat([simplex_projection(8, 8, generator(seed)) for seed in range(800)])
    torch.testing.assert_close(many.T @ many / len(many), torch.eye(8), rtol=0, atol=0.08)
    with pytest.raises(ValueError, match="a simplex needs heads of width 2"):
        simplex_projection(4, 1, generator(0))
