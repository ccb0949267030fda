"""The learning-rate schedule: linear rise, plateau, linear fall."""

from collections.abc import Iterable
from typing import Any

from protein_lm.config import TrainingConfig


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Learning rate of a step (0 is the first) as a fraction of the peak.

    It rises over `warmup_steps`, and falls to `final_fraction` over the last `decay_fraction` of the run.
    """
    rise = min(1.0, (step + 1) / (config.warmup_steps + 1))
    decay_steps = round(config.decay_fraction * config.num_steps)
    if decay_steps == 0:
        return rise
    remaining = min(1.0, (config.num_steps - step) / decay_steps)
    return min(rise, config.final_fraction + (1.0 - config.final_fraction) * remaining)


def set_learning_rate(optimizers: Iterable[Any], step: int, config: TrainingConfig) -> None:
    """Give all optimizers the learning rate of a step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config)
