"""What is special to the streamed linear operation."""

import pytest
import torch
from torch import nn

from protein_lm.attention.dispatch import linear_attention
from protein_lm.attention.feature_maps.performer import FeatureMap, ReLUFeatures
from protein_lm.attention.reference import linear_attention_matrix


class LearnedFeatures(FeatureMap):
    """Softplus(xW), a trained map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width
        self.weight = nn.Parameter(torch.randn(width, width, dtype=torch.float64))

    def query_features(self, query: torch.Tensor) -> torch.Tensor:
        return nn.functional.softplus(query @ self.weight)

    key_features = query_features


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_reach_a_learned_feature_map(causal) -> None:
    torch.manual_seed(0)
    feature_map = LearnedFeatures(6)
    query, key, value = (torch.randn(2, 2, 150, 6, dtype=torch.float64) for _ in range(3))
    fast = linear_attention(query, key, value, feature_map, causal=causal)
    slow = linear_attention_matrix(query, key, feature_map, causal=causal) @ value
    weight = torch.randn_like(fast)
    (fast_gradient,) = torch.autograd.grad((fast * weight).sum(), feature_map.weight)
    (slow_gradient,) = torch.autograd.grad((slow * weight).sum(), feature_map.weight)
    torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-9, atol=1e-9)


def test_gradients_against_finite_differences() -> None:
    torch.manual_seed(0)
    feature_map = LearnedFeatures(3)
    tensors = [torch.randn(1, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    for causal in (True, False):
        assert torch.autograd.gradcheck(
            lambda q, k, v, c=causal: linear_attention(q, k, v, feature_map, causal=c), tensors
        )


@pytest.mark.parametrize("causal", [True, False])
def test_values_may_have_another_width(causal) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 2, 90, 8), torch.randn(1, 2, 90, 8), torch.randn(1, 2, 90, 20)
    feature_map = ReLUFeatures(8, 16)
    output = linear_attention(query, key, value, feature_map, causal=causal)
    expected = linear_attention_matrix(query, key, feature_map, causal=causal) @ value
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_bfloat16_features_are_as_near_the_truth_as_float32_features(causal) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(1, 4, 700, 64, dtype=torch.bfloat16) for _ in range(3)]

    def results(dtype: torch.dtype, *, takes_bfloat16: bool) -> list[torch.Tensor]:
        feature_map = ReLUFeatures(64, 128).to(torch.float64 if dtype == torch.float64 else torch.float32)
        feature_map.takes_bfloat16 = takes_bfloat16
        tensors = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        output = linear_attention(*tensors, feature_map, causal=causal)
        return [output, *torch.autograd.grad(output.double().square().sum(), tensors)]

    truth = results(torch.float64, takes_bfloat16=False)
    with_float32 = results(torch.bfloat16, takes_bfloat16=False)
    for fast, slow, true in zip(results(torch.bfloat16, takes_bfloat16=True), with_float32, truth, strict=True):
        assert (fast.double() - true).norm() < 1.05 * (slow.double() - true).norm()


def test_query_without_any_visible_key_gives_zeros() -> None:
    query, key, value = (torch.randn(1, 1, 5, 4) for _ in range(3))
    valid_mask = torch.tensor([[False, False, True, True, True]])
    output = linear_attention(query, key, value, ReLUFeatures(4, 4), causal=True, valid_mask=valid_mask)
    assert (output[:, :, :2] == 0).all() and output.isfinite().all()


def test_float32_error_does_not_grow_with_length() -> None:
    """The backward pass starts each segment from a saved state, so nothing builds up by subtraction."""
    torch.manual_seed(0)
    feature_map = ReLUFeatures(16, 32)
    inputs = [torch.randn(1, 1, 8192, 16) for _ in range(3)]
    weight = torch.randn(1, 1, 8192, 16)

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        query, key, value = (tensor.to(dtype).requires_grad_() for tensor in inputs)
        output = linear_attention(query, key, value, feature_map, causal=True)
        return torch.autograd.grad((output * weight.to(dtype)).sum(), key)[0]

    exact, rough = gradient(torch.float64), gradient(torch.float32).double()
    for part in (slice(0, 512), slice(-512, None)):
        assert (rough[:, :, part] - exact[:, :, part]).norm() / exact[:, :, part].norm() < 1e-5


def test_unfit_shapes_are_refused() -> None:
    query = torch.randn(1, 2, 5, 4)
    with pytest.raises(ValueError, match=r"\(1, 2, 6, 4\).* do not fit"):
        linear_attention(query, torch.randn(1, 2, 6, 4), query, ReLUFeatures(4, 4), causal=True)
    with pytest.raises(ValueError, match=r"valid_mask is torch.bool \(1, 4\), expected boolean \(1, 5\)"):
        linear_attention(
            query, query, query, ReLUFeatures(4, 4), causal=True, valid_mask=torch.ones(1, 4, dtype=torch.bool)
        )
