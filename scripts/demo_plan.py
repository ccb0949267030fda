"""How much of the demo this machine does in minutes: all of it, unless its speed says otherwise."""

from typing import NamedTuple

NUM_STEPS, NUM_VALIDATIONS, TOKENS_PER_STEP = 610, 5, 3_860
"""Of scripts/recipes/tiny.yaml on the bundled sample; a test says so."""
EVALUATED, COMPARED = 1_247, 800
"""Sequences of the larger split that is evaluated, and those that similarity reads."""
LIMIT_SECONDS = 12 * 60
"""Of the whole demo, set-up included."""
STARTS_SECONDS = 90
"""Of what does not shrink with the plan: programs that start, figures that are drawn."""
OTHERS = 0.3
"""Time of everything behind training, in times of a whole training."""
FEWEST_STEPS, FEWEST_SEQUENCES = 20, 20


class Plan(NamedTuple):
    """What is done of each part."""

    num_steps: int
    evaluated: int | None
    """Sequences of each split; None: all."""
    compared: int | None
    """Sequences that similarity reads; None: as many as without the option."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self.num_steps == NUM_STEPS

    def train_options(self) -> list[str]:
        """Of `protein-lm train`."""
        if self.is_whole:
            return []
        changes = {
            "num_steps": self.num_steps,
            "warmup_steps": min(10, self.num_steps // 4),
            "validate_every": -(-self.num_steps // NUM_VALIDATIONS),
            "checkpoint_every": -(-self.num_steps // 2),
        }
        return [word for name, value in changes.items() for word in ("--set", f"training.{name}={value}")]

    def describe(self, tokens_per_second: float) -> str:
        """A line for the user."""
        speed = f"this machine trains at about {tokens_per_second:,.0f} tokens/s"
        if self.is_whole:
            return f"{speed}: the whole demo"
        return (
            f"{speed}: to end within {LIMIT_SECONDS // 60} minutes, the demo takes {self.num_steps} of {NUM_STEPS} steps, "
            f"evaluates {self.evaluated} proteins of each split and compares amino acids in {self.compared}; expect a worse "
            "model than the README's"
        )


def plan(tokens_per_second: float, seconds_gone: float) -> Plan:
    """What fits, if training has this speed and so much of the time is over.

    >>> plan(20_000, 60).is_whole, plan(8_000, 60).is_whole
    (True, True)
    >>> plan(1_000, 60)
    Plan(num_steps=113, evaluated=232, compared=148)
    """
    whole = NUM_STEPS * TOKENS_PER_STEP / tokens_per_second * (1 + OTHERS)
    share = (LIMIT_SECONDS - seconds_gone - STARTS_SECONDS) / whole
    if share >= 1:
        return Plan(NUM_STEPS, None, None)
    share = max(share, 0.0)
    return Plan(
        max(FEWEST_STEPS, int(NUM_STEPS * share)),
        max(FEWEST_SEQUENCES, int(EVALUATED * share)),
        max(FEWEST_SEQUENCES, int(COMPARED * share)),
    )
