"""Reads the cells of a table of labels: the labels of a sequence, and its split."""

import math
from collections.abc import Callable, Sequence

import pandas as pd

from protein_lm.choices import Task
from protein_lm.corpus.split import Split, parse_split
from protein_lm.errors import ConfigError, InputError, quoted
from protein_lm.io.residues import residues_of

Label = float | str | None
"""A number or the name of a class; None where the label is missing."""

SPLIT, FLIP_SET, FLIP_VALIDATION = "split", "set", "validation"
_FLIP_SPLITS = {"train": Split.TRAIN, "test": Split.TEST}
_TRUTHS = {"true": True, "false": False, "": False, "nan": False}
_NO_NUMBER = "nan"
_UNRESOLVED = "Xx"
"""Residue classes that mean a missing label unless `head.no_label` says otherwise."""


class LabelReader:
    """Reads cells of labels for a task."""

    def __init__(self, task: Task, no_label: str | None) -> None:
        """Choose how cells are read; `no_label` is that of `HeadConfig`."""
        self._task, self._mark = task, no_label
        self._marked_number = _number(no_label) if no_label is not None else None
        self._read_one: Callable[[str], Label] = self._number if task.is_regression else self._class

    def read(self, text: str, sequence: str) -> list[Label]:
        """The labels in one cell: one, or one for each residue of the sequence in the same row.

        Letters that reading leaves out of the sequence, such as gaps, may have a label too. It is left out with them.

        Raises:
            ValueError: the cell cannot be read.
        """
        text = text.strip()
        is_empty = not text or text.lower() == _NO_NUMBER or text == self._mark
        if not self._task.is_of_residues:
            return [None if is_empty else self._read_one(text)]
        letters = sequence.strip()
        kept = residues_of(letters).letter_indices  # indices of the letters that are residues
        if is_empty:
            return [None] * kept.size
        parts = text.split() if self._task.is_regression else list(text)
        if len(parts) == len(letters):
            parts = [parts[index] for index in kept]
        if len(parts) != kept.size:
            what = "numbers, with blanks between them" if self._task.is_regression else "letters"
            raise ValueError(f"{len(parts):,} labels for {kept.size:,} residues; give one for each: {what}")
        return [self._read_one(part) for part in parts]

    def _number(self, text: str) -> Label:
        value = _number(text)
        if value is None or math.isinf(value):
            raise ValueError(
                f"label {quoted(text)} is not a finite number; correct it, remove the row, set head.no_label "
                "to it if it says that there is none, or set head.task to a classification"
            )
        return None if math.isnan(value) or value == self._marked_number else value

    def _class(self, text: str) -> Label:
        if not self._task.is_of_residues:
            return text
        if self._mark is not None:
            return None if text in self._mark else text
        if not text.isalnum():
            raise ValueError(
                f"{text!r} may be a class, or say that a residue has no label; set head.no_label to X for a class, or to "
                f"{'X' + text!r}"
            )
        return None if text in _UNRESOLVED else text


def given_splits(frame: pd.DataFrame, where: Sequence[str]) -> list[Split | None]:
    """The splits that a table gives its rows, None where it leaves one open.

    They are in the column `split`. Without it they are in FLIP's `set` (train, test) and `validation` (True for rows of
    `train` that are for validation).

    Args:
        frame: the table, all cells text.
        where: names of the rows in messages.

    Raises:
        InputError: a cell is no split, or not one of FLIP's.
    """
    if SPLIT in frame:
        return [_split(cell.strip(), row) for cell, row in zip(frame[SPLIT], where, strict=True)]
    truths = frame[FLIP_VALIDATION].tolist() if FLIP_VALIDATION in frame else [""] * len(frame)
    if FLIP_SET in frame:
        cells = zip(frame[FLIP_SET], truths, where, strict=True)
        return [_flip_split(name, truth, row) for name, truth, row in cells]
    is_flips = all(truth.strip().lower() in _TRUTHS for truth in truths)
    if is_flips and (first := next((row for truth, row in zip(truths, where, strict=True) if truth.strip()), "")):
        raise InputError(
            f"{first}: a column {FLIP_VALIDATION} without FLIP's column {FLIP_SET}; name the splits in a column {SPLIT}, or "
            "rename it"
        )
    return [None] * len(frame)


def _split(label: str, where: str) -> Split | None:
    if not label:
        return None
    try:
        return parse_split(label)
    except ConfigError as error:
        raise InputError(f"{where}: {error}, or leave it empty") from error


def _flip_split(name: str, truth: str, where: str) -> Split:
    remedy = f"name the splits in a column {SPLIT}, or rename this one if it means something else"
    split, is_valid = _FLIP_SPLITS.get(name.strip().lower()), _TRUTHS.get(truth.strip().lower())
    if split is None:
        raise InputError(
            f"{where}: {FLIP_SET} is {quoted(name)}; FLIP's column of that name has train and test; {remedy}"
        )
    if is_valid is None:
        raise InputError(
            f"{where}: {FLIP_VALIDATION} is {quoted(truth)}; FLIP's column of that name has True and False; {remedy}"
        )
    if is_valid and split is Split.TEST:
        raise InputError(f"{where}: {FLIP_SET} is test and {FLIP_VALIDATION} is True; a row has one split: {remedy}")
    return Split.VALID if is_valid else split


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
