"""Predictions of a model with a head, and their agreement with labels."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from protein_lm import alphabet
from protein_lm.batches.labels import SEQUENCE, read_sequence_table
from protein_lm.batches.packed_batches import fill, pack, tokens_of
from protein_lm.choices import LongPolicy
from protein_lm.errors import ConfigError, InputError, NumericalError
from protein_lm.files.sources import STANDARD_INPUT
from protein_lm.files.tables import column_names
from protein_lm.io.proteins import named_twice, read_distinct
from protein_lm.model.predictor import Predictor


def predictions(
    predictor: Predictor, sequences: Sequence[NDArray[np.uint8]], *, tokens_per_batch: int
) -> Iterator[NDArray[np.float64]]:
    """For each of `sequences`, in order: (K,) numbers in the unit of the labels, or (K, C) probabilities of the classes.

    K is 1, or the number of residues. Predictions do not depend on the batch.

    Raises:
        NumericalError: the model gives NaN or infinity.
    """
    for members in fill(tokens_of(sequences), tokens_per_batch):
        batch = [sequences[i] for i in members]
        tokens, packing = pack(batch)
        with torch.inference_mode():
            outputs = predictor(tokens.to(predictor.backbone.device), packing=packing).float().cpu()
        if not outputs.isfinite().all():
            raise NumericalError(
                "the model predicts NaN or infinity; its weights come from a run that diverged: use an earlier checkpoint"
            )
        values = predictor.head.predictions(outputs).numpy()
        counts = [len(residues) if predictor.head.config.task.is_of_residues else 1 for residues in batch]
        yield from np.split(values, np.cumsum(counts)[:-1])


def prediction_table(
    predictor: Predictor, identifiers: Sequence[str], sequences: Sequence[NDArray[np.uint8]], *, tokens_per_batch: int
) -> pd.DataFrame:
    """One row for each sequence, or for each residue (`position` from 1, `residue`), in order.

    `prediction` is the number or the most probable class; the columns `probability_CLASS` follow for classes.
    """
    head = predictor.head
    found = list(predictions(predictor, sequences, tokens_per_batch=tokens_per_batch))
    values = np.concatenate(found) if found else np.empty((0, len(head.classes)) if head.classes else 0)
    columns: dict[str, object] = {
        "sequence_id": np.repeat(np.array(identifiers, dtype=object), [len(v) for v in found])
    }
    if head.config.task.is_of_residues:
        columns["position"] = np.concatenate([np.arange(1, len(residues) + 1) for residues in sequences])
        columns["residue"] = list("".join(map(alphabet.decode, sequences)))
    if not head.classes:
        return pd.DataFrame({**columns, "prediction": values})
    columns["prediction"] = np.array(head.classes, dtype=object)[values.argmax(-1)]
    return pd.DataFrame(columns | {f"probability_{name}": values[:, i] for i, name in enumerate(head.classes)})


def read_sequences(
    source: Path, *, max_residues: int, long_sequences: LongPolicy
) -> tuple[list[str], list[NDArray[np.uint8]], list[str]]:
    """Read identifiers and residues of a sequence file, or of a table with the column `sequence`.

    Returns:
        Identifiers, residues, and the identifiers of sequences that were left out.

    Raises:
        InputError: the file cannot be read, an identifier occurs twice, or the policy is `error` and a sequence is over the
            window.
        ConfigError: the policy is `crop`, since a part's prediction is not that of the whole.
    """
    if long_sequences is LongPolicy.CROP:
        raise ConfigError("--long crop: what is predicted of a part is not meant for the whole; choose drop or error")
    if source != STANDARD_INPUT and SEQUENCE in column_names(source, wanted=[SEQUENCE]):
        table = read_sequence_table(source, max_residues=max_residues, long_sequences=long_sequences)
        rows: dict[str, int] = {}
        for row, identifier in zip(table.rows.tolist(), table.identifiers, strict=True):
            if identifier in rows:
                raise named_twice(identifier, f"{source}, row {row}", f"row {rows[identifier]}")
            rows[identifier] = row
        return table.identifiers, table.residues, table.too_long
    identifiers, residues, dropped = [], [], []
    for record in read_distinct(source):
        if len(record) > max_residues:
            if long_sequences is LongPolicy.ERROR:
                raise InputError(
                    f"sequence {record.sequence_id} has {len(record):,} residues; this model reads {max_residues:,}; "
                    "leave it out with --long drop, or use a model with a longer window"
                )
            dropped.append(record.sequence_id)
            continue
        identifiers.append(record.sequence_id)
        residues.append(record.tokens)
    return identifiers, residues, dropped


def agreement(values: NDArray[np.float64], labels: NDArray, *, is_regression: bool) -> dict[str, float]:
    """Measure the agreement of predictions with K labels; NaN where a measure is not defined.

    Numbers (K,) have `spearman`, not defined if labels or predictions are all the same, and `rmse`, the root mean squared
    error in the unit of the labels. Probabilities (K, C) have `accuracy`, and `macro_f1`, the mean F1 over the classes among
    the labels.
    """
    if is_regression:
        is_defined = np.ptp(labels) > 0 and np.ptp(values) > 0
        spearman = float(spearmanr(values, labels)[0]) if is_defined else np.nan  # type: ignore[arg-type]
        return {"spearman": spearman, "rmse": float(np.sqrt(np.mean((values - labels) ** 2)))}
    predicted, scores = values.argmax(-1), []
    for name in np.unique(labels):
        hits = ((predicted == name) & (labels == name)).sum()
        scores.append(2 * hits / ((predicted == name).sum() + (labels == name).sum()))
    return {"accuracy": float((predicted == labels).mean()), "macro_f1": float(np.mean(scores))}
