"""DataFrames to files, the format chosen by suffix."""

import sys
from pathlib import Path

import pandas as pd

from protein_lm.errors import OutputError
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
