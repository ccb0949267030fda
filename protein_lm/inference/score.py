"""How probable a model finds whole proteins."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protein_lm import alphabet
from protein_lm.choices import LongPolicy
from protein_lm.data.records import SequenceRecord
from protein_lm.errors import ConfigError, InputError
from protein_lm.inference.likelihood import Residues, causal_log_probabilities, masked_log_probabilities
from protein_lm.model.language_model import ProteinLM

RECORDS_AT_ONCE = 512
"""Records read ahead so that sequences of similar length share a batch."""


def score(model: ProteinLM, records: Iterable[SequenceRecord], *, tokens_per_batch: int = 8192) -> pd.DataFrame:
    """Score each record, in order.

    A causal model gives `log_likelihood` (nats, Σ log p of every residue from those before it), `mean_log_likelihood`
    (per residue) and `perplexity`. A masked model gives `pseudo_log_likelihood`, `mean_pseudo_log_likelihood` and
    `pseudo_perplexity`: every residue is hidden in turn and predicted from all others (Salazar et al. 2020, arXiv
    1910.14659), which takes as many passes as there are residues. A sequence's score does not depend on its batch.

    Raises:
        InputError: a sequence is longer than the model's window, or an identifier comes twice.
    """
    prefix = "" if model.is_causal else "pseudo_"
    stream = iter(records)
    lines: dict[str, int] = {}
    rows = []
    while chunk := list(islice(stream, RECORDS_AT_ONCE)):
        for record in chunk:
            check_length(record, model)
            if (earlier := lines.setdefault(record.sequence_id, record.line)) != record.line:
                raise InputError(
                    f"line {record.line}: sequence {record.sequence_id} is on line {earlier} too, and a score is found by "
                    "its identifier; rename or remove one of them"
                )
        if model.is_causal:
            results = causal_log_probabilities(
                model, [record.tokens for record in chunk], tokens_per_batch=tokens_per_batch
            )
            totals = [float(result.log_probabilities.sum()) for result in results]
        else:
            totals = [
                pseudo_log_likelihood(model, record.tokens, np.arange(len(record)), tokens_per_batch=tokens_per_batch)
                for record in chunk
            ]
        for record, total in zip(chunk, totals, strict=True):
            mean = total / len(record)
            rows.append((record.sequence_id, len(record), total, mean, np.exp(-mean)))
    measures = [f"{prefix}log_likelihood", f"mean_{prefix}log_likelihood", f"{prefix}perplexity"]
    return pd.DataFrame(rows, columns=pd.Index(["sequence_id", "length", *measures]))


def check_length(record: SequenceRecord, model: ProteinLM) -> None:
    """Refuse a record that does not fit the model's window.

    Raises:
        InputError: naming the sequence, its length and the limit.
    """
    if len(record) > model.max_residues:
        raise InputError(
            f"sequence {record.sequence_id} has {len(record):,} residues; this model reads {model.max_residues:,}; "
            "leave it out with --long drop, or use a model with a longer window"
        )


def within_window(
    records: Iterable[SequenceRecord], model: ProteinLM, policy: LongPolicy, dropped: list[str]
) -> Iterator[SequenceRecord]:
    """Records that fit the model's window; with `drop`, the identifiers of the others are added to `dropped`.

    Raises:
        InputError: a sequence is too long and the policy is `error`.
        ConfigError: the policy is `crop`, which has no meaning for the score of a whole protein.
    """
    if policy is LongPolicy.CROP:
        raise ConfigError("--long crop: a cropped protein has no score of its own; choose drop or error")
    for record in records:
        if len(record) > model.max_residues and policy is LongPolicy.DROP:
            dropped.append(record.sequence_id)
            continue
        check_length(record, model)
        yield record


def pseudo_log_likelihood(
    model: ProteinLM, residues: Residues, positions: NDArray[np.int64], *, tokens_per_batch: int
) -> float:
    """Σ over residues at `positions` (k,) of the log-probability when that residue alone is hidden, in nats."""
    rows = max(1, tokens_per_batch // (len(residues) + alphabet.NUM_SPECIAL_TOKENS))
    total = 0.0
    for start in range(0, len(positions), rows):
        hidden = [np.array([position]) for position in positions[start : start + rows]]
        results = masked_log_probabilities(model, [residues] * len(hidden), hidden, tokens_per_batch=tokens_per_batch)
        total += sum(float(result.log_probabilities.sum()) for result in results)
    return total
