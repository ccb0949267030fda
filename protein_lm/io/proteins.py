"""Proteins as Python users give them -> records: a string, several strings, a mapping of names, or a sequence file."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from protein_lm.errors import InputError, quoted
from protein_lm.files.sources import STANDARD_INPUT
from protein_lm.io.readers import read_records
from protein_lm.io.records import SequenceRecord
from protein_lm.io.residues import read_residues

Proteins = str | Path | Sequence[str] | Mapping[str, str]


def records(proteins: Proteins) -> Iterator[SequenceRecord]:
    """One record for each protein. Letters are treated as in sequence files, and identifiers are distinct.

    Raises:
        InputError: a string that is no protein sequence, a file that cannot be read, or an identifier occurs twice in it.

    >>> [(record.sequence_id, record.sequence) for record in records(["MKT", "mk-j*"])]
    [('1', 'MKT'), ('2', 'MKX')]
    """
    if isinstance(proteins, Path):
        return read_distinct(proteins)
    if isinstance(proteins, str):
        if is_path(proteins):
            return read_distinct(Path(proteins))
        proteins = [proteins]
    if not isinstance(proteins, Mapping):
        proteins = {str(number): text for number, text in enumerate(proteins, 1)}
    return (_record(name, text, number) for number, (name, text) in enumerate(proteins.items(), 1))


def is_path(text: str | Path) -> bool:
    """Whether `text` names a file: a path, or a string with a dot or a slash in it."""
    return isinstance(text, Path) or any(mark in text for mark in "./\\")


def read_distinct(path: Path) -> Iterator[SequenceRecord]:
    """The records of a sequence file, whose identifiers must be distinct.

    Raises:
        InputError: as `read_records` and `without_repeats`.
    """
    shown = "standard input" if path == STANDARD_INPUT else path
    return without_repeats(read_records(path), f"{shown}, ")


def without_repeats(records: Iterable[SequenceRecord], source: str = "") -> Iterator[SequenceRecord]:
    """The same records, after a check that identifiers are distinct.

    Args:
        records: records of one source.
        source: text before the line number in a message.

    Raises:
        InputError: a record has the identifier of one before it.
    """
    lines: dict[str, int] = {}
    for record in records:
        if record.sequence_id in lines:
            raise named_twice(record.sequence_id, f"{source}line {record.line}", f"line {lines[record.sequence_id]}")
        lines[record.sequence_id] = record.line
        yield record


def named_twice(identifier: str, where: str, earlier: str) -> InputError:
    """The error for an identifier that occurs earlier in the same source too."""
    return InputError(
        f"{where}: sequence {identifier} is on {earlier} too, and results are found by identifiers; rename or remove one of "
        "them"
    )


def _record(name: str, text: str, number: int) -> SequenceRecord:
    if is_path(text):
        raise InputError(
            f"sequence {name}: {quoted(str(text))} is no protein but a path; give it alone, not among sequences"
        )
    return SequenceRecord(name, read_residues(text, f"sequence {name}").tokens, number)
