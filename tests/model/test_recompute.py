"""What is made again for the backward pass: the same gradients to the last bit, and less memory."""

import pytest
import torch
from torch.nn import functional

from protein_lm.model import recompute
from protein_lm.model.recompute import _Absent, nothing_recomputed, recomputed
from tests.conftest import fresh_model


def gradients(model, tokens, precision: torch.dtype | None, *, kept: bool) -> list[torch.Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
        if kept:
            with nothing_recomputed():
                logits = model(tokens)
        else:
            logits = model(tokens)
    functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [{}, {"convolution_taps": 4}, {"attention": "exact"}, {"attention": "lsh", "objective": "masked"}],
    ids=str,
)
def test_gradients_are_the_same(settings, precision) -> None:
    model = fresh_model(**({"objective": "causal", "attention": "performer-relu"} | settings)).train()
    tokens = torch.randint(4, 24, (2, 40), generator=torch.Generator().manual_seed(0))
    ours = gradients(model, tokens, precision, kept=False)
    assert all(map(torch.equal, ours, gradients(model, tokens, precision, kept=True)))
    model.gradient_checkpointing = True
    assert all(map(torch.equal, ours, gradients(model, tokens, precision, kept=False)))


def test_less_is_kept(monkeypatch) -> None:
    absent = []

    class Noted(_Absent):
        def __new__(cls, size, stride):
            absent.append(size.numel())
            return super().__new__(cls, size, stride)

    monkeypatch.setattr(recompute, "_Absent", Noted)
    model = fresh_model(objective="causal", attention="exact", width=64, feedforward_width=256, max_length=200).train()
    tokens = torch.randint(4, 24, (1, 200), generator=torch.Generator().manual_seed(0))
    for precision in (torch.bfloat16, None):
        absent.clear()
        gradients(model, tokens, precision, kept=False)
        assert absent == [200 * 64, 200 * 64, 200 * 256] * model.config.num_layers


def test_gradients_of_gradients() -> None:
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    inner = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def of(inner: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        activated = functional.gelu(inner)
        with recomputed(activated, lambda: functional.gelu(inner)):
            return functional.linear(activated, weight)

    assert torch.autograd.gradcheck(of, (inner, weight))
    assert torch.autograd.gradgradcheck(of, (inner, weight))
