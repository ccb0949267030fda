"""Sampling of residues from log-probabilities: penalty for repetition, temperature, top-k and top-p, in this order."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from protein_lm import alphabet
from protein_lm.errors import ConfigError, NumericalError, quoted

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of sampling.

    Raises:
        ConfigError: a value without meaning.
    """

    temperature: float = 1.0
    """Log-probabilities are divided by it; 0 takes the most probable residue."""
    top_k: int = 0
    """Number of most probable residues to draw from; 0: all."""
    top_p: float = 1.0
    """Probability that the residues to draw from, the most probable ones, reach together."""
    repetition_penalty: float = 1.0
    """Factor for log-probabilities of residues among the last `repetition_window`; over 1 makes them rarer.

    The form is that of Keskar et al. 2019 (CTRL, arXiv 1909.05858, section 4.1). It works on log-probabilities, which unlike
    logits have one sign, and over a window, since proteins soon have all 20 residues.
    """
    repetition_window: int = 8
    residues: str = alphabet.STANDARD_RESIDUES
    """Letters that may be drawn."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < np.inf:
            raise ConfigError(f"temperature {self.temperature:g} must be 0 (the most probable residue) or more")
        if self.top_k < 0:
            raise ConfigError(f"top-k {self.top_k} is no number of residues; choose 1 or more, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p {self.top_p:g} is no probability to reach; choose one over 0 and up to 1")
        if not 0 < self.repetition_penalty < np.inf:
            raise ConfigError(f"repetition penalty {self.repetition_penalty:g} must be over 0; 1 changes nothing")
        if self.repetition_window < 1:
            raise ConfigError(f"repetition window {self.repetition_window} must be 1 residue or more")
        unknown = sorted(set(self.residues) - set(alphabet.RESIDUES))
        if unknown or not self.residues:
            fault = (
                f"residues {quoted(self.residues)}: {unknown[0]!r} is no residue letter"
                if unknown
                else "no residues to draw"
            )
            raise ConfigError(f"{fault}; choose among {alphabet.RESIDUES}")

    def allowed(self) -> NDArray[np.bool_]:
        """(V,) True for the tokens of `residues`."""
        allowed = np.zeros(alphabet.VOCABULARY_SIZE, dtype=bool)
        allowed[alphabet.encode(self.residues)] = True
        return allowed

    def distribution(
        self,
        log_probabilities: Floats,
        allowed: NDArray[np.bool_],
        repeated: NDArray[np.bool_] | None = None,
    ) -> Floats:
        """Probabilities (R, V) to draw from.

        Args:
            log_probabilities: (R, V) of the model.
            allowed: (V,) residues that may be drawn.
            repeated: (R, V) residues with the penalty; None: none.
        """
        scores = np.where(allowed, log_probabilities, -np.inf)
        if repeated is not None:
            scores = np.where(repeated, scores * self.repetition_penalty, scores)
        if self.temperature == 0:
            return np.eye(scores.shape[1])[scores.argmax(1)]
        scores = (scores - scores.max(1, keepdims=True)) / self.temperature
        order = np.argsort(-scores, axis=1, kind="stable")  # residues from the most to the least probable
        ranked = np.exp(np.take_along_axis(scores, order, 1))
        if self.top_k:
            ranked[:, self.top_k :] = 0
        ranked /= ranked.sum(1, keepdims=True)
        if self.top_p < 1:
            ranked[ranked.cumsum(1) - ranked >= self.top_p] = 0
            ranked /= ranked.sum(1, keepdims=True)
        probabilities = np.empty_like(ranked)
        np.put_along_axis(probabilities, order, ranked, 1)
        return probabilities


def draw(probabilities: Floats, uniforms: Floats) -> NDArray[np.int64]:
    """Draw tokens (R,) from probabilities (R, V): where the cumulative sum passes each number (R,) from [0, 1)."""
    cumulative = probabilities.cumsum(1)
    wanted = uniforms * np.nextafter(cumulative[:, -1], 0)  # below the sum, whatever the rounding
    return (cumulative > wanted[:, None]).argmax(1)


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities (R, V) over the whole alphabet.

    Raises:
        NumericalError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise NumericalError(
            "the model gives no number: a logit is NaN or infinite; its weights come from a run that diverged: use an "
            "earlier checkpoint"
        )
    return special.log_softmax(logits, axis=1)


def stream_of(seed: int, number: int) -> np.random.Generator:
    """The random numbers of a sequence, which depend only on the seed and its number."""
    return np.random.default_rng((seed, number))
