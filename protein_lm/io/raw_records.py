"""Records as a format's parser finds them. Residues are checked and faults named in the same way for all formats."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protein_lm.alphabet import ResiduePolicy
from protein_lm.choices import OnError
from protein_lm.errors import InputError
from protein_lm.io.records import Annotations, Memberships, RecordBlock, Spans
from protein_lm.io.residues import (
    clean,
    describe_letter,
    encode_letters,
    first_ambiguous,
    first_illegal,
    position_of,
)

_SHOWN_LETTERS = 40


@dataclass(frozen=True, slots=True)
class RecordMark:
    """The mark between records, which is a fault inside a line of residues: the line break before it is missing."""

    pattern: re.Pattern[bytes]
    fault: str


@dataclass(slots=True, eq=False)
class RawRecords:
    """N consecutive records of a text."""

    path: Path
    sequence_ids: Spans
    lines: NDArray[np.int64]
    """(N,) lines where records begin."""
    bodies: Spans
    """Their residue letters, with `layout` between them."""
    body_lines: NDArray[np.int64]
    """(N,) lines where bodies begin."""
    num_layout: NDArray[np.int64]
    """(N,) bytes of `layout` in the bodies."""
    annotations: Annotations
    memberships: Memberships | None = None
    """Memberships in the requested families; None if the format does not tell, or none were requested."""
    layout: bytes = b"\n"
    """Bytes of a body that are not letters."""
    mark: RecordMark | None = None
    """The mark between records, if a line break can be missing before it."""
    faults: dict[int, str] = field(default_factory=dict)
    """Faults of records other than those of residues, by record."""

    def finish(self, policy: ResiduePolicy, on_error: OnError) -> RecordBlock:
        """Make token ids of the letters.

        Raises:
            InputError: a record is at fault, and `on_error` is STOP.
        """
        codes = encode_letters(b"".join(self.bodies.cut()), self.layout)
        residues = clean(codes, self.bodies.lengths - self.num_layout, policy)
        faulty = (residues.lengths == 0) | residues.is_illegal
        if policy is ResiduePolicy.ERROR:
            faulty |= residues.has_ambiguous
        faulty[list(self.faults)] = True
        if faulty.any() and on_error is OnError.STOP:  # the first in the file, however it was cut into blocks
            record = int(np.argmax(faulty))
            raise InputError(self._fault(record, is_empty=bool(residues.lengths[record] == 0)))
        block = RecordBlock(
            sequence_ids=self.sequence_ids,
            lines=self.lines,
            tokens=residues.tokens,
            lengths=residues.lengths,
            has_ambiguous=residues.has_ambiguous,
            changes=residues.changes,
            annotations=self.annotations,
            memberships=self.memberships,
        )
        return block.without(faulty) if faulty.any() else block

    def _fault(self, record: int, *, is_empty: bool) -> str:
        if (fault := self.faults.get(record)) is not None:
            return self._name(record, self.lines[record]) + fault
        if is_empty:
            return self._name(record, self.lines[record]) + "no residues; remove the record or add its sequence"
        letters = self.bodies.text[self.bodies.starts[record] : self.bodies.ends[record]]
        codes = encode_letters(letters, self.layout)
        is_illegal = clean(codes, np.array([len(codes)]), ResiduePolicy.KEEP).is_illegal[0]
        text = letters.decode("utf-8", "surrogateescape")
        index = first_illegal(text) if is_illegal else first_ambiguous(text)
        line = self.body_lines[record] + text.count("\n", 0, index)
        shown = text[text.rfind("\n", 0, index) + 1 :].partition("\n")[0]
        if is_illegal and self.mark is not None and self.mark.pattern.search(shown.encode("utf-8", "surrogateescape")):
            return self._name(record, line) + self.mark.fault
        return self._name(record, line) + _letter_fault(text, index, is_illegal)

    def _name(self, record: int, line: int) -> str:
        ids = self.sequence_ids
        name, _, _ = ids.text[ids.starts[record] : ids.ends[record]].decode("utf-8", "replace").partition(" ")
        return (
            f"{self.path}, line {line}, sequence {name[:_SHOWN_LETTERS]}: " if name else f"{self.path}, line {line}: "
        )


def _letter_fault(text: str, index: int, is_illegal: bool) -> str:
    if not is_illegal:
        where = f"{text[index]!r} at position {position_of(text, index)}"
        return f"ambiguous residue {where}, refused by the residue policy; choose keep, to-x or drop"
    remedy = "cut the sequence there" if text[index] == "*" else "correct the sequence"
    return f"{describe_letter(text, index)}; {remedy} or remove the record"
