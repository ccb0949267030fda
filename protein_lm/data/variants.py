"""Variants of a protein: how tables name them, and what each of them changes."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from protein_lm import alphabet
from protein_lm.data.records import SequenceRecord
from protein_lm.errors import InputError
from protein_lm.tables import read_table

Residues = NDArray[np.uint8]
MUTANT, SEQUENCE, MEASURED = "mutant", "mutated_sequence", "DMS_score"
"""Columns that name a variant, and that of what was measured of it."""
LETTERS = "".join(sorted(alphabet.STANDARD_RESIDUES))
"""The 20 residues that a scan puts at each position, in its order."""

_SUBSTITUTION = re.compile(r"([A-Z])(-?[0-9]{1,9})([A-Z*])")
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Variant:
    """What a protein has that its wild type has not; nothing of either kind is the wild type itself."""

    substitutions: tuple[tuple[int, int], ...] = ()
    """Place from 0 and token id of each residue that is another, ascending by place."""
    rewritten: bytes = b""
    """Token ids of all residues, of a protein with insertions or deletions."""

    @property
    def is_wild_type(self) -> bool:
        return not self.substitutions and not self.rewritten

    @property
    def sites(self) -> tuple[int, ...]:
        """Places of the substitutions."""
        return tuple(place for place, _ in self.substitutions)

    def residues(self, wild_type: Residues) -> Residues:
        """Token ids (length,) of the whole protein."""
        if self.rewritten:
            return np.frombuffer(self.rewritten, dtype=np.uint8)
        residues = wild_type.copy()
        for place, token in self.substitutions:
            residues[place] = token
        return residues

    def first_place(self, wild_type: Residues) -> int:
        """Residues that it shares with the wild type before the first difference."""
        if not self.rewritten:
            return self.substitutions[0][0] if self.substitutions else wild_type.size
        return _shared(self.residues(wild_type), wild_type)


@dataclass(frozen=True)
class VariantTable:
    """N variants of one wild type, in the order of their table."""

    wild_type: SequenceRecord
    frame: pd.DataFrame
    """The table as it was read, all cells text."""
    variants: list[Variant | None]
    """None where a row names none that the wild type can have."""
    reasons: list[str]
    """Why a row has no variant; empty where it has one."""
    fitting_offset: int | None
    """Another number of the first residue, with which all rows that name substitutions would fit."""


def read_variants(path: Path, wild_type: SequenceRecord, *, first_residue: int, max_residues: int) -> VariantTable:
    """Read a table whose rows name variants: `mutant` (A42G, several joined by `:`) or `mutated_sequence`.

    Args:
        path: a table, see `tables.read_table`.
        wild_type: the protein that is varied.
        first_residue: number of its first residue.
        max_residues: longest protein that the model reads.

    Raises:
        InputError: the table cannot be read, has no rows or none of the two columns, or no row names a possible variant.
    """
    frame, _ = read_table(path, needs=(MUTANT, SEQUENCE), wanted=(MUTANT, SEQUENCE, MEASURED))
    if frame.empty:
        raise InputError(f"{path} has no rows; add some")
    table = parse_variants(frame, wild_type, first_residue=first_residue, max_residues=max_residues)
    if not any(table.variants):
        raise InputError(
            f"{path}: no row names a variant of {wild_type.sequence_id}; row 1: {table.reasons[0]}{hint(table)}"
        )
    return table


def parse_variants(
    frame: pd.DataFrame, wild_type: SequenceRecord, *, first_residue: int, max_residues: int
) -> VariantTable:
    """As `read_variants`, of a table that was read, whatever its rows name."""
    blank = [""] * len(frame)
    mutants = frame[MUTANT].tolist() if MUTANT in frame else blank
    sequences = frame[SEQUENCE].tolist() if SEQUENCE in frame else blank
    variants: list[Variant | None] = []
    reasons = []
    for mutant, sequence in zip(mutants, sequences, strict=True):
        try:
            variant, reason = _parse(mutant, sequence, wild_type.tokens, first_residue), ""
            length = len(variant.rewritten)
            if length > max_residues:
                variant, reason = None, f"{length:,} residues; this model reads {max_residues:,}"
        except ValueError as error:
            variant, reason = None, str(error)
        variants.append(variant)
        reasons.append(reason)
    fitting = _fitting_offset(mutants, wild_type.tokens) if any(reasons) else None
    return VariantTable(wild_type, frame, variants, reasons, fitting if fitting != first_residue else None)


def hint(table: VariantTable) -> str:
    """What to try where rows do not fit the wild type, to end a message with; empty if nothing is known."""
    return "" if table.fitting_offset is None else f"; with --offset-idx {table.fitting_offset} all rows would fit"


def all_substitutions(wild_type: Residues) -> list[Variant]:
    """Every other of the 20 residues at each place, by place and then by letter; ambiguous residues are passed over."""
    tokens = alphabet.encode(LETTERS).tolist()
    return [
        Variant(((place, token),))
        for place, own in enumerate(wild_type.tolist())
        if _is_standard(own)
        for token in tokens
        if token != own
    ]


def name_of(variant: Variant, wild_type: Residues, *, first_residue: int) -> str:
    """Its substitutions as a table names them.

    >>> name_of(Variant(((0, 4), (2, 5))), alphabet.encode("MKV"), first_residue=24)
    'M24L:V26A'
    """
    places = np.array(variant.sites, dtype=np.int64)
    letters = zip(alphabet.decode(wild_type[places]), places + first_residue, variant.substitutions, strict=True)
    return ":".join(f"{own}{number}{alphabet.TOKENS[token]}" for own, number, (_, token) in letters)


def _parse(mutant: str, sequence: str, wild_type: Residues, first_residue: int) -> Variant:
    """The variant that the two cells of a row name.

    Raises:
        ValueError: why they name none.
    """
    mutant, sequence = mutant.strip(), sequence.strip()
    if not mutant and not sequence:
        raise ValueError("the row names no variant")
    if not sequence:
        return _parse_substitutions(mutant, wild_type, first_residue)
    whole = _parse_sequence(sequence, wild_type)
    if mutant not in ("", sequence) and _parse_substitutions(mutant, wild_type, first_residue) != whole:
        raise ValueError(f"{MUTANT} and {SEQUENCE} do not name the same protein")
    return whole


def _parse_substitutions(text: str, wild_type: Residues, first_residue: int) -> Variant:
    substitutions: dict[int, int] = {}
    for part in text.upper().split(":"):
        match = _SUBSTITUTION.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()[:_SHOWN_CHARACTERS]!r} is no substitution such as A42G")
        own, number, other = match[1], int(match[2]), match[3]
        place = number - first_residue
        if not 0 <= place < wild_type.size:
            last = first_residue + wild_type.size - 1
            raise ValueError(f"position {number} is outside the sequence, which runs from {first_residue} to {last}")
        found = alphabet.TOKENS[wild_type[place]]
        if found != own:
            raise ValueError(f"the sequence has {found} at position {number}, not {own}")
        if place in substitutions:
            raise ValueError(f"position {number} is named twice")
        if not _is_standard(int(wild_type[place])) or other not in LETTERS:
            raise ValueError(f"{match[0]} is no exchange of one of the 20 amino acids for another")
        substitutions[place] = alphabet.TOKENS.index(other)
    changed = sorted((place, token) for place, token in substitutions.items() if token != wild_type[place])
    return Variant(tuple(changed))


def _parse_sequence(text: str, wild_type: Residues) -> Variant:
    residues = alphabet.encode(text)
    if residues.size == wild_type.size:
        places = np.flatnonzero(residues != wild_type)
        lost, gained = wild_type[places], residues[places]
    else:
        start = _shared(residues, wild_type)
        shorter = min(residues.size, wild_type.size) - start
        end = min(_shared(residues[::-1], wild_type[::-1]), shorter)
        places = None
        lost, gained = wild_type[start : wild_type.size - end], residues[start : residues.size - end]
    if not all(map(_is_standard, [*lost.tolist(), *gained.tolist()])):
        raise ValueError("what changes is not made of the 20 amino acids alone")
    if places is None:
        return Variant(rewritten=residues.tobytes())
    return Variant(tuple(zip(places.tolist(), gained.tolist(), strict=True)))


def _shared(first: Residues, second: Residues) -> int:
    """Residues at which two proteins agree before their first difference."""
    length = min(first.size, second.size)
    differ = np.flatnonzero(first[:length] != second[:length])
    return int(differ[0]) if differ.size else length


def _is_standard(token: int) -> bool:
    return alphabet.FIRST_RESIDUE <= token < alphabet.FIRST_RESIDUE + alphabet.NUM_STANDARD


def _fitting_offset(mutants: list[str], wild_type: Residues) -> int | None:
    """The number of the first residue with which all substitutions fit the wild type; None if there is not just one."""
    named = {(match[1], int(match[2])) for text in mutants for match in _SUBSTITUTION.finditer(text.upper())}
    if not named:
        return None
    letters = np.frombuffer("".join(letter for letter, _ in named).encode(), dtype=np.uint8)
    numbers = np.array([number for _, number in named])
    own = np.frombuffer(alphabet.decode(wild_type).encode(), dtype=np.uint8)
    candidates = range(int(numbers.max()) - wild_type.size + 1, int(numbers.min()) + 1)
    fitting = [first for first in candidates if (own[numbers - first] == letters).all()]
    return fitting[0] if len(fitting) == 1 else None
