"""What a sequence file is read into: one record for a person, one block of records for a machine."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protein_lm.alphabet import decode
from protein_lm.data.headers import Header, parse_header, sequence_id


@dataclass(frozen=True, slots=True, eq=False)
class SequenceRecord:
    """One protein of a sequence file."""

    header: str
    """The header line without its `>`."""
    tokens: NDArray[np.uint8]
    """Token ids (length,) of the residues, without special tokens, read-only."""
    line: int
    """Number of the header line in its file, from 1."""

    @property
    def sequence_id(self) -> str:
        """UniProtKB accession, otherwise the header's first word."""
        return sequence_id(self.header)

    @property
    def fields(self) -> Header:
        """What a UniProt or UniRef header says: name, organism, taxon, gene, evidence, cluster size and so on."""
        return parse_header(self.header)

    @property
    def sequence(self) -> str:
        """Residue letters, J read as X."""
        return decode(self.tokens)

    def __len__(self) -> int:
        return self.tokens.size


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """N pieces of a text, [start, end) each."""

    text: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.ends - self.starts

    def cut(self) -> list[bytes]:
        """The pieces themselves."""
        text = self.text
        return [text[start:end] for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True)]

    def join(self) -> NDArray[np.uint8]:
        """The bytes of all pieces back to back: quicker than cutting where they are short and many."""
        before = np.cumsum(self.lengths) - self.lengths
        return np.frombuffer(self.text, dtype=np.uint8)[
            np.repeat(self.starts - before, self.lengths) + np.arange(self.lengths.sum())
        ]


@dataclass(frozen=True, slots=True, eq=False)
class RecordBlock:
    """Consecutive records of a file, laid out so that numpy can walk over them. N is their number."""

    headers: Spans
    """N header lines without `>`, valid UTF-8."""
    sequence_ids: Spans
    """N identifiers, `headers.sequence_id` of the headers."""
    lines: NDArray[np.int64]
    """(N,) numbers of the header lines in the file, from 1."""
    tokens: bytes
    """Token ids of all records, one byte each, back to back."""
    lengths: NDArray[np.int64]
    """(N,) residues of each record."""
    has_ambiguous: NDArray[np.bool_]
    """(N,) whether a record had one of B, J, O, U, X, Z."""
    changes: Counter[str]
    """Residues that were altered or removed: `lower_case`, `gaps`, `final_stops`, `j_to_x`, `bouz_to_x`."""

    def __len__(self) -> int:
        return self.lengths.size

    def sequences(self) -> list[bytes]:
        """Token ids of each record."""
        ends = np.cumsum(self.lengths)
        return Spans(self.tokens, ends - self.lengths, ends).cut()
