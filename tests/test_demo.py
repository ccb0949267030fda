"""The demo's plan: all of it where it takes minutes, less on a slow machine."""

import sys
from pathlib import Path

import pytest

from protein_lm.config import load_recipe

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "scripts/recipes/tiny.yaml"
sys.path.insert(0, str(ROOT / "scripts"))

import demo_plan  # noqa: E402
from demo_plan import plan  # noqa: E402


def seconds(chosen: demo_plan.Plan, tokens_per_second: float) -> float:
    """Of training and what follows it, by the plan's own figures."""
    training = chosen.num_steps * demo_plan.TOKENS_PER_STEP / tokens_per_second
    others = (chosen.compared or demo_plan.COMPARED) / demo_plan.COMPARED
    whole = demo_plan.NUM_STEPS * demo_plan.TOKENS_PER_STEP / tokens_per_second
    return training + demo_plan.OTHERS * whole * others + demo_plan.STARTS_SECONDS


@pytest.mark.parametrize("speed", [300, 1_000, 4_000, 14_000, 100_000])
def test_it_ends_within_twelve_minutes(speed) -> None:
    chosen = plan(speed, 60)
    assert 60 + seconds(chosen, speed) <= 12 * 60 + 1
    assert chosen.is_whole == (speed >= 14_000)


def test_a_slow_machine_does_less_of_everything_and_says_so() -> None:
    chosen = plan(500, 60)
    assert 20 < chosen.num_steps < 61 and 20 <= chosen.evaluated < 125 and 20 <= chosen.compared < 81
    assert f"{chosen.num_steps} of 610 steps" in chosen.describe(500) and "a worse model" in chosen.describe(500)
    words = chosen.train_options()
    recipe = load_recipe(RECIPE, words[1::2])
    assert words[::2] == ["--set"] * 4 and recipe.training.num_steps == chosen.num_steps
    assert recipe.training.validate_every <= recipe.training.num_steps
    assert plan(1, 700).num_steps == demo_plan.FEWEST_STEPS
    load_recipe(RECIPE, plan(1, 700).train_options()[1::2])


def test_a_fast_machine_runs_the_recipe_as_it_is() -> None:
    training = load_recipe(RECIPE, []).training
    assert plan(25_000, 60).train_options() == [] and training.num_steps == demo_plan.NUM_STEPS
    assert training.validate_every * demo_plan.NUM_VALIDATIONS == training.num_steps


def test_tokens_of_a_step_fill_a_batch_of_the_recipe() -> None:
    assert 0.9 < demo_plan.TOKENS_PER_STEP / load_recipe(RECIPE, []).data.tokens_per_batch < 1
