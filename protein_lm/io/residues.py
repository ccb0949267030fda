"""Letters -> token ids, by one residue policy for single sequences and for many at once in sequence files.

The policy leaves out blanks, line breaks and gaps (`-`, `.`), and then a final `*`. Lower case is raised, and J becomes X.
All other characters that are not residue letters are refused.

Letters first become codes, one byte each: token ids for usual letters, larger numbers for letters to look at again.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protein_lm.alphabet import (
    ENCODING,
    FIRST_RESIDUE,
    GAPS,
    ILLEGAL,
    NUM_RESIDUES,
    NUM_STANDARD,
    TOKENS,
    ResiduePolicy,
)
from protein_lm.errors import InputError

FIRST_AMBIGUOUS = FIRST_RESIDUE + NUM_STANDARD
X = TOKENS.index("X")
J = FIRST_RESIDUE + NUM_RESIDUES
_LOWER = 32
"""Added to the code of a lower-case letter."""
_GAP, _STOP, _LAYOUT = 64, 65, 66
_DELETE, _FIRST_SURROGATE, _LAST_SURROGATE = 0x7F, 0xD800, 0xDFFF
_LAYOUT_BYTES = b" \t\v\f\r\n"


def _code_table() -> NDArray[np.uint8]:
    table = ENCODING.copy()
    table[ord("J")] = J
    lower = np.arange(ord("a"), ord("z") + 1)
    table[lower] = table[lower - 32] + _LOWER
    table[list(GAPS.encode())] = _GAP
    table[ord("*")] = _STOP
    table[list(_LAYOUT_BYTES)] = _LAYOUT
    return table


CODES = _code_table()
"""Byte value -> code: token ids below `FIRST_AMBIGUOUS`, then B, J, O, U, X, Z up to `J`, then other characters."""
_TRANSLATION = CODES.tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class Residues:
    """Residues of one sequence."""

    tokens: NDArray[np.uint8]
    """(length,) token ids, read-only."""
    letter_indices: NDArray[np.int64]
    """(length,) index of each residue's letter in the text."""


def residues_of(text: str) -> Residues:
    """Read one sequence by the residue policy; B, O, U, X, Z keep their tokens.

    Raises:
        ValueError: there is no residue, or a character that is none, named with its position.

    >>> found = residues_of("mk-j*")
    >>> found.tokens.tolist(), found.letter_indices.tolist()
    ([20, 15, 24], [0, 1, 3])
    """
    codes = _codes_of(text)
    if codes.size and codes.max() < J:  # tokens as they are
        codes.flags.writeable = False
        return Residues(codes, np.arange(codes.size))
    residues = clean(codes.tobytes(), np.array([codes.size]), ResiduePolicy.KEEP)
    if residues.is_illegal[0]:
        raise ValueError(describe_letter(text, first_illegal(text)))
    length = int(residues.lengths[0])
    if not length:
        raise ValueError("no residues")
    kept = np.flatnonzero((codes != _GAP) & (codes != _LAYOUT))[:length]  # cut off: a final stop
    return Residues(np.frombuffer(residues.tokens, dtype=np.uint8), kept)


def read_residues(text: str, where: str, remedy: str = "correct the sequence or remove it") -> Residues:
    """Read one sequence of a user's file or call, as `residues_of`.

    Raises:
        InputError: names `where` (file and record), the fault, and the remedy.

    >>> read_residues("MK1", "a.csv, row 7")
    Traceback (most recent call last):
    protein_lm.errors.InputError: a.csv, row 7: '1' at position 3 is not a residue letter; correct the sequence or remove it
    """
    try:
        return residues_of(text)
    except ValueError as error:
        raise InputError(f"{where}: {error}; {remedy}") from error


def _codes_of(text: str) -> NDArray[np.uint8]:
    """A code for each character."""
    return CODES[np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)]


@dataclass(frozen=True, slots=True, eq=False)
class CleanResidues:
    """Token ids of N sequences back to back, and what was changed."""

    tokens: bytes
    lengths: NDArray[np.int64]
    has_ambiguous: NDArray[np.bool_]
    """(N,) whether a sequence had one of B, J, O, U, X, Z."""
    changes: Counter[str]
    """As in `records.RecordBlock`."""
    is_illegal: NDArray[np.bool_]
    """(N,) whether a sequence has a character that is not a residue."""


def encode_letters(letters: bytes, layout: bytes = b"\n") -> bytes:
    r"""One code per letter; the bytes of `layout` are left out.

    >>> list(encode_letters(b"ML\nX"))
    [20, 4, 24]
    """
    return letters.translate(_TRANSLATION, layout)


def clean(codes: bytes, lengths: NDArray[np.int64], policy: ResiduePolicy) -> CleanResidues:
    """Apply the residue policy to the codes of N sequences of the given lengths; `DROP` and `ERROR` only mark them."""
    tokens = np.frombuffer(codes, dtype=np.uint8)
    unusual = np.flatnonzero(tokens >= FIRST_AMBIGUOUS)
    has_ambiguous, is_illegal = np.zeros(lengths.size, dtype=bool), np.zeros(lengths.size, dtype=bool)
    if not unusual.size:
        return CleanResidues(codes, lengths, has_ambiguous, Counter(), is_illegal)
    tally = np.bincount(tokens[unusual], minlength=256)
    changes = Counter(lower_case=int(tally[_LOWER:_GAP].sum()), gaps=int(tally[_GAP]))
    if tally[J + 1 :].any():
        tokens, lengths = _remove(tokens, lengths, (tokens == _GAP) | (tokens == _LAYOUT))
        stops = _final_stops(tokens, lengths)
        changes["final_stops"] = int(stops.sum())
        tokens, lengths = _remove(tokens, lengths, stops)
        tokens = np.where((tokens >= _LOWER) & (tokens < _GAP), tokens - np.uint8(_LOWER), tokens)
        unusual = np.flatnonzero(tokens >= FIRST_AMBIGUOUS)
    values = tokens[unusual]
    owners = np.searchsorted(np.cumsum(lengths), unusual, side="right")
    has_ambiguous[owners[values <= J]] = True
    is_illegal[owners[values > J]] = True
    to_x = values == J
    changes["j_to_x"] = int(to_x.sum())
    if policy is ResiduePolicy.TO_X:
        changes["bouz_to_x"] = int(((values > X) & (values < J)).sum())
        to_x = values <= J
    if to_x.any():
        tokens = tokens.copy()
        tokens[unusual[to_x]] = X
    return CleanResidues(tokens.tobytes(), lengths, has_ambiguous, +changes, is_illegal)


def first_illegal(text: str) -> int:
    """Index in a sequence's text of the first illegal character, such as a stop inside it."""
    codes = _codes_of(text)
    kept = np.flatnonzero((codes != _GAP) & (codes != _LAYOUT))
    inner_stop = (codes == _STOP) & (np.arange(codes.size) < kept[-1])
    return int(np.argmax(inner_stop | (codes == ILLEGAL)))


def first_ambiguous(text: str) -> int:
    """Index in a sequence's text of the first B, J, O, U, X or Z."""
    codes = _codes_of(text.upper())
    return int(np.argmax((codes >= FIRST_AMBIGUOUS) & (codes <= J)))


def position_of(text: str, index: int) -> int:
    """Position, from 1, of the letter at an index of a sequence's text. Gaps count; blanks and line breaks do not."""
    return int(np.count_nonzero(_codes_of(text[: index + 1]) != _LAYOUT))


def describe_letter(text: str, index: int) -> str:
    """Describe the faulty letter at an index of a text. Lone surrogates are bytes that are not UTF-8.

    >>> describe_letter("MK T\u00c9", 4)
    "'É' at position 4 is not a residue letter"
    """
    letter, position = text[index], position_of(text, index)
    if letter == "*":
        return f"a stop '*' at position {position}, before its end"
    number = ord(letter)
    is_byte = number < ord(" ") or number == _DELETE or _FIRST_SURROGATE <= number <= _LAST_SURROGATE
    shown = f"byte 0x{number & 0xFF:02X}" if is_byte else repr(letter)
    return f"{shown} at position {position} is not a residue letter"


def _remove(
    tokens: NDArray[np.uint8], lengths: NDArray[np.int64], removed: NDArray[np.bool_]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if not removed.any():
        return tokens, lengths
    owners = np.searchsorted(np.cumsum(lengths), np.flatnonzero(removed), side="right")
    return tokens[~removed], lengths - np.bincount(owners, minlength=lengths.size)


def _final_stops(tokens: NDArray[np.uint8], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(T,) True where a sequence's last letter is a stop."""
    stops = np.zeros(tokens.size, dtype=bool)
    last = (np.cumsum(lengths) - 1)[lengths > 0]
    stops[last] = tokens[last] == _STOP
    return stops
