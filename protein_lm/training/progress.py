"""How far a run has come, and the sums over the steps since the last row of its metrics."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch

from protein_lm.batches.plan import PlanPosition

try:
    import resource
except ImportError:  # Windows
    resource = None


@dataclass
class Progress:
    """The counts of a run; every checkpoint holds them."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    """Epoch of the next batch."""
    sequence: int = 0
    """Position in the epoch's order where the next batch begins."""
    part: int = 0
    """`PlanPosition.part` of the next batch."""
    num_tokens: int = 0
    """Tokens seen, special tokens included."""
    seconds: float = 0.0
    """Time of training, validation and checkpoints included."""
    best_loss: float = math.inf
    """Lowest validation loss so far, in nats; for labels that are numbers, in variances."""
    num_skipped_steps: int = 0
    """Steps that were skipped because their loss or gradient was not finite."""
    num_skipped_in_a_row: int = 0
    """Skipped steps since the last one that was taken."""
    steps_since_row: int = 0
    """Steps taken since the last row of training metrics. The four sums below are over these steps."""
    loss_since_row: float = 0.0
    """Losses of the targets, in nats."""
    correct_since_row: float = 0.0
    """Targets that were predicted right."""
    predicted_since_row: float = 0.0
    """Targets."""
    norms_since_row: float = 0.0
    """Norms of the gradients before they were clipped."""

    @classmethod
    def of(cls, state: Any) -> "Progress":
        """The progress in a training state.

        Raises:
            ValueError: it has none, or a damaged one.
        """
        saved = state.get("progress") if isinstance(state, dict) else None
        names = {field.name for field in fields(cls)}
        if not isinstance(saved, dict) or not saved.keys() <= names or not isinstance(saved.get("step"), int):
            raise ValueError("its progress is none")
        if not all(isinstance(value, int | float) and value >= 0 for value in saved.values()):
            raise ValueError("its progress has impossible values")
        return cls(**saved)

    @property
    def position(self) -> PlanPosition:
        """Where the next batch begins."""
        return PlanPosition(self.epoch, self.sequence, self.part)

    @position.setter
    def position(self, position: PlanPosition) -> None:
        self.epoch, self.sequence, self.part = position.epoch, position.sequence, position.part

    def count(self, *, loss: float, correct: float, predicted: float, tokens: int, norm: float) -> None:
        """Count a step by its sums over all processes, and as skipped if a number is not finite."""
        self.num_tokens += tokens
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.num_skipped_steps += 1
            self.num_skipped_in_a_row += 1
            return
        self.num_skipped_in_a_row = 0
        self.steps_since_row += 1
        self.loss_since_row += loss
        self.correct_since_row += correct
        self.predicted_since_row += predicted
        self.norms_since_row += norm

    def means(self) -> tuple[float, float, float] | None:
        """Loss, accuracy and gradient norm over the steps since the last row; None if none was taken."""
        if not self.steps_since_row:
            return None
        predicted, norm = self.predicted_since_row, self.norms_since_row / self.steps_since_row
        return self.loss_since_row / predicted, self.correct_since_row / predicted, norm

    def begin_row(self) -> None:
        """Forget the sums of the row that was written."""
        self.steps_since_row = 0
        self.loss_since_row = self.correct_since_row = self.predicted_since_row = self.norms_since_row = 0.0


class Speed:
    """Measures tokens per second from its creation on."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._start = time.perf_counter()

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / (time.perf_counter() - self._start)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within, time does not count."""
        before = time.perf_counter()
        yield
        self._start += time.perf_counter() - before


def perplexity(loss_nats: float) -> float:
    """Exponential of a loss, infinite where floats end."""
    return math.exp(loss_nats) if loss_nats < 700 else math.inf


def peak_memory_bytes(device: torch.device) -> int | None:
    """Largest memory of this process so far, on the GPU or else on the machine; None where it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
