"""Variants of a protein: read from tables, as changes of the wild type."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protein_lm import alphabet
from protein_lm.errors import ConfigError, InputError
from protein_lm.files.tables import read_table
from protein_lm.io.records import SequenceRecord
from protein_lm.io.residues import residues_of
from protein_lm.io.variants.measurements import MEASURED
from protein_lm.io.variants.names import OtherChange, Substitution, read_name

Residues = NDArray[np.uint8]
MUTANT, SEQUENCE = "mutant", "mutated_sequence"
"""Columns that name a variant."""
LETTERS = "".join(sorted(alphabet.STANDARD_RESIDUES))
"""The 20 residues that a scan puts at each position, in this order."""

_MOST = 999_999_999
"""Largest residue number; its negative is the smallest."""
_MOST_VOTES = 1000
"""Named residues that vote on the number of the first residue."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Changes that make a variant of the wild type; without any, it is the wild type itself."""

    substitutions: tuple[tuple[int, int], ...] = ()
    """Index (from 0) and new token id of each changed residue, ascending by index."""
    rewritten: bytes = b""
    """Token ids of the whole protein, for one with insertions or deletions."""

    @property
    def is_wild_type(self) -> bool:
        return not self.substitutions and not self.rewritten

    @property
    def sites(self) -> tuple[int, ...]:
        """Indices of the substitutions."""
        return tuple(index for index, _ in self.substitutions)

    def residues(self, wild_type: Residues) -> Residues:
        """Token ids (length,) of the whole protein."""
        if self.rewritten:
            return np.frombuffer(self.rewritten, dtype=np.uint8)
        residues = wild_type.copy()
        for index, token in self.substitutions:
            residues[index] = token
        return residues

    def first_difference(self, wild_type: Residues) -> int:
        """Index of the first difference from the wild type; its length if there is none."""
        if not self.rewritten:
            return self.substitutions[0][0] if self.substitutions else wild_type.size
        return _shared(self.residues(wild_type), wild_type)

    def stretch(self, wild_type: Residues) -> tuple[int, int, int]:
        """Start of the changed stretch, its end in the wild type, and its end in the variant; not for the wild type."""
        if not self.rewritten:
            return self.sites[0], self.sites[-1] + 1, self.sites[-1] + 1
        return _stretch(self.residues(wild_type), wild_type)


@dataclass(frozen=True)
class VariantTable:
    """N variants of one wild type, in the order of their table."""

    wild_type: SequenceRecord
    frame: pd.DataFrame
    """The table as it was read, all cells text."""
    variants: list[Variant | None]
    """None where a row names no possible variant of the wild type."""
    reasons: list[str]
    """The reason why a row has no variant; empty where it has one."""
    better_offset: int | None = None
    """Another number of the first residue, for which more rows would fit."""
    num_fitting: int = 0
    """Rows that would fit then."""

    @property
    def has_indels(self) -> bool:
        """Whether a variant has another length than the wild type."""
        return any(variant is not None and variant.rewritten for variant in self.variants)


def check_first_residue(number: int) -> None:
    """Refuse a number that is out of range for residues.

    Raises:
        ConfigError: it is over nine digits.
    """
    if abs(number) > _MOST:
        raise ConfigError(f"the number of the first residue is over nine digits; give one from {-_MOST:,} to {_MOST:,}")


def read_variants(
    path: Path, wild_type: SequenceRecord, *, first_residue: int, is_one_of_many: bool = False
) -> VariantTable:
    """Read a table whose rows name variants, in the columns `mutant` or `mutated_sequence`.

    Args:
        path: a table.
        wild_type: the protein that is varied.
        first_residue: number of its first residue.
        is_one_of_many: whether the number counts for other tables too.

    Raises:
        InputError: the table cannot be read, has no rows or none of the two columns, or no row names a possible variant.
    """
    frame, _ = read_table(path, needs=(MUTANT, SEQUENCE), wanted=(MUTANT, SEQUENCE, MEASURED))
    if frame.empty:
        raise InputError(f"{path} has no rows; add some")
    table = parse_variants(frame, wild_type, first_residue=first_residue)
    if not any(table.variants):
        advice = hint(table, is_one_of_many=is_one_of_many)
        raise InputError(
            f"{path}: no row names a variant of {wild_type.sequence_id}; row 1: {table.reasons[0]}{advice}"
        )
    return table


def parse_variants(frame: pd.DataFrame, wild_type: SequenceRecord, *, first_residue: int) -> VariantTable:
    """Find the variants of a table that was read, as `read_variants`, even if no row names a possible one."""
    table = _parse_all(frame, wild_type, first_residue)
    better = _better_offset(frame, wild_type.tokens) if any(table.reasons) else None
    if better is None or better == first_residue:
        return table
    fitting, fits_now = _parse_all(frame, wild_type, better).reasons.count(""), table.reasons.count("")
    return replace(table, better_offset=better, num_fitting=fitting) if fitting > fits_now else table


def hint(table: VariantTable, *, is_one_of_many: bool = False) -> str:
    """The end of a message about rows that do not fit the wild type: a number to try, or nothing."""
    if table.better_offset is None:
        return ""
    number = len(table.variants)
    rows = f"all {number:,} rows" if table.num_fitting == number else f"{table.num_fitting:,} of {number:,} rows"
    alone = " and this table alone" if is_one_of_many else ""
    return f"; with --offset-idx {table.better_offset}{alone}, {rows} would fit"


def all_substitutions(wild_type: Residues) -> list[Variant]:
    """All 19 substitutions of each residue, by index and then by letter; ambiguous residues are passed over."""
    tokens = alphabet.encode(LETTERS).tolist()
    return [
        Variant(((index, token),))
        for index, own in enumerate(wild_type.tolist())
        if _is_standard(own)
        for token in tokens
        if token != own
    ]


def name_of(variant: Variant, wild_type: Residues, *, first_residue: int) -> str:
    """The name of a variant's substitutions in a table.

    >>> name_of(Variant(((0, 4), (2, 5))), alphabet.encode("MKV"), first_residue=24)
    'M24L:V26A'
    """
    sites = np.array(variant.sites, dtype=np.int64)
    letters = zip(alphabet.decode(wild_type[sites]), sites + first_residue, variant.substitutions, strict=True)
    return ":".join(f"{own}{number}{alphabet.TOKENS[token]}" for own, number, (_, token) in letters)


def _parse_all(frame: pd.DataFrame, wild_type: SequenceRecord, first_residue: int) -> VariantTable:
    variants: list[Variant | None] = []
    reasons = []
    for mutant, sequence in zip(_cells(frame, MUTANT), _cells(frame, SEQUENCE), strict=True):
        try:
            variants.append(_parse(mutant, sequence, wild_type.tokens, first_residue))
            reasons.append("")
        except ValueError as error:
            variants.append(None)
            reasons.append(str(error))
    return VariantTable(wild_type, frame, variants, reasons)


def _cells(frame: pd.DataFrame, column: str) -> list[str]:
    """Cells of a column; empty ones if there is no such column."""
    return frame[column].tolist() if column in frame else [""] * len(frame)


def _parse(mutant: str, sequence: str, wild_type: Residues, first_residue: int) -> Variant:
    """Read the variant that the two cells of a row name.

    Raises:
        ValueError: they name none; says why.
    """
    mutant, sequence = mutant.strip(), sequence.strip()
    if not mutant and not sequence:
        raise ValueError("the row names no variant")
    if not sequence:
        return _substituted(read_name(mutant), wild_type, first_residue)
    whole = _parse_sequence(sequence, wild_type)
    if mutant in ("", sequence):
        return whole
    try:
        named = read_name(mutant)
    except OtherChange:  # the other cell has the resulting protein
        return whole
    if _substituted(named, wild_type, first_residue) != whole:
        raise ValueError(f"{MUTANT} and {SEQUENCE} do not name the same protein")
    return whole


def _substituted(substitutions: Sequence[Substitution], wild_type: Residues, first_residue: int) -> Variant:
    """Apply substitutions to the wild type.

    Raises:
        ValueError: the wild type has no such residue.
    """
    changed = []
    for own, number, other in substitutions:
        index = number - first_residue
        if not 0 <= index < wild_type.size:
            last = first_residue + wild_type.size - 1
            raise ValueError(f"position {number} is outside the sequence, which runs from {first_residue} to {last}")
        found = alphabet.TOKENS[wild_type[index]]
        if found != own:
            raise ValueError(f"the sequence has {found} at position {number}, not {own}")
        if other != own:
            changed.append((index, alphabet.TOKENS.index(other)))
    return Variant(tuple(sorted(changed)))


def _parse_sequence(text: str, wild_type: Residues) -> Variant:
    residues = residues_of(text).tokens
    if residues.size == wild_type.size:
        sites = np.flatnonzero(residues != wild_type)
        lost, gained = wild_type[sites], residues[sites]
    else:
        start, end, new_end = _stretch(residues, wild_type)
        sites = None
        lost, gained = wild_type[start:end], residues[start:new_end]
    if not all(map(_is_standard, [*lost.tolist(), *gained.tolist()])):
        raise ValueError("what changes is not made of the 20 amino acids alone")
    if sites is None:
        return Variant(rewritten=residues.tobytes())
    return Variant(tuple(zip(sites.tolist(), gained.tolist(), strict=True)))


def _stretch(residues: Residues, wild_type: Residues) -> tuple[int, int, int]:
    """Start of the stretch in which two proteins differ, its end in `wild_type`, and its end in `residues`."""
    start = _shared(residues, wild_type)
    num_left = min(residues.size, wild_type.size) - start
    shared_end = min(_shared(residues[::-1], wild_type[::-1]), num_left)
    return start, wild_type.size - shared_end, residues.size - shared_end


def _shared(first: Residues, second: Residues) -> int:
    """Number of residues before the first difference of two proteins."""
    length = min(first.size, second.size)
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if differ.size else length


def _is_standard(token: int) -> bool:
    return alphabet.FIRST_RESIDUE <= token < alphabet.FIRST_RESIDUE + alphabet.NUM_STANDARD


def _better_offset(frame: pd.DataFrame, wild_type: Residues) -> int | None:
    """The number of the first residue that fits most named residues, if it is unique and fits more than half."""
    named: set[tuple[str, int]] = set()
    for text in _cells(frame, MUTANT):
        with suppress(ValueError):
            named |= {(each.own, each.number) for each in read_name(text)}
    voters = sorted(named, key=lambda voter: (voter[1], voter[0]))[:: len(named) // _MOST_VOTES + 1]
    indices = {letter: np.flatnonzero(wild_type == alphabet.TOKENS.index(letter)) for letter, _ in voters}
    votes = Counter(number - index for letter, number in voters for index in indices[letter].tolist())
    (best, count), (_, next_count) = [*votes.most_common(2), (0, 0), (0, 0)][:2]
    return best if count > max(next_count, len(voters) / 2) and abs(best) <= _MOST else None
