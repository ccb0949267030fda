"""The learning-rate schedule."""

import pytest

from protein_lm.training.schedule import learning_rate_factor
from tests.conftest import small_recipe


def test_schedule_by_hand() -> None:
    config = small_recipe(num_steps=100, warmup_steps=4, decay_fraction=0.5, final_fraction=0.1).training
    factors = [learning_rate_factor(step, config) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:51] == pytest.approx([1.0] * 46)
    assert factors[75] == pytest.approx(0.1 + 0.9 * 0.5)
    assert factors[99] == pytest.approx(0.1 + 0.9 * 0.02)
    constant = small_recipe(num_steps=100, decay_fraction=0.0).training
    assert learning_rate_factor(99, constant) == 1.0
