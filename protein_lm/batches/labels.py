"""A table of labelled sequences -> token ids, splits and labels in memory; its training batches.

Columns are `sequence` and the labels. There may be `sequence_id` and `split` (train, valid, test, held_out, or empty), or
FLIP's `set` and `validation`. Where no split is given, a hash of the sequence decides: equal sequences get the same split.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from protein_lm.attention.packing import Packing
from protein_lm.batches.label_cells import FLIP_SET, FLIP_VALIDATION, SPLIT, Label, LabelReader, given_splits
from protein_lm.batches.order import shuffled
from protein_lm.batches.packed_batches import IGNORED, pack, tokens_of
from protein_lm.batches.plan import PlanPosition, check_budget, filled
from protein_lm.choices import LongPolicy
from protein_lm.config import HeadConfig, LabelledDataConfig
from protein_lm.corpus.split import Split, SplitRule
from protein_lm.errors import InputError
from protein_lm.files.tables import read_table
from protein_lm.files.text_table import shown_names
from protein_lm.io.hashing import hash_identifiers
from protein_lm.io.residues import read_residues

Labels = NDArray[Any]
"""Numbers, NaN where a label is missing; or indices of classes, `IGNORED` where one is missing."""
SEQUENCE, IDENTIFIER = "sequence", "sequence_id"


@dataclass(frozen=True)
class SequenceTable:
    """N sequences of a table, in its order."""

    path: Path
    frame: pd.DataFrame
    """Rows of the table that were kept, all cells text."""
    rows: NDArray[np.int64]
    """(N,) their row numbers in the table; the first below the header is 1."""
    identifiers: list[str]
    """`sequence_id`, or the row's number where there is no such column."""
    residues: list[NDArray[np.uint8]]
    too_long: list[str]
    """Identifiers of sequences over the window, which were dropped or cropped."""
    sha256: str
    """Checksum of the file."""

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
    """Read a table with a column `sequence`; letters are treated as `protein_lm.io.residues` says.

    Args:
        path: a file that `read_table` reads.
        max_residues: the model's window.
        long_sequences: error, drop, or crop to the first residues.
        label_column: another column to keep.

    Raises:
        InputError: the file cannot be read, or has no column `sequence` or no rows. A row holds no protein sequence, or one
            over the window while `long_sequences` is `error`. Or all were dropped.
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


@dataclass(frozen=True)
class LabelTable:
    """N labelled sequences in memory."""

    path: Path
    sha256: str
    """Checksum of the file."""
    residues: list[NDArray[np.uint8]]
    """Token ids of each sequence."""
    splits: NDArray[np.uint8]
    """(N,) values of `Split`."""
    labels: Labels
    """(T,) labels of all sequences back to back: numbers, or indices into `classes`."""
    bounds: NDArray[np.int64]
    """(N + 1,) where the labels of each sequence begin and end: it has one label, or one for each residue."""
    classes: tuple[str, ...]
    """Names of the classes, sorted; none for numbers."""
    num_long: int
    """Sequences over the model's window that were dropped or cropped."""
    num_unlabelled: int
    """Sequences of the file without any label; they are not in the table."""

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The file and its checksum, as manifests list them."""
        return [{"name": self.path.name, "sha256": self.sha256}]

    @property
    def identity(self) -> dict[str, str]:
        """Checksums of everything that training depends on."""
        offsets = np.cumsum([0, *map(len, self.residues)], dtype=np.int64)
        named = {
            "the sequences": (np.concatenate(self.residues), offsets),
            "the splits": (self.splits,),
            "the labels": (self.labels,),
        }
        parts = {name: b"".join(array.tobytes() for array in arrays) for name, arrays in named.items()}
        sums = {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
        return {**sums, "the classes": ", ".join(self.classes)}

    def indices(self, split: Split) -> NDArray[np.int64]:
        """Indices of the sequences of a split, in order."""
        return np.flatnonzero(self.splits == split)

    def labels_of(self, indices: NDArray[np.int64]) -> Labels:
        """Labels of some sequences, back to back."""
        return np.concatenate([self.labels[self.bounds[i] : self.bounds[i + 1]] for i in indices.tolist()])

    def training_labels(self) -> Labels:
        """All labels of the split train, without those that are missing."""
        labels = self.labels_of(self.indices(Split.TRAIN))
        return labels[has_label(labels)]


def has_label(labels: Labels) -> NDArray[np.bool_]:
    """Which labels are not missing."""
    return ~np.isnan(labels) if labels.dtype.kind == "f" else labels != IGNORED


def read_labels(path: Path, head: HeadConfig, data: LabelledDataConfig, *, max_residues: int) -> LabelTable:
    """Read a table of labelled sequences for a task. Sequences without a label are left out.

    Raises:
        InputError: as `read_sequence_table` or `given_splits`. A label is no number, of the wrong length, or of a class that
            training does not have. Or the training labels are fewer than two, or all the same.
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
    classes, labels = ((), _numbers(cells)) if head.task.is_regression else _classes(table, cells, splits)
    bounds = np.cumsum([0, *map(len, cells)], dtype=np.int64)
    num_long = len(table.too_long)
    result = LabelTable(path, table.sha256, table.residues, splits, labels, bounds, classes, num_long, num_unlabelled)
    _check_training(result)
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
    """Names of the classes, and (T,) the class of each label.

    Raises:
        InputError: a class is never in training.
    """
    in_training = {name for cell, split in zip(cells, splits, strict=True) if split == Split.TRAIN for name in cell}
    classes = tuple(sorted(name for name in in_training if isinstance(name, str)))
    numbers: dict[Label, int] = {None: IGNORED}
    numbers.update((name, number) for number, name in enumerate(classes))
    for row, split, cell in zip(table.rows, splits, cells, strict=True):
        if unseen := [name for name in cell if name not in numbers]:
            raise InputError(
                f"{table.path}, row {row}: class {unseen[0]!r} is in the split "
                f"{Split(split).label} and never in train, so it cannot be learned; move a row of it to train, or "
                "remove it"
            )
    return classes, np.array([numbers[name] for cell in cells for name in cell], dtype=np.int64)


def _numbers(cells: list[list[Label]]) -> Labels:
    return np.array([np.nan if label is None else label for cell in cells for label in cell], dtype=np.float64)


def _splits(table: SequenceTable, data: LabelledDataConfig) -> NDArray[np.uint8]:
    rule = SplitRule(valid_fraction=data.valid_fraction, test_fraction=data.test_fraction)
    splits = rule.assign(hash_identifiers([residues.tobytes() for residues in table.residues]))
    where = [f"{table.path}, row {row}" for row in table.rows]
    for number, split in enumerate(given_splits(table.frame, where)):
        if split is not None:
            splits[number] = split
    return splits


def _check_training(table: LabelTable) -> None:
    number = table.indices(Split.TRAIN).size
    if number < 2:
        raise InputError(f"{table.path}: {number} labelled sequences are left to train on; at least 2 are needed")
    labels = table.training_labels()
    if (labels == labels[0]).all():
        what = f"of class {table.classes[int(labels[0])]!r}" if table.classes else f"{labels[0]:g}"
        raise InputError(f"{table.path}: all {labels.size:,} training labels are {what}: there is nothing to learn")


@dataclass(frozen=True)
class LabelledBatch:
    """Sequences back to back in one row, and the labels to predict."""

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


class PlannedLabels(NamedTuple):
    """The sequences of a batch, by index in the table."""

    indices: NDArray[np.int64]
    next_position: PlanPosition
    """Where the next batch begins."""


class LabelledBatches:
    """Batches of the training split of a table, shuffled anew for each epoch."""

    def __init__(self, table: LabelTable, tokens_per_batch: int, *, seed: int) -> None:
        """Plan the training.

        Raises:
            ConfigError: a batch does not hold the longest sequence.
        """
        self._table, self._budget, self._seed = table, tokens_per_batch, seed
        self._sizes = tokens_of(table.residues)
        longest = self._sizes[table.indices(Split.TRAIN)].max()
        check_budget(longest, tokens_per_batch, row="the longest sequence")

    def planned(self, position: PlanPosition) -> Iterator[PlannedLabels]:
        """All batches from a position on, without end; a batch never holds two epochs."""
        number = len(self._table.residues)
        while True:
            epoch, start = position.epoch, 0
            positions = np.arange(position.sequence, number)
            order = shuffled(positions, number, self._seed, epoch)  # the sequences at these positions
            is_training = self._table.splits[order] == Split.TRAIN
            positions, order = positions[is_training], order[is_training]
            for end in filled(self._sizes[order], self._budget):
                is_inside = end < order.size
                position = PlanPosition(epoch, int(positions[end])) if is_inside else PlanPosition(epoch + 1)
                yield PlannedLabels(order[start:end], position)
                start = end
            if not order.size:
                position = PlanPosition(epoch + 1)

    def batch(self, planned: PlannedLabels) -> LabelledBatch:
        """The sequences of a batch with their labels."""
        tokens, packing = pack([self._table.residues[i] for i in planned.indices.tolist()])
        labels = self._table.labels_of(planned.indices)
        labelled = np.flatnonzero(has_label(labels))
        return LabelledBatch(tokens, packing, torch.from_numpy(labels[labelled]), torch.from_numpy(labelled))
