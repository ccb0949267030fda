"""A table of labelled sequences -> token ids, splits and labels in memory; its training batches.

Columns: `sequence`, the labels, and if they are there `sequence_id` and `split` (train, valid, test, held_out, or empty), or
FLIP's `set` and `validation`. Where no split is given, a hash of the sequence decides, so that equal sequences are on the
same side.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm.attention.packing import Packing
from protein_lm.batches.batches import IGNORED, pack
from protein_lm.batches.label_cells import FLIP_SET, FLIP_VALIDATION, SPLIT, Label, LabelReader, given_splits
from protein_lm.batches.plan import Planned, TrainingPlan
from protein_lm.choices import LongPolicy, Task, TrainingLongPolicy
from protein_lm.config import DataConfig, HeadConfig, LabelledDataConfig
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.split import Split, SplitRule
from protein_lm.errors import InputError
from protein_lm.files.tables import read_table
from protein_lm.files.text_table import shown_names
from protein_lm.io.hashing import hash_identifiers
from protein_lm.io.records import Annotations
from protein_lm.io.residues import read_residues

Labels = NDArray[Any]
"""Numbers, NaN where there is none; or indices of classes, `IGNORED` where there is none."""
SEQUENCE, IDENTIFIER = "sequence", "sequence_id"


@dataclass(frozen=True)
class SequenceTable:
    """N sequences of a table, in its order."""

    path: Path
    frame: pd.DataFrame
    """Rows of the table that were kept, all cells text."""
    rows: NDArray[np.int64]
    """(N,) their numbers in the table, the first below the header being 1."""
    identifiers: list[str]
    """`sequence_id`, or the row's number where there is no such column."""
    residues: list[NDArray[np.uint8]]
    too_long: list[str]
    """Identifiers of those over the window, which were dropped or cropped."""
    sha256: str
    """Of the file."""

    def take(self, kept: Sequence[int]) -> "SequenceTable":
        """Some of the sequences, by index."""
        return replace(
            self,
            frame=self.frame.iloc[list(kept)],
            rows=self.rows[list(kept)],
            identifiers=[self.identifiers[i] for i in kept],
            residues=[self.residues[i] for i in kept],
        )


def read_sequence_table(
    path: Path, *, max_residues: int, long_sequences: LongPolicy, label_column: str = SEQUENCE
) -> SequenceTable:
    """Read a table with a column `sequence`, by the policy of `residues`.

    Args:
        path: see `tables.read_table`.
        max_residues: the model's window.
        long_sequences: what becomes of sequences over it.
        label_column: another column that is expected.

    Raises:
        InputError: the file cannot be read, has no column `sequence` or no rows, a row holds no protein sequence, or one over
            the window while `long_sequences` is `error`; or all were dropped.
    """
    wanted = (SEQUENCE, IDENTIFIER, label_column, SPLIT, FLIP_SET, FLIP_VALIDATION)
    frame, sha256 = read_table(path, needs=(SEQUENCE,), wanted=wanted)
    if frame.empty:
        raise InputError(f"{path} has no rows; add some")
    rows = np.arange(1, len(frame) + 1)
    names = frame[IDENTIFIER].tolist() if IDENTIFIER in frame else rows.astype(str).tolist()
    kept, residues, too_long = [], [], []
    for number, (row, letters) in enumerate(zip(rows, frame[SEQUENCE], strict=True)):
        tokens = read_residues(letters, f"{path}, row {row}").tokens
        if tokens.size > max_residues:
            too_long.append(names[number])
            if long_sequences is LongPolicy.ERROR:
                raise InputError(
                    f"{path}, row {row}: the sequence has {tokens.size:,} residues; this model reads {max_residues:,}; "
                    "shorten or remove it, choose to drop (or in training to crop) long ones, or use a model with a "
                    "longer window"
                )
            if long_sequences is LongPolicy.DROP:
                continue
        kept.append(number)
        residues.append(tokens[:max_residues])
    if not kept:
        raise InputError(
            f"{path}: all {len(frame):,} sequences are over {max_residues:,} residues, the model's window, and would be "
            "dropped; use a model with a longer window"
        )
    return SequenceTable(path, frame.iloc[kept], rows[kept], [names[i] for i in kept], residues, too_long, sha256)


class LabelTable(Corpus):
    """N labelled sequences in memory, ready to train on."""

    def __init__(
        self,
        table: SequenceTable,
        splits: NDArray[np.uint8],
        labels: Labels,
        classes: tuple[str, ...],
        task: Task,
        *,
        num_unlabelled: int,
    ) -> None:
        """Put sequences and labels together.

        Args:
            table: the sequences.
            splits: (N,) values of `Split`.
            labels: (N,) of sequences, or (T,) of the residues of all sequences back to back: numbers, or indices into
                `classes`.
            classes: names of the classes, sorted; none for numbers.
            task: what is to be predicted.
            num_unlabelled: sequences of the file that have no label at all, and are not in the table.
        """
        self.path, self.splits, self.labels, self.classes = table.path, splits, labels, classes
        self.manifest = {"sources": [{"name": table.path.name, "sha256": table.sha256}]}
        self.num_long = len(table.too_long)
        """Sequences over the model's window that were dropped or cropped."""
        self.num_unlabelled = num_unlabelled
        """Sequences that were left out since they have no label."""
        self._is_of_residues = task.is_of_residues
        self._identifiers = table.identifiers
        self._tokens = np.concatenate(table.residues)
        self._offsets = np.cumsum([0, *map(len, table.residues)], dtype=np.int64)

    @property
    def num_residues(self) -> int:
        """See `Corpus`."""
        return self._tokens.size

    @property
    def sources(self) -> list[dict[str, Any]]:
        """See `Corpus`."""
        return self.manifest["sources"]

    @property
    def identity(self) -> dict[str, str]:
        """See `Corpus`; the labels belong to it."""
        named = {
            "the sequences": (self._tokens, self._offsets),
            "the splits": (self.splits,),
            "the labels": (self.labels,),
        }
        sums = {name: _sha256(*(array.tobytes() for array in arrays)) for name, arrays in named.items()}
        return {**sums, "the classes": ", ".join(self.classes)}

    @property
    def groups(self) -> dict[str, range]:
        """See `Corpus`: the table itself."""
        return {self.path.name: range(self.num_sequences)}

    def lengths_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Corpus`."""
        return self._offsets[indices + 1] - self._offsets[indices]

    def offsets_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Corpus`."""
        return self._offsets[indices]

    def residues_at(self, offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
        """See `Corpus`."""
        return self._tokens[offsets]

    def residues(self, index: int) -> NDArray[np.uint8]:
        """See `Corpus`."""
        return self._tokens[self._offsets[index] : self._offsets[index + 1]]

    def sequence_id(self, index: int) -> str:
        """See `Corpus`."""
        return self._identifiers[index]

    def annotations_of(self, indices: NDArray[np.int64]) -> Annotations:
        """See `Corpus`: nothing is known."""
        return Annotations.none(indices.size)

    def of(self, indices: NDArray[np.int64]) -> Labels:
        """Labels of some sequences, back to back."""
        if not self._is_of_residues:
            return self.labels[indices]
        return np.concatenate([self.labels[self._offsets[i] : self._offsets[i + 1]] for i in indices.tolist()])

    def known(self, indices: NDArray[np.int64]) -> Labels:
        """As `of`, without what has no label."""
        labels = self.of(indices)
        return labels[has_label(labels)]

    def training_statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of the numbers in training."""
        labels = self.known(self.indices(Split.TRAIN))
        return float(labels.mean()), float(labels.std())


def has_label(labels: Labels) -> NDArray[np.bool_]:
    """Which of some labels are there."""
    return ~np.isnan(labels) if labels.dtype.kind == "f" else labels != IGNORED


def read_labels(path: Path, head: HeadConfig, data: LabelledDataConfig, *, max_residues: int) -> LabelTable:
    """Read a table of labelled sequences for a task. Sequences without a label are left out.

    Raises:
        InputError: as `read_sequence_table` or `given_splits`; or a label is no number, of the wrong length, or of a class
            that training does not have; or the training labels are fewer than two or all the same.
        ConfigError: the fractions of the splits leave nothing to train on.
    """
    table = read_sequence_table(
        path, max_residues=max_residues, long_sequences=data.long_sequences, label_column=head.column
    )
    if head.column not in table.frame:
        shown = shown_names(table.frame.columns.tolist())
        raise InputError(f"{path} has no column {head.column}; it has {shown}; set head.column to the labels'")
    cells = _cells(table, head)
    kept = [number for number, cell in enumerate(cells) if any(label is not None for label in cell)]
    if not kept:
        raise InputError(
            f"{path}: no sequence has a label in the column {head.column}; write some, or set head.no_label"
        )
    num_unlabelled = len(cells) - len(kept)
    table, cells = table.take(kept), [cells[number] for number in kept]
    splits = _splits(table, data)
    classes, labels = ((), _array(cells)) if head.task.is_regression else _classes(table, cells, splits)
    result = LabelTable(table, splits, labels, classes, head.task, num_unlabelled=num_unlabelled)
    _check_training(result, path)
    return result


def _cells(table: SequenceTable, head: HeadConfig) -> list[list[Label]]:
    """The labels of each sequence, within the window."""
    reader, cells = LabelReader(head.task, head.no_label), []
    sequences = table.frame[SEQUENCE]
    for row, text, letters, residues in zip(
        table.rows, table.frame[head.column], sequences, table.residues, strict=True
    ):
        try:
            cells.append(reader.read(text, letters)[: len(residues)])
        except ValueError as error:
            raise InputError(f"{table.path}, row {row}: {error}") from error
    return cells


def _classes(
    table: SequenceTable, cells: list[list[Label]], splits: NDArray[np.uint8]
) -> tuple[tuple[str, ...], Labels]:
    """Names of the classes, and indices into them.

    Raises:
        InputError: a class is never in training.
    """
    in_training = {name for cell, split in zip(cells, splits, strict=True) if split == Split.TRAIN for name in cell}
    classes = tuple(sorted(name for name in in_training if isinstance(name, str)))
    places: dict[Label, int] = {None: IGNORED}
    places.update((name, place) for place, name in enumerate(classes))
    for number, cell in enumerate(cells):
        if unseen := [name for name in cell if name not in places]:
            raise InputError(
                f"{table.path}, row {table.rows[number]}: class {unseen[0]!r} is in the split "
                f"{Split(splits[number]).label} and never in train, so it cannot be learned; move a row of it to train, or "
                "remove it"
            )
    return classes, np.array([places[name] for cell in cells for name in cell], dtype=np.int64)


def _array(cells: list[list[Label]]) -> Labels:
    return np.array([np.nan if label is None else label for cell in cells for label in cell], dtype=np.float64)


def _splits(table: SequenceTable, data: LabelledDataConfig) -> NDArray[np.uint8]:
    rule = SplitRule(valid_fraction=data.valid_fraction, test_fraction=data.test_fraction)
    splits = rule.assign(hash_identifiers([residues.tobytes() for residues in table.residues]))
    where = [f"{table.path}, row {row}" for row in table.rows]
    for number, split in enumerate(given_splits(table.frame, where)):
        if split is not None:
            splits[number] = split
    return splits


def _sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _check_training(table: LabelTable, path: Path) -> None:
    indices = table.indices(Split.TRAIN)
    if indices.size < 2:
        raise InputError(f"{path}: {indices.size} labelled sequences are left to train on; at least 2 are needed")
    labels = table.known(indices)
    if (labels == labels[0]).all():
        what = f"of class {table.classes[int(labels[0])]!r}" if table.classes else f"{labels[0]:g}"
        raise InputError(f"{path}: all {labels.size:,} training labels are {what}: there is nothing to learn")


@dataclass(frozen=True)
class LabelledBatch:
    """Sequences back to back in one row, and what is to be predicted of them."""

    tokens: Tensor
    """(1, L) int64."""
    packing: Packing
    targets: Tensor
    """(K,) labels of sequences, or of their residues: float64 numbers or int64 classes."""
    labelled: Tensor
    """(K,) int64, ascending: which of the N sequences or R residues they belong to; the others have none."""

    def to(self, device: torch.device) -> "LabelledBatch":
        """The batch on `device`; numbers become float32, which every device has."""
        targets = self.targets.float() if self.targets.is_floating_point() else self.targets
        return LabelledBatch(self.tokens.to(device), self.packing, targets.to(device), self.labelled.to(device))


class LabelledBatches:
    """The planned batches of a table's training split."""

    def __init__(self, table: LabelTable, tokens_per_batch: int, *, max_length: int, seed: int) -> None:
        """Plan the training.

        Raises:
            ConfigError: a batch does not hold the longest sequence.
        """
        config = DataConfig(tokens_per_batch=tokens_per_batch, long_sequences=TrainingLongPolicy.ERROR)
        self.plan = TrainingPlan(table, config, max_length=max_length, seed=seed)
        self._table = table

    def batch(self, planned: Planned) -> LabelledBatch:
        """The sequences of a batch with their labels."""
        indices = planned.pieces.indices
        tokens, packing = pack([self._table.residues(i) for i in indices.tolist()])
        labels = self._table.of(indices)
        labelled = np.flatnonzero(has_label(labels))
        return LabelledBatch(tokens, packing, torch.from_numpy(labels[labelled]), torch.from_numpy(labelled))
