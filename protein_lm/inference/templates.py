"""Templates: FASTA in which `_` marks residues to fill in."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from Bio.SeqIO.FastaIO import SimpleFastaParser
from numpy.typing import NDArray

from protein_lm import alphabet
from protein_lm.errors import InputError
from protein_lm.files.sources import Source
from protein_lm.files.text import as_utf8, unix_lines
from protein_lm.io.headers import sequence_id
from protein_lm.io.residues import read_residues

MARK = "_"
"""Letter of a residue to fill in."""


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    """A protein with residues to fill in."""

    sequence_id: str
    residues: NDArray[np.uint8]
    """(length,) token ids, <mask> where a residue is to be filled in."""

    @property
    def positions(self) -> NDArray[np.int64]:
        """(K,) indices to fill in, from 0, ascending."""
        return np.flatnonzero(self.residues == alphabet.MASK)


def read_templates(path: Path) -> Iterator[Template]:
    """Read templates from a FASTA file, plain or compressed, or `-`. Letters are treated as in sequence files.

    Raises:
        InputError: the file cannot be read or is not FASTA, an identifier occurs twice, or a sequence has nothing to fill in
            or other characters than residue letters and `_`.
    """
    with Source(path) as source:
        try:
            text = b"".join(unix_lines(as_utf8(source.blocks(), source.shown))).decode("utf-8-sig").lstrip()
        except UnicodeDecodeError as error:
            raise InputError(f"{source.shown} is no text (byte {error.start:,}); give FASTA") from error
    while text.startswith("#"):  # comments, as a3m begins with
        text = text.partition("\n")[2].lstrip()
    if not text.startswith(">"):
        raise InputError(f"{source.shown} begins with no header; give FASTA with {MARK} for each residue to fill in")
    seen: set[str] = set()
    for number, (header, letters) in enumerate(SimpleFastaParser(io.StringIO(text)), 1):
        name = sequence_id(header) if header.strip() else ""
        where = f"{source.shown}, sequence {name or number}"
        if not name or name in seen:
            raise InputError(
                f"{where}: {'an identifier that was there before' if name else 'no identifier'}; give it its own"
            )
        seen.add(name)
        yield Template(name, _residues(letters, where))


def _residues(letters: str, where: str) -> NDArray[np.uint8]:
    if ">" in letters:
        raise InputError(f"{where}: a header begins inside one of its lines; put a line break before its '>'")
    if MARK not in letters:
        raise InputError(f"{where}: nothing to fill in; write {MARK} for each residue that is wanted")
    found = read_residues(
        letters.replace(MARK, "X"), where, f"write residue letters, and {MARK} for residues to fill in"
    )
    is_marked = np.array([letter == MARK for letter in letters], dtype=bool)
    return np.where(is_marked[found.letter_indices], np.uint8(alphabet.MASK), found.tokens)
