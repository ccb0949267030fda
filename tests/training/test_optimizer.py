"""Which weights are decayed; Muon next to that of torch."""

import pytest
import torch
from torch import nn

from protein_lm.training.muon import Muon, orthogonal
from protein_lm.training.optimizer import build_optimizers
from tests.conftest import fresh_model, small_recipe


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_weight_is_trained_once_and_only_matrices_decay(name) -> None:
    model = fresh_model()
    optimizers = build_optimizers(model, small_recipe(optimizer=name).training)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    owned = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in owned} == {id(p) for p in model.parameters()} and len(owned) == len(list(model.parameters()))
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    expected = {id(p) for n, p in model.named_parameters() if p.ndim == 2 and n != "embedding.weight"}
    assert decayed == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_is_the_one_of_torch_where_that_computes_in_the_same_type(dtype) -> None:
    """Four steps over matrices of three shapes; torch's always computes in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 8), (8, 24), (24, 8), (16, 16)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    ours, theirs = ([nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    optimizers = [
        Muon(ours, learning_rate=0.02, weight_decay=0.1, dtype=dtype),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        for matrices, optimizer in zip((ours, theirs), optimizers, strict=True):
            for matrix, gradient in zip(matrices, gradients, strict=True):
                matrix.grad = gradient.clone()
            optimizer.step()
    for mine, other, before in zip(ours, theirs, start, strict=True):
        # Of the way gone: three digits of bfloat16, which five iterations spread
        assert (mine - other).norm() < 0.03 * (mine - before).norm()


def test_products_in_float32_make_matrices_orthogonal_whatever_their_shape() -> None:
    tall = torch.randn(3, 40, 12, generator=torch.Generator().manual_seed(0))
    wide = orthogonal(tall.mT, torch.float32)
    torch.testing.assert_close(wide.mT, orthogonal(tall, torch.float32))
    values = torch.linalg.svdvals(wide)
    assert values.min() > 0.6 and values.max() < 1.3
    exact = orthogonal(tall.double(), torch.float64).float()
    assert (orthogonal(tall, torch.float32) - exact).abs().max() < 1e-5
    torch.testing.assert_close(orthogonal(tall[1:2], torch.float32), orthogonal(tall, torch.float32)[1:2])
