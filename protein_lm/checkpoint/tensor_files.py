"""Files of tensors (safetensors). Only plain files are read, and their header is checked first."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from protein_lm.errors import ModelError, OutputError, named
from protein_lm.files.output import new_file_mode
from protein_lm.files.plain_files import check_plain


class Header(NamedTuple):
    """Shape and type of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: str
    """By safetensors' name: F32, BF16, I64 and so on."""


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        path.chmod(new_file_mode())  # the library lets nobody but its user read it
    except SafetensorError as error:  # the library hides the system's error number in its text
        raise OutputError(f"cannot write {path.name}: {error}; is the disk full?") from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        ModelError: missing, damaged, or no plain file.
    """
    read_headers(path)
    return load_file(path)


def read_headers(path: Path) -> dict[str, Header]:
    """Read shapes and types of the tensors in a file, and check that its size fits; no tensor is read.

    Raises:
        ModelError: as `load_tensors`.
    """
    try:
        check_plain(path)
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Header(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent}: incomplete model directory, {path.name} is missing") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: damaged, not a readable safetensors file ({error})") from error


def check_floating(found: Mapping[str, Header], path: Path) -> None:
    """Refuse weights of another type than floating-point numbers.

    Raises:
        ModelError: a weight has another type.
    """
    for name, header in found.items():
        if not header.dtype.startswith(("F", "BF")):
            raise ModelError(f"{path}: weight {named(name)} is of type {header.dtype}; expected floating-point numbers")


def check_fit(expected: Mapping[str, Tensor], found: Mapping[str, Header], path: Path) -> None:
    """Compare the tensors of a file with the weights to fill.

    Raises:
        ModelError: a weight is missing, has another shape, is no floating-point number, or belongs to another model.
    """
    for name, tensor in expected.items():
        if name not in found:
            raise ModelError(f"{path}: weight {name} is missing")
        if found[name].shape != tuple(tensor.shape):
            raise ModelError(
                f"{path}: weight {name} has shape {found[name].shape}, the config asks for {tuple(tensor.shape)}"
            )
    check_floating(found, path)
    if unknown := sorted(found.keys() - expected.keys()):
        raise ModelError(f"{path}: weight {named(unknown[0])} does not belong to this model")
