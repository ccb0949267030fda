"""Names of variants -> substitutions: A42G:T50S as in ProteinGym, p.[Ala42Gly;Thr50Ser] as in HGVS.

Sources: https://hgvs-nomenclature.org (recommendations for proteins); `_wt` and `_sy` are names of Enrich2 and MaveDB.
"""

import re
from typing import NamedTuple

from Bio.Data.IUPACData import protein_letters_3to1_extended

from protein_lm import alphabet

_SHOWN_CHARACTERS = 40
_MOST_BRACKETS = 3
"""Pairs of brackets around a name; HGVS has two."""
_LETTERS = {name.upper(): letter for name, letter in protein_letters_3to1_extended.items()} | {"TER": "*"}
_RESIDUE = f"{'|'.join(_LETTERS)}|[A-Z*]"
_STANDARD = set(alphabet.STANDARD_RESIDUES)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.ASCII | re.IGNORECASE)


_SUBSTITUTION = _pattern(rf"({_RESIDUE})(-?[0-9]{{1,9}})({_RESIDUE}|=)")
_WILD_TYPE = _pattern(r"_?wt|wild[ _-]?type|_sy|(p\.)?(=|\(=\)|\[=\])")
_ACCESSION = _pattern(r"[A-Z][A-Z0-9_-]{4,}[0-9](\.[0-9]+)?(\([\w-]*\))?:(?=p\.)")
_PREFIX = _pattern(r"p\.")
_NUCLEOTIDES = _pattern(r"([^:]*:)?[cgmnor]\.[^:]*[0-9]")
_SEPARATORS = (":", ";", ",", "/", "+", "|", "&", "_", None)
"""Separators of substitutions, one kind in a name; None is blanks."""
_ANY_SEPARATOR = re.compile(r"[:;,/+|&\s]")
_OTHER_IN_HGVS = re.compile(r"\(;\)|\];\[|[,/^]")
"""Separators of HGVS between several proteins, or where it is unknown whether they are one."""
_CHANGES = tuple(
    (_pattern(pattern), what)
    for pattern, what in (
        (r"[0-9][A-Z]*fs", "a frameshift"),
        (r"[0-9][A-Z]*ext", "an extension"),
        (r"delins", "a deletion with an insertion"),
        (r"[0-9]del|^del.*[0-9]|[\u0394\u2206].*[0-9]|[0-9]-$", "a deletion"),
        (r"[0-9][A-Z]*ins|^ins.*[0-9]", "an insertion"),
        (r"[0-9]dup|^dup.*[0-9]|[0-9]\[[0-9]+\]$", "a duplication"),
    )
)
_UNKNOWN = _pattern(r"0?\?|0|[A-Z]{1,3}[0-9]+\?")
_PROTEIN = _pattern(r"[A-Z]{12,}[*-]?")
_GIVE_WHOLE = "give the protein that comes of it in a column mutated_sequence"


class Substitution(NamedTuple):
    """An exchange of one of the 20 amino acids for another, or for itself."""

    own: str
    number: int
    """Number of the residue in the name."""
    other: str


class OtherChange(ValueError):
    """A name of another change than substitutions, for which the whole protein must be given."""


def read_name(text: str) -> tuple[Substitution, ...]:
    """Read the substitutions in a variant's name, at different positions; none if it names the wild type.

    Raises:
        OtherChange: it names a deletion, an insertion, a frameshift, a stop or the like.
        ValueError: it names none of these; says what it is, or how substitutions are written.

    >>> read_name("A42G:T50S") == read_name("p.[Ala42Gly;Thr50Ser]") == read_name("A42G, T50S")
    True
    >>> read_name("p.(Ala42Gly)")
    (Substitution(own='A', number=42, other='G'),)
    >>> read_name("_wt")
    ()
    """
    name = text.strip()
    if accession := _ACCESSION.match(name):
        name = name[accession.end() :]
    if _WILD_TYPE.fullmatch(name):
        return ()
    if _NUCLEOTIDES.match(name):
        raise ValueError(f"{_quoted(name)} is a change of DNA or RNA; name that of the protein, such as p.Ala42Gly")
    is_hgvs = _PREFIX.match(name) and not _PREFIX.search(name, 2)
    if is_hgvs and (unclear := _OTHER_IN_HGVS.search(name)):
        raise ValueError(
            f"{_quoted(name)} has {unclear[0]!r}, by which HGVS says that there are several proteins or that it is not "
            "known; give each protein a row, and name what one has as in p.[Ala42Gly;Thr50Ser]"
        )
    found = _read_all(_unwrapped(name))
    numbers = [each.number for each in found]
    if len(set(numbers)) < len(numbers):
        twice = next(number for i, number in enumerate(numbers) if number in numbers[:i])
        raise ValueError(f"position {twice} is named twice")
    return found


def _read_all(name: str) -> tuple[Substitution, ...]:
    """Read substitutions joined by separators of one kind."""
    for separator in _SEPARATORS:
        matches = [_SUBSTITUTION.fullmatch(_unwrapped(part)) for part in name.split(separator)]
        if matches and all(matches):
            return tuple(_read_one(match) for match in matches if match is not None)
    parts = [_unwrapped(part) for part in _ANY_SEPARATOR.split(name)]
    faulty = next((part for part in parts if not _SUBSTITUTION.fullmatch(part)), None)
    if faulty is None:
        raise ValueError(f"{_quoted(name)} has more than one kind of separator; write A42G:T50S")
    if changes := [what for pattern, what in _CHANGES if pattern.search(faulty)]:
        raise OtherChange(f"{_quoted(faulty)} is {changes[0]}; {_GIVE_WHOLE}")
    if _UNKNOWN.fullmatch(faulty):
        raise ValueError(f"{_quoted(faulty)} says that what becomes of the protein is not known, or that none is made")
    if _PROTEIN.fullmatch(faulty):
        raise ValueError(f"{_quoted(faulty)} is a whole protein; give those in a column mutated_sequence")
    raise ValueError(f"{_quoted(faulty)} is no substitution such as A42G or p.Ala42Gly (several at once: A42G:T50S)")


def _read_one(match: re.Match[str]) -> Substitution:
    """Read a substitution from a match of its pattern."""
    own = _letter(match[1])
    other = own if match[3] == "=" else _letter(match[3])
    if own != other == "*":
        raise OtherChange(f"{match[0]!r} is a stop, which ends the protein before position {match[2]}; {_GIVE_WHOLE}")
    if other != own == "*":
        raise OtherChange(f"{match[0]!r} is an extension beyond the protein's end; {_GIVE_WHOLE}")
    if not {own, other} <= _STANDARD:
        raise ValueError(f"{match[0]} is no exchange of one of the 20 amino acids for another")
    return Substitution(own, int(match[2]), other)


def _letter(name: str) -> str:
    """The letter of an amino acid's name of one or three letters."""
    return _LETTERS.get(name.upper(), name.upper())


def _unwrapped(text: str) -> str:
    """Remove the prefix p., brackets and blanks around a name or a part of one."""
    text = text.strip()
    if _PREFIX.match(text):
        text = text[2:]
    for _ in range(_MOST_BRACKETS):
        if text[:1] in ("(", "[") and _closes_at_end(text):
            text = text[1:-1].strip()
    return text


def _closes_at_end(text: str) -> bool:
    """Whether the bracket at the start of a text closes at its end."""
    depth = 0
    for number, character in enumerate(text, 1):
        depth += (character in "([") - (character in ")]")
        if not depth:
            return number == len(text)
    return False


def _quoted(text: str) -> str:
    return repr(text[:_SHOWN_CHARACTERS])
