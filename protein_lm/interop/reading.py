"""ESM-2 on disk, in any of its forms."""

from pathlib import Path

from protein_lm.checkpoint.foreign import is_transformers, part_of_folder
from protein_lm.errors import ModelError
from protein_lm.interop.esm2 import Converted
from protein_lm.interop.esm_directory import read_esm_directory
from protein_lm.interop.fair_esm import read_fair_esm


def is_file_of_others(path: Path) -> bool:
    """Whether `path` is a file or a directory that another library may have written, not a model directory of ours."""
    return path.is_file() or is_transformers(path)


def read_esm2(path: Path) -> Converted:
    """Read the model in a fair-esm checkpoint or a Hugging Face directory.

    Raises:
        ModelError: as `read_fair_esm` and `read_esm_directory`.
    """
    if not path.is_file():
        return read_esm_directory(path)
    if (part := part_of_folder(path)) is not None:
        raise ModelError(part)
    return read_fair_esm(path)
