"""Scores of proteins: the log-likelihood of whole proteins, and of each residue."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from protein_lm import alphabet
from protein_lm.choices import Estimate
from protein_lm.errors import ConfigError
from protein_lm.inference.likelihood import (
    causal_log_probabilities,
    each_hidden_in_turn,
    one_pass_log_probabilities,
)
from protein_lm.inference.reading import too_long
from protein_lm.io.records import SequenceRecord
from protein_lm.model.language_model import ProteinLM

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Scoring:
    """Settings of scoring."""

    estimate: Estimate = Estimate.EXACT
    """Estimate for masked models."""
    num_draws: int | None = None
    """Draws of random features, over which scores are averaged; None: the model's own draw."""
    seed: int = 0
    """Seed of the first draw; each further draw adds 1."""
    tokens_per_batch: int = 8192

    def check(self, model: ProteinLM) -> None:
        """Refuse settings that do not fit the model.

        Raises:
            ConfigError: one pass for a causal model, draws for a model without random features, or fewer than two draws.
        """
        if model.is_causal and self.estimate is Estimate.ONE_PASS:
            raise ConfigError("--estimate one-pass: a causal model needs one pass in any case; leave it out")
        if self.num_draws is not None:
            if self.num_draws < 2:
                raise ConfigError("--num-draws 1 has no standard error; give 2 or more")
            if not model.is_random:
                raise ConfigError(
                    f"--num-draws: {model.config.attention_name} attention has no random features; leave it out"
                )

    def measure(self, model: ProteinLM) -> str:
        """Name of the score, which is the column of its sum over residues."""
        if model.is_causal:
            return "log_likelihood"
        prefix = "one_pass_" if self.estimate is Estimate.ONE_PASS else ""
        return f"{prefix}pseudo_log_likelihood"

    def cost(self, model: ProteinLM, length: int) -> int:
        """Tokens that pass through the model for a protein of `length` residues."""
        tokens = (length + alphabet.NUM_SPECIAL_TOKENS) * (self.num_draws or 1)
        return tokens if model.is_causal or self.estimate is Estimate.ONE_PASS else tokens * length


def sequence_columns(measure: str, *, has_draws: bool) -> dict[str, str]:
    """Columns of the table of proteins, with names of Arrow's types."""
    names = [measure, f"mean_{measure}", measure.replace("log_likelihood", "perplexity")]
    return (
        {"sequence_id": "string", "length": "int64"}
        | dict.fromkeys(names, "double")
        | ({f"{measure}_standard_error": "double"} if has_draws else {})
    )


def residue_columns(measure: str, *, has_draws: bool) -> dict[str, str]:
    """Columns of the table of residues, as `sequence_columns`; positions count from 1."""
    return {"sequence_id": "string", "position": "int64", "residue": "string", measure: "double"} | (
        {f"{measure}_standard_error": "double"} if has_draws else {}
    )


def sequence_row(record: SequenceRecord, values: NDArray[np.float64]) -> Row:
    """The row of a protein, from log-probabilities (1, K) or (draws, K) of its K residues."""
    totals = values.sum(1)
    total = float(totals.mean())
    mean = total / len(record)
    row = record.sequence_id, len(record), total, mean, float(np.exp(-mean))
    return row if len(totals) == 1 else (*row, float(standard_error(totals)))


def residue_rows(record: SequenceRecord, values: NDArray[np.float64]) -> Iterator[Row]:
    """A row for each residue, from the values of `sequence_row`."""
    columns: list[list[float]] = [values.mean(0).tolist()]
    if len(values) > 1:
        columns.append(standard_error(values).tolist())
    for position, (residue, *numbers) in enumerate(zip(record.sequence, *columns, strict=True), 1):
        yield record.sequence_id, position, residue, *numbers


def standard_error(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error of the mean over the first dimension."""
    return draws.std(0, ddof=1) / np.sqrt(len(draws))


def residue_scores(model: ProteinLM, records: Sequence[SequenceRecord], scoring: Scoring) -> list[NDArray[np.float64]]:
    """Log-probabilities (1, K) or (draws, K) of the K residues of each record, in order, as in `score`."""
    sequences = [record.tokens for record in records]
    if scoring.num_draws is None:
        return [values[None] for values in _log_probabilities(model, sequences, scoring)]
    draws = []
    with _own_draw_kept(model):
        for number in range(scoring.num_draws):
            model.redraw_features(torch.Generator().manual_seed(scoring.seed + number))
            draws.append(_log_probabilities(model, sequences, scoring))
    return [np.stack(values) for values in zip(*draws, strict=True)]


def score(model: ProteinLM, records: Iterable[SequenceRecord], *, tokens_per_batch: int = 8192) -> pd.DataFrame:
    """Score each record, in order.

    A causal model gives `log_likelihood` (nats, Σ log p of every residue from those before it), `mean_log_likelihood`
    (per residue) and `perplexity`. A masked model gives `pseudo_log_likelihood`, `mean_pseudo_log_likelihood` and
    `pseudo_perplexity`. For these every residue is hidden in turn and predicted from all others (Salazar et al. 2020, arXiv
    1910.14659), in as many passes as there are residues. Scores do not depend on the batch.

    Raises:
        InputError: a sequence is longer than the model's window.
    """
    scoring, chosen = Scoring(tokens_per_batch=tokens_per_batch), list(records)
    for record in chosen:
        check_length(record, model)
    scores = residue_scores(model, chosen, scoring)
    rows = [sequence_row(record, values) for record, values in zip(chosen, scores, strict=True)]
    columns = sequence_columns(scoring.measure(model), has_draws=False)
    return pd.DataFrame(rows, columns=pd.Index(columns))


def check_length(record: SequenceRecord, model: ProteinLM) -> None:
    """Refuse a record that does not fit the model's window.

    Raises:
        InputError: names the sequence, its length and the limit.
    """
    if len(record) > model.max_residues:
        remedy = "leave it out, or use a model with a longer window"
        raise too_long(record.sequence_id, len(record), model.max_residues, remedy)


def _log_probabilities(
    model: ProteinLM, sequences: Sequence[NDArray[np.uint8]], scoring: Scoring
) -> list[NDArray[np.float64]]:
    size = scoring.tokens_per_batch
    if model.is_causal:
        results = causal_log_probabilities(model, sequences, tokens_per_batch=size)
    elif scoring.estimate is Estimate.ONE_PASS:
        results = one_pass_log_probabilities(model, sequences, tokens_per_batch=size)
    else:
        return [each_hidden_in_turn(model, residues, tokens_per_batch=size) for residues in sequences]
    return [result.log_probabilities for result in results]


@contextmanager
def _own_draw_kept(model: ProteinLM) -> Iterator[None]:
    """Restore the model's buffers, which hold its random features, in the end."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
