"""FASTA header lines: the identifier of one, and what UniProt's headers say about their records, for many at once by numpy.

Format: https://www.uniprot.org/help/fasta-headers
"""

import re

import numpy as np
from numpy.typing import NDArray

from protein_lm.errors import InputError
from protein_lm.io.records import FRAGMENT, REVIEWED, UNREVIEWED, Annotations, Spans

_SPACE = ord(" ")
_EQUALS = ord("=")
_MOST_DIGITS = 10
_CLUSTERS = (b"UniRef50_", b"UniRef90_", b"UniRef100_")
_SINGULAR, _PLURAL = b"(Fragment)", b"(Fragments)"
_FIRST_WORD = re.compile(r"[\x00-\x20]*([^\x00-\x20]+)")
_KNOWLEDGEBASE_WORD = re.compile(r"(?:sp|tr)\|([^|]+)(?:\|(.*))?$", re.DOTALL)


def sequence_id(header: str) -> str:
    """The identifier in a header line without its `>`: a UniProtKB accession, otherwise the first word.

    Raises:
        InputError: it has none.

    >>> sequence_id("tr|A0A009|A0A009_9ACTN Putative kinase"), sequence_id("seq1 made up")
    ('A0A009', 'seq1')
    """
    words = _FIRST_WORD.match(header)
    if not words:
        raise InputError("a header has no identifier; write one after its '>'")
    match = _KNOWLEDGEBASE_WORD.match(words[1])
    return match[1] if match else words[1]


def annotate(
    headers: Spans, words: Spans, is_knowledgebase: NDArray[np.bool_], letters: NDArray[np.uint8]
) -> Annotations:
    """Read the fields of N headers.

    Args:
        headers: the header lines.
        words: the first word of each.
        is_knowledgebase: (N,) whether that word is `sp|...` or `tr|...`.
        letters: the bytes of the text that holds the headers.
    """
    found = Annotations.none(len(headers.starts))
    is_cluster = np.zeros(len(headers.starts), dtype=bool)
    for name in _CLUSTERS:
        is_cluster |= (words.lengths > len(name)) & _follows(letters, words.starts, name)
    fields = _Fields(headers, letters)
    names_end = headers.ends.copy()
    for key, applies, target in (
        (b" OX=", is_knowledgebase, found.taxon_ids),
        (b" TaxID=", is_cluster, found.taxon_ids),
        (b" n=", is_cluster, found.cluster_sizes),
        (b" PE=", is_knowledgebase, found.protein_existence),
    ):
        if applies.any():
            owners, values, starts = fields.numbers(key, applies)
            target[owners] = values.astype(target.dtype)
            if key == b" n=":
                names_end[owners] = starts
    if is_knowledgebase.any():
        owners, starts = fields.starts(b" OS=", is_knowledgebase)
        names_end[owners[::-1]] = starts[::-1]  # the first one ends the name
        is_swiss_prot = letters[words.starts] == ord("s")
        found.flags[is_knowledgebase] = np.where(is_swiss_prot, REVIEWED, UNREVIEWED)[is_knowledgebase]
    found.flags[_is_fragment(letters, headers, names_end)] |= FRAGMENT
    return found


class _Fields:
    """Fields `KEY=value` in headers."""

    def __init__(self, headers: Spans, letters: NDArray[np.uint8]) -> None:
        self._letters, self._ends = letters, headers.ends
        equals = np.flatnonzero(letters == _EQUALS)
        owners = np.searchsorted(headers.starts, equals, side="right") - 1
        inside = (owners >= 0) & (equals < headers.ends[owners])
        self._equals, self._owners = equals[inside], owners[inside]
        self._header_starts = headers.starts

    def starts(self, key: bytes, applies: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Header and offset of each ` KEY=`, after any kind of blank, in the headers (N,) that it applies to."""
        starts = self._equals - (len(key) - 1)
        chosen = applies[self._owners] & (starts >= self._header_starts[self._owners])
        owners, starts = self._owners[chosen], starts[chosen]
        fits = self._letters[starts] <= _SPACE
        for offset, byte in enumerate(key[1:], 1):
            fits &= self._letters[starts + offset] == byte
        return owners[fits], starts[fits]

    def numbers(
        self, key: bytes, applies: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Header, value and offset of the last ` KEY=number` of each header; numbers over 31 bits are left out."""
        owners, starts = self.starts(key, applies)
        values, digits = decimal(self._letters, starts + len(key), self._ends[owners])
        stops = starts + len(key) + digits
        ended = (stops == self._ends[owners]) | (self._letters[np.minimum(stops, self._letters.size - 1)] <= _SPACE)
        fits = (digits > 0) & ended & (values < 2**31)
        owners, values, starts = owners[fits], values[fits], starts[fits]
        last = np.append(owners[1:] != owners[:-1], True) if owners.size else np.zeros(0, dtype=bool)
        return owners[last], values[last], starts[last]


def decimal(
    letters: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers that begin at offsets `starts`, and the digits (up to 10) that each has before its end."""
    values, digits = np.zeros(starts.size, dtype=np.int64), np.zeros(starts.size, dtype=np.int64)
    is_number = np.ones(starts.size, dtype=bool)
    for offset in range(_MOST_DIGITS):
        offsets = starts + offset
        figures = letters[np.minimum(offsets, letters.size - 1)] - np.uint8(ord("0"))
        is_number &= (figures < 10) & (offsets < ends)
        if not is_number.any():
            break
        values = np.where(is_number, values * 10 + figures, values)
        digits += is_number
    return values, digits


def _is_fragment(letters: NDArray[np.uint8], headers: Spans, ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) whether names, which end at `ends`, have the ending `(Fragment)` or `(Fragments)`."""
    ends = ends.copy()
    while (blank := (ends > headers.starts) & (letters[ends - 1] <= _SPACE)).any():
        ends[blank] -= 1
    result = np.zeros(ends.size, dtype=bool)
    candidates = np.flatnonzero((ends > headers.starts) & (letters[ends - 1] == ord(")")))
    for ending in (_SINGULAR, _PLURAL):
        starts = ends[candidates] - len(ending)
        fits = starts >= headers.starts[candidates]
        result[candidates[fits & _follows(letters, np.maximum(starts, 0), ending)]] = True
    return result


def _follows(letters: NDArray[np.uint8], starts: NDArray[np.int64], word: bytes) -> NDArray[np.bool_]:
    """(N,) whether the text has this word at each offset."""
    fits = np.ones(starts.size, dtype=bool)
    for offset, byte in enumerate(word):
        fits &= letters[np.minimum(starts + offset, letters.size - 1)] == byte
        if not fits.any():
            break
    return fits
