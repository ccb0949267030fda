"""DataFrames to files and back, the format chosen by suffix."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from protein_lm.errors import InputError, OutputError
from protein_lm.output import check_absent, new_file

SUFFIXES = (".csv", ".tsv", ".parquet")


def check_table_output(path: str) -> None:
    """Refuse a table output early, before the work that fills it: `-` is standard output.

    Raises:
        OutputError: an unknown suffix, or a file that exists.
    """
    if path == "-":
        return
    if Path(path).suffix not in SUFFIXES:
        raise OutputError(
            f"{path}: unknown table format; end it in {', '.join(SUFFIXES)}, or give - for standard output"
        )
    check_absent(Path(path))


def write_table(table: pd.DataFrame, path: str) -> None:
    """Write a table to .csv, .tsv or .parquet, or as CSV to standard output for `-`.

    Raises:
        OutputError: as `check_table_output`, or the file cannot be written.
    """
    check_table_output(path)
    if path == "-":
        table.to_csv(sys.stdout, index=False)
        return
    with new_file(Path(path)) as partial:
        if partial.suffix == ".parquet":
            table.to_parquet(partial, index=False)
        else:
            table.to_csv(partial, index=False, sep="\t" if partial.suffix == ".tsv" else ",")


def read_text_table(path: Path) -> pd.DataFrame:
    """Read a table with a heading; all cells are text, and missing ones empty.

    Raises:
        InputError: the file does not exist, has another suffix, or cannot be read.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: a table ends in {', '.join(SUFFIXES)}; rename or convert it")
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
            return frame.astype(object).where(frame.notna(), "").map(_text)
        separator = "\t" if path.suffix == ".tsv" else ","
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig").fillna("")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the name") from error
    except (OSError, ValueError) as error:  # pandas' and Arrow's errors of parsing are of these classes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} cannot be read as a table: {reason}; correct it") from error


def _text(value: Any) -> str:
    """A cell of a Parquet table as a CSV would have it; a list of numbers becomes numbers between blanks."""
    return " ".join(map(str, value)) if isinstance(value, np.ndarray | list) else str(value)
