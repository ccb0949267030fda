"""Measurements of an assay, in the columns of ProteinGym's tables."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protein_lm.errors import InputError

MEASURED, MEASURED_BINARY = "DMS_score", "DMS_score_bin"
"""Columns of an assay: the measurement, and 1 for the fitter half or part."""
GROUPS = ("UniProt_ID", "coarse_selection_type")
"""Columns of ProteinGym's reference table, protein and selection type, by which its average is formed."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Measurements:
    """Measurements of the N variants of a table."""

    values: Numbers
    """(N,) NaN where a row has no number."""
    is_fit: Numbers
    """(N,) 1 or 0: `DMS_score_bin`, or whether the value is at or above the median of all."""


def read_measurements(frame: pd.DataFrame, path: Path) -> Measurements:
    """Read the measurements of a table with the column `DMS_score`, all cells of which are text.

    Raises:
        InputError: a cell is no finite number, or no 0 or 1.
    """
    values = _numbers(frame, MEASURED, path)
    if MEASURED_BINARY not in frame:
        has_value = np.isfinite(values)
        median = np.median(values[has_value]) if has_value.any() else np.nan
        return Measurements(values, np.where(has_value, (values >= median).astype(float), np.nan))
    is_fit = _numbers(frame, MEASURED_BINARY, path)
    if (wrong := np.flatnonzero(np.isfinite(is_fit) & ~np.isin(is_fit, (0, 1)))).size:
        raise InputError(f"{path}, row {wrong[0] + 1}: {MEASURED_BINARY} is {is_fit[wrong[0]]:g}; it must be 0 or 1")
    return Measurements(values, is_fit)


def _numbers(frame: pd.DataFrame, column: str, path: Path) -> Numbers:
    """(N,) numbers of text cells, NaN for empty ones."""
    numbers = np.full(len(frame), np.nan)
    for row, cell in enumerate(map(str.strip, frame[column]), 1):
        if not cell:
            continue
        with suppress(ValueError):
            numbers[row - 1] = float(cell)
        if not np.isfinite(numbers[row - 1]):
            raise InputError(
                f"{path}, row {row}: {column} {cell[:40]!r} is not a finite number; correct it or empty it"
            )
    return numbers
