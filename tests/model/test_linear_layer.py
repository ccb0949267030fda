"""Linear layers by the compiled kernels, against torch's and against float64."""

import pytest
import torch
from torch.nn import functional

from protein_lm.config import ModelConfig
from protein_lm.model.language_model import ProteinLM
from protein_lm.model.linear_layer import Linear, _backward, _forward, takes
from protein_lm.native import library
from tests.attention.backends.test_native_linear import has_compiler

pytestmark = pytest.mark.skipif(not has_compiler, reason="no C++ compiler")


def run(layer: Linear, rows: torch.Tensor, weight: torch.Tensor, activates: bool) -> list[torch.Tensor]:
    """Output and gradients of input, weight and bias."""
    rows = rows.clone().requires_grad_()
    output = layer(rows, activates=activates)
    trained = list(layer.parameters())
    return [output.detach(), *torch.autograd.grad(output, [rows, *trained], weight)]


def assert_as_exact_as_torch(layer: Linear, rows: torch.Tensor, activates: bool) -> None:
    weight = torch.randn(*rows.shape[:-1], layer.out_features, generator=torch.Generator().manual_seed(1))
    ours = run(layer, rows, weight, activates)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.VARIABLE, library.OFF)
        theirs = run(layer, rows, weight, activates)
        exact = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None).double()
        exact.load_state_dict(layer.state_dict())
        truths = run(exact, rows.double(), weight.double(), activates)
    for found, expected, truth in zip(ours, theirs, truths, strict=True):
        assert found.shape == expected.shape
        assert (found - truth).norm() <= 1.5 * (expected - truth).norm() + 1e-6 * truth.norm()


@pytest.mark.parametrize("activates", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 32), (128, 384), (512, 128), (96, 64)])
@pytest.mark.parametrize("tokens", [64, 127, 500])
def test_equals_torch_and_float64(level, tokens, inputs, outputs, activates) -> None:
    torch.manual_seed(0)
    layer, rows = Linear(inputs, outputs), 2 * torch.randn(tokens, inputs)
    assert takes(rows, layer.weight) == (level != "plain")
    assert_as_exact_as_torch(layer, rows, activates)


def test_any_axes_strides_and_no_bias(best_level) -> None:
    torch.manual_seed(0)
    assert_as_exact_as_torch(Linear(64, 32, bias=False), torch.randn(2, 3, 40, 64), True)
    assert_as_exact_as_torch(Linear(64, 32), torch.randn(300, 96)[:, :64], False)
    assert_as_exact_as_torch(Linear(64, 32), torch.randn(64, 300).T, True)


def test_gradients_only_of_what_is_trained(best_level) -> None:
    layer, rows = Linear(64, 32), torch.randn(100, 64)
    layer.weight.requires_grad_(False)
    layer(rows).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None
    torch.testing.assert_close(layer.bias.grad, torch.full((32,), 100.0))
    layer.bias.requires_grad_(False)
    assert not layer(rows).requires_grad


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(best_level, threads) -> None:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert_as_exact_as_torch(Linear(64, 96), torch.randn(700, 64), True)
    torch.set_num_threads(before)


@pytest.mark.parametrize("activates", [False, True])
def test_what_is_not_a_number_stays_so(level, activates) -> None:
    rows = torch.randn(100, 64)
    rows[40, 3] = torch.nan
    is_lost = Linear(64, 32)(rows, activates=activates).isnan()
    assert is_lost[40].all() and is_lost.sum() == 32


def test_what_the_kernels_do_not_take(best_level) -> None:
    layer, rows = Linear(64, 32), torch.randn(100, 64)
    assert takes(rows, layer.weight)
    assert not takes(rows[:63], layer.weight)
    assert not takes(rows.double(), layer.weight.double())
    assert not takes(rows[:, :60], layer.weight[:, :60].contiguous())
    assert not takes(rows, torch.randn(64, 32).T)
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes(rows, layer.weight)
        assert layer(rows, activates=True).dtype == torch.bfloat16


def test_a_model_trains_as_with_torch(level, monkeypatch) -> None:
    """Rotary positions and the activation included."""
    config = ModelConfig.model_validate(
        {
            "objective": "causal",
            "attention": {"kind": "performer-relu", "num_features": 32},
            "num_layers": 2,
            "width": 64,
            "num_heads": 2,
            "feedforward_width": 128,
        }
    )
    model = ProteinLM(config)
    model.initialize(torch.Generator().manual_seed(0))
    tokens = torch.randint(4, 24, (2, 100), generator=torch.Generator().manual_seed(1))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        logits = model(tokens)
        functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        return [logits.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)]

    ours = gradients()
    monkeypatch.setenv(library.VARIABLE, library.OFF)
    for found, expected in zip(ours, gradients(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_operators_keep_the_rules_of_torch(best_level) -> None:
    rows, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((70, 64), (32, 64), (32,)))
    torch.library.opcheck(_forward, (rows, weight, bias, True))
    gradient, rows, weight = torch.randn(70, 32), rows.detach(), weight.detach()
    torch.library.opcheck(_backward, (gradient, rows, weight, True, True, False, True))
