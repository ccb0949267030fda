"""The schedule and who is decayed."""

import pytest

from protein_lm.training.optimizer import build_optimizers, learning_rate_factor
from tests.conftest import fresh_model, small_recipe


def test_schedule_by_hand() -> None:
    config = small_recipe(num_steps=100, warmup_steps=4, decay_fraction=0.5, final_fraction=0.1).training
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:51] == pytest.approx([1.0] * 46)
    assert factors[75] == pytest.approx(0.1 + 0.9 * 0.5)
    assert factors[99] == pytest.approx(0.1 + 0.9 * 0.02)
    constant = small_recipe(num_steps=100, decay_fraction=0.0).training
    assert learning_rate_factor(99, constant) == 1.0


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
