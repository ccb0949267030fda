"""Checksums of the files that a run writes into a folder."""

import json
from pathlib import Path

from protein_lm.checkpoint.card import CARD
from protein_lm.errors import ModelError, quoted
from protein_lm.files.output import checksum
from protein_lm.files.plain_files import check_plain, is_plain_name, read_json

CHECKSUMS = "checksums.json"


def write_checksums(folder: Path) -> None:
    """Record the checksums of all files in a folder, except the card, which people may edit."""
    sums = {path.name: checksum(path) for path in sorted(folder.iterdir()) if path.name != CARD}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def check_files(path: Path) -> None:
    """Compare a folder's files with the checksums that `write_checksums` recorded.

    Raises:
        ModelError: a file, or the record itself, is missing or damaged; the first one is named.
    """
    try:
        sums = dict(read_json(path / CHECKSUMS))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: incomplete, {CHECKSUMS} is missing") from error
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{path / CHECKSUMS}: damaged ({error})") from error
    for name, expected in sums.items():
        if not is_plain_name(name):
            raise ModelError(f"{path / CHECKSUMS}: damaged, it names {quoted(name)}, which is no file of this folder")
        try:
            check_plain(path / name)
            found = checksum(path / name)
        except OSError as error:
            raise ModelError(f"{path}: incomplete, {name} cannot be read ({error.strerror})") from error
        if found != expected:
            raise ModelError(f"{path / name}: damaged, its checksum is {found} instead of {quoted(expected)}")
