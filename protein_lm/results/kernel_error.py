"""Files of `kernel-error`: the table, and a figure for the error of the matrix and of the output."""

from pathlib import Path

import pandas as pd

from protein_lm.files.output import new_directory
from protein_lm.plots.kernel_error import kernel_errors
from protein_lm.plots.saving import save_figure


def write_kernel_error(table: pd.DataFrame, output: Path, *, figure_format: str = ".png") -> None:
    """Write the table of `analysis.kernel_error` and its figures into a new folder.

    Raises:
        OutputError: `output` exists or cannot be written.
    """
    with new_directory(output) as folder:
        table.to_csv(folder / "kernel_error.csv", index=False)
        for error in ("matrix_error", "output_error"):
            save_figure(kernel_errors(table, error=error), folder / f"{error}{figure_format}")
