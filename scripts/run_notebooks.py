"""Execute the notebooks, all or those named, and save them with what they show: python scripts/run_notebooks.py [NOTEBOOK...]

Each runs in an empty folder, and is saved only if it runs through.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

from protein_lm.files.output import new_file

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
LIMIT_SECONDS = 600
"""For one cell, on a slow and busy machine."""


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook at `path` with fresh outputs, its current folder being `folder`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(
        notebook, timeout=LIMIT_SECONDS, resources=resources, record_timing=False, coalesce_streams=True
    ).execute()
    return notebook


def main() -> None:
    """Run them one after the other."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("0*.ipynb")):
        start = time.monotonic()
        with TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        notebook.metadata["language_info"] = {"name": "python"}  # without the version that it ran on
        with new_file(path, replace=True) as partial:
            nbformat.write(notebook, partial)
        print(f"{path.name}: {time.monotonic() - start:.0f} s, {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
