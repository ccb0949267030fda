"""Evaluation of a model on each split of a corpus, next to the unigram baseline.

Causal models are measured on every residue. Masked models are measured on a fixed 15 % of each protein, all hidden behind
<mask> (`protein_lm.inference.likelihood`). Special tokens are never counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protein_lm.choices import LongPolicy
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError, InputError
from protein_lm.inference.likelihood import ResidueLogProbabilities, Residues, evaluation_log_probabilities
from protein_lm.inference.unigram import unigram_log_probabilities, unigram_results
from protein_lm.model.language_model import ProteinLM

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
SEQUENCES_AT_ONCE = 512


class _Sums(NamedTuple):
    """Sums over each protein, arrays (N,)."""

    log_likelihood: NDArray[np.float64]
    num_correct: NDArray[np.int64]
    num_residues: NDArray[np.int64]


def evaluate(
    model: ProteinLM,
    store: Corpus,
    *,
    splits: Sequence[Split] = (Split.VALID, Split.TEST, Split.HELD_OUT),
    long_sequences: LongPolicy = LongPolicy.ERROR,
    tokens_per_batch: int = 8192,
    max_sequences: int | None = None,
) -> pd.DataFrame:
    """Return a row for each split that has sequences.

    Columns: split, num_sequences, num_residues (scored ones), accuracy, perplexity with its 95 % bootstrap interval over
    proteins (perplexity_low, perplexity_high), the same with `unigram_`, num_too_long (sequences that were cropped to their
    first residues, or left out). The unigram baseline predicts the frequencies of residues in the split `train`.

    Args:
        model: the model to measure.
        store: a prepared corpus.
        splits: splits to measure.
        long_sequences: what happens to sequences over the model's window.
        tokens_per_batch: tokens computed at once, memory against speed; results do not depend on it.
        max_sequences: most sequences of each split, the first ones; None: all.

    Raises:
        InputError: a sequence is longer than the window and the policy is `error`.
        ConfigError: none of the splits has a sequence.
    """
    unigram = unigram_log_probabilities(store)
    rows = []
    for split in splits:
        sequences, num_too_long = _sequences(model, store, split, long_sequences, max_sequences)
        if not sequences:
            continue
        measured = _measure(model, sequences, tokens_per_batch)
        baseline = _sums(unigram_results(unigram, sequences, is_causal=model.is_causal))
        rows.append(
            {
                "split": split.label,
                "num_sequences": len(sequences),
                "num_residues": int(measured.num_residues.sum()),
                **_summary(measured, ""),
                **_summary(baseline, "unigram_"),
                "num_too_long": num_too_long,
            }
        )
    if not rows:
        names = ", ".join(split.label for split in splits)
        raise ConfigError(f"{store.path}: no sequence to evaluate in {names}; see `protein-lm data inspect`")
    return pd.DataFrame(rows)


def _sequences(
    model: ProteinLM, store: Corpus, split: Split, policy: LongPolicy, max_sequences: int | None
) -> tuple[list[Residues], int]:
    window = model.max_residues
    sequences, num_too_long = [], 0
    for index in store.indices(split)[:max_sequences].tolist():
        residues = store.residues(index)
        if residues.size > window:
            num_too_long += 1
            if policy is LongPolicy.ERROR:
                raise InputError(
                    f"sequence {store.sequence_id(index)} has {residues.size:,} residues; this model reads {window:,}; "
                    "choose --long crop (its first residues) or --long drop"
                )
            if policy is LongPolicy.DROP:
                continue
        sequences.append(np.asarray(residues[:window]))
    return sequences, num_too_long


def _measure(model: ProteinLM, sequences: list[Residues], tokens_per_batch: int) -> _Sums:
    results = []
    for start in range(0, len(sequences), SEQUENCES_AT_ONCE):
        chunk = sequences[start : start + SEQUENCES_AT_ONCE]
        results.extend(evaluation_log_probabilities(model, chunk, tokens_per_batch=tokens_per_batch))
    return _sums(results)


def _sums(results: list[ResidueLogProbabilities]) -> _Sums:
    return _Sums(
        np.array([result.log_probabilities.sum() for result in results]),
        np.array([result.correct.sum() for result in results]),
        np.array([result.correct.size for result in results]),
    )


def _summary(sums: _Sums, prefix: str) -> dict[str, float]:
    """Return accuracy and perplexity over all residues, with a percentile bootstrap over proteins."""
    generator = np.random.default_rng(0)
    num_proteins = sums.num_residues.size
    resampled = []
    for _ in range(NUM_RESAMPLES):
        chosen = generator.integers(num_proteins, size=num_proteins)
        resampled.append(np.exp(-sums.log_likelihood[chosen].sum() / sums.num_residues[chosen].sum()))
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    num_residues = sums.num_residues.sum()
    return {
        f"{prefix}accuracy": float(sums.num_correct.sum() / num_residues),
        f"{prefix}perplexity": float(np.exp(-sums.log_likelihood.sum() / num_residues)),
        f"{prefix}perplexity_low": float(low),
        f"{prefix}perplexity_high": float(high),
    }


def describe(table: pd.DataFrame) -> str:
    """Return the table of `evaluate` as aligned lines of text."""
    lines = [f"{'split':<10}{'proteins':>9}{'residues':>10}{'accuracy':>10}  {'perplexity (95 % interval)':<28}unigram"]
    for row in table.to_dict("records"):
        measured, baseline = (
            f"{row[prefix + 'perplexity']:.2f} ({row[prefix + 'perplexity_low']:.2f}-{row[prefix + 'perplexity_high']:.2f})"
            for prefix in ("", "unigram_")
        )
        lines.append(
            f"{row['split']:<10}{row['num_sequences']:>9,}{row['num_residues']:>10,}{row['accuracy']:>10.1%}  "
            f"{measured:<28}{baseline}"
        )
    if too_long := int(table["num_too_long"].sum()):
        lines.append(f"{too_long:,} sequences over the model's window were cropped to their start or left out (--long)")
    return "\n".join(lines)
