"""Records of a sequence file: one by one, or in blocks that numpy can work on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protein_lm.alphabet import decode
from protein_lm.native.reader import reader


@dataclass(frozen=True, slots=True, eq=False)
class SequenceRecord:
    """One protein of a sequence file."""

    sequence_id: str
    """UniProtKB accession, otherwise the first word of the header."""
    tokens: NDArray[np.uint8]
    """Token ids (length,) of the residues, without special tokens, read-only."""
    line: int
    """Number of its first line in the file, from 1."""

    @property
    def sequence(self) -> str:
        """Residue letters, J read as X."""
        return decode(self.tokens)

    def __len__(self) -> int:
        return self.tokens.size


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """N pieces of a text, each from `start` up to `end`."""

    text: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> "Spans":
        """Join pieces into a text."""
        return cls.back_to_back(b"".join(pieces), np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces)))

    @classmethod
    def back_to_back(cls, text: bytes, lengths: NDArray[np.int64]) -> "Spans":
        """Split a text into N pieces of these lengths (N,), in bytes."""
        ends = np.cumsum(lengths)
        return cls(text, ends - lengths, ends)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.ends - self.starts

    def cut(self) -> list[bytes]:
        """The bytes of each piece."""
        text = self.text
        return [text[start:end] for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True)]

    def select(self, keep: NDArray[np.bool_]) -> "Spans":
        """The pieces to keep."""
        return Spans(self.text, self.starts[keep], self.ends[keep])

    def join(self) -> NDArray[np.uint8]:
        """The bytes of all pieces back to back; faster than `cut` for many short pieces."""
        before = np.cumsum(self.lengths) - self.lengths
        return np.frombuffer(self.text, dtype=np.uint8)[
            np.repeat(self.starts - before, self.lengths) + np.arange(self.lengths.sum())
        ]


FRAGMENT, REVIEWED, UNREVIEWED = 1, 2, 4
"""Bits of `Annotations.flags`; only records of Swiss-Prot are reviewed, and only those of TrEMBL unreviewed."""


class Annotated(Protocol):
    """Annotations of one entry."""

    taxon_id: int
    cluster_size: int
    protein_existence: int
    flags: int


@dataclass(frozen=True, slots=True, eq=False)
class Annotations:
    """Annotations of N records; 0 where a record does not have one."""

    taxon_ids: NDArray[np.int32]
    """(N,) NCBI taxonomy identifiers; for UniRef clusters the lowest common taxon."""
    cluster_sizes: NDArray[np.int32]
    """(N,) members of a UniRef cluster."""
    protein_existence: NDArray[np.uint8]
    """(N,) UniProtKB's level of evidence, 1 (seen as protein) to 5 (uncertain)."""
    flags: NDArray[np.uint8]
    """(N,) bits FRAGMENT, REVIEWED, UNREVIEWED."""

    @classmethod
    def none(cls, size: int) -> "Annotations":
        """Annotations of `size` records without any."""
        numbers = np.zeros(size, dtype=np.int32)
        return cls(numbers, numbers.copy(), np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8))

    @classmethod
    def of(cls, entries: Sequence["Annotated"]) -> "Annotations":
        """Annotations of entries that were parsed one by one."""
        return cls(
            np.array([entry.taxon_id for entry in entries], dtype=np.int32),
            np.array([entry.cluster_size for entry in entries], dtype=np.int32),
            np.array([entry.protein_existence for entry in entries], dtype=np.uint8),
            np.array([entry.flags for entry in entries], dtype=np.uint8),
        )

    def columns(self) -> tuple[NDArray, ...]:
        """The columns, in the order of the constructor."""
        return self.taxon_ids, self.cluster_sizes, self.protein_existence, self.flags

    def select(self, keep: NDArray[np.bool_]) -> "Annotations":
        """Annotations of the records to keep."""
        return Annotations(*selected(self.columns(), keep))


@dataclass(frozen=True, slots=True, eq=False)
class Memberships:
    """Memberships of N records in families, as K pairs; a record may belong to several families."""

    records: NDArray[np.int64]
    """(K,) indices of records."""
    families: NDArray[np.int64]
    """(K,) indices of families."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, int]]) -> "Memberships":
        """Memberships from pairs of record and family."""
        columns = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return cls(columns[:, 0], columns[:, 1])

    def select(self, keep: NDArray[np.bool_]) -> "Memberships":
        """Memberships of the records to keep (N,)."""
        kept = keep[self.records]
        return Memberships((np.cumsum(keep) - 1)[self.records[kept]], self.families[kept])


def selected(columns: Sequence[NDArray], keep: NDArray[np.bool_]) -> list[NDArray]:
    """Select the values to keep (N,) from columns (N, ...), whose values have 1, 4, 8 or 16 bytes."""
    return list(columns) if keep.all() else reader().select(columns, keep)


def kept(values: NDArray[np.uint8], lengths: NDArray[np.int64], keep: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Copy the pieces to keep (N,); pieces, of `lengths` (N,) bytes, lie back to back in `values`."""
    target = np.empty_like(values)
    return target[: reader().keep(values, lengths, keep, target)]


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """N consecutive records of a file as columns, the form in which a store takes them."""

    tokens: NDArray[np.uint8]
    """Token ids back to back."""
    lengths: NDArray[np.int64]
    """(N,) residues."""
    has_ambiguous: NDArray[np.bool_]
    """(N,) whether a record had one of B, J, O, U, X, Z."""
    ids: NDArray[np.uint8]
    """UTF-8 identifiers back to back."""
    id_lengths: NDArray[np.int64]
    """(N,) bytes."""
    id_hashes: NDArray[np.uint64]
    """(N,) `hashing.hash_letters` of the identifiers."""
    fingerprints: NDArray[np.uint64]
    """(N, 2) `duplicates.fingerprints` of the sequences."""
    annotations: Annotations
    changes: Counter[str]
    """As in `RecordBlock`, as all below."""
    memberships: Memberships | None = None
    num_faulty: int = 0

    def select(self, keep: NDArray[np.bool_]) -> "Columns":
        """The records to keep (N,)."""
        if keep.all():
            return self
        columns = self.lengths, self.has_ambiguous, self.id_lengths, self.id_hashes, self.fingerprints
        lengths, has_ambiguous, id_lengths, id_hashes, prints, *annotations = selected(
            (*columns, *self.annotations.columns()), keep
        )
        return Columns(
            tokens=kept(self.tokens, self.lengths, keep),
            lengths=lengths,
            has_ambiguous=has_ambiguous,
            ids=kept(self.ids, self.id_lengths, keep),
            id_lengths=id_lengths,
            id_hashes=id_hashes,
            fingerprints=prints,
            annotations=Annotations(*annotations),
            changes=self.changes,
            memberships=self.memberships and self.memberships.select(keep),
            num_faulty=self.num_faulty,
        )


@dataclass(frozen=True, slots=True, eq=False)
class RecordBlock:
    """N consecutive records of a file, laid out for numpy."""

    sequence_ids: Spans
    """N identifiers, valid UTF-8."""
    lines: NDArray[np.int64]
    """(N,) numbers of the lines where records begin, from 1."""
    tokens: bytes
    """Token ids of all records, one byte each, back to back."""
    lengths: NDArray[np.int64]
    """(N,) residues of each record."""
    has_ambiguous: NDArray[np.bool_]
    """(N,) whether a record had one of B, J, O, U, X, Z."""
    changes: Counter[str]
    """Residues that were altered or removed: `lower_case`, `gaps`, `final_stops`, `j_to_x`, `bouz_to_x`."""
    annotations: Annotations
    """Annotations of the records."""
    memberships: Memberships | None = None
    """Memberships in the requested families; None if the format does not tell, or none were requested."""
    num_faulty: int = 0
    """Records at fault that were left out."""

    def __len__(self) -> int:
        return self.lengths.size

    def sequences(self) -> list[bytes]:
        """Token ids of each record."""
        return Spans.back_to_back(self.tokens, self.lengths).cut()

    def without(self, faulty: NDArray[np.bool_]) -> "RecordBlock":
        """The block without its faulty records (N,), which are counted."""
        keep = ~faulty
        return RecordBlock(
            sequence_ids=self.sequence_ids.select(keep),
            lines=self.lines[keep],
            tokens=b"".join(compress(self.sequences(), keep)),
            lengths=self.lengths[keep],
            has_ambiguous=self.has_ambiguous[keep],
            changes=self.changes,
            annotations=self.annotations.select(keep),
            memberships=self.memberships and self.memberships.select(keep),
            num_faulty=self.num_faulty + int(faulty.sum()),
        )
