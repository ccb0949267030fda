"""PDB and mmCIF files -> protein chains: a sequence, and where the Cβ of each residue is.

Of several models the first counts, of alternative locations the one of highest occupancy. Modified residues are read as the
amino acid that they were made from (selenomethionine as M), see `residue_names`; an unknown name with a backbone is read as
X, and named on standard error. Residues that were not seen are found through the sequence that the file declares (SEQRES, or
mmCIF's _pdbx_poly_seq_scheme); without one, a jump of the residue numbers at a broken peptide bond stands for so many
residues X.
"""

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from Bio.Align import PairwiseAligner
from Bio.PDB.PDBExceptions import PDBConstructionException
from Bio.PDB.Residue import Residue
from numpy.typing import NDArray

from protein_lm.errors import InputError
from protein_lm.files.guessed_format import structure_format
from protein_lm.files.sources import Source
from protein_lm.io.records import SequenceRecord
from protein_lm.io.structures.amino_acids import ChainResidues, is_bonded, read_residues, residue_number

_LONGEST_GAP = 2000
"""Residues that a jump of the numbers may stand for; larger ones number something else."""

_MOST_DIFFERING = 0.1
"""Share of the residues that may be others than the declared sequence says, as where a place has two."""


@dataclass(frozen=True, eq=False)
class Chain:
    """A protein chain."""

    name: str
    """File and chain, for messages and file names."""
    sequence: str
    """L letters; residues that were not seen are among them."""
    points: NDArray[np.float64]
    """(L, 3) Cβ, of glycine Cα, in Å; NaN where not seen."""
    numbers: tuple[str, ...]
    """L residue numbers with insertion code, empty where not seen."""

    @property
    def is_seen(self) -> NDArray[np.bool_]:
        """(L,) whether a residue has a point."""
        return ~np.isnan(self.points[:, 0])

    def placed_in(self, record: SequenceRecord) -> "Chain":
        """The chain as a part of a longer sequence, whose other residues were not seen.

        Raises:
            InputError: residues that were seen differ from the sequence wherever the chain is put; names the first
                difference at the best place.
        """
        whole, part = np.array(list(record.sequence)), np.array(list(self.sequence))
        compared = np.array([bool(number) for number in self.numbers]) & (part != "X")
        places = np.flatnonzero(compared)
        if not places.size:
            raise InputError(f"{self.name} has no residue that is known, to be found in sequence {record.sequence_id}")
        first, last = int(places[0]), int(places[-1])
        starts = range(-first, whole.size - last)
        if not starts:
            raise InputError(
                f"{self.name} has {last - first + 1:,} residues from the first to the last seen, sequence "
                f"{record.sequence_id} only {whole.size:,}; give the sequence of this structure"
            )
        is_known = whole != "X"
        differences = [places[is_known[places + start] & (whole[places + start] != part[places])] for start in starts]
        start, differing = min(zip(starts, differences, strict=True), key=lambda pair: pair[1].size)
        if differing.size:
            place = int(differing[0])
            raise InputError(
                f"{self.name} does not match sequence {record.sequence_id}: residue {self.numbers[place]} is "
                f"{part[place]}, position {place + start + 1} of the sequence is {whole[place + start]} "
                f"({differing.size} of {places.size} differ); give the sequence of this structure"
            )
        points = np.full((whole.size, 3), np.nan)
        numbers = [""] * whole.size
        for place, number in enumerate(self.numbers):
            if number and 0 <= place + start < whole.size:
                points[place + start], numbers[place + start] = self.points[place], number
        return Chain(self.name, record.sequence, points, tuple(numbers))


def is_structure(path: Path) -> bool:
    """Whether a file begins as PDB and mmCIF files do.

    Raises:
        InputError: the file cannot be read.
    """
    return structure_format(_content(path, whole=False)) is not None


def split_name(name: str) -> tuple[Path, str | None]:
    """Path and chain of `FILE` or `FILE:CHAIN`.

    >>> split_name("2ptc.pdb:I")[1], split_name("2ptc.pdb")[1]
    ('I', None)
    """
    path, colon, chain = name.rpartition(":")
    return (Path(path), chain) if colon and chain and not Path(name).exists() else (Path(name), None)


def read_text(name: str) -> tuple[str, str]:
    """Text of the structure `FILE` or `FILE:CHAIN`, and its format: PDB or mmCIF.

    Raises:
        InputError: the file cannot be read or is of another format.
    """
    path, _ = split_name(name)
    content = _content(path)
    kind = structure_format(content)
    if kind is None:
        raise InputError(f"{path} is no structure: expected PDB or mmCIF")
    return content.decode("utf-8", errors="replace"), kind


def read_chain(name: str) -> Chain:
    """The chain `FILE:CHAIN`, or that of a `FILE` whose protein chains are all alike, from PDB or mmCIF, plain or compressed.

    Raises:
        InputError: the file cannot be read or is of another format; it has no such chain, none at all, or several; no
            residue has a Cβ.
    """
    path, wanted = split_name(name)
    text, kind = read_text(name)
    try:
        found = read_residues(text, kind)
    except (PDBConstructionException, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no valid {kind} file: {error}; fetch it again") from error
    if not found:
        raise InputError(f"{path} has no protein chain: no residue with the atom CA is an amino acid")
    if wanted is not None and wanted not in found:
        raise InputError(f"{path} has no protein chain {wanted}; it has {', '.join(found)}")
    asked = found if wanted is None else [wanted]
    chains = {name: _chain(f"{path.name}:{name}", found[name]) for name in asked}
    if len({chain.sequence for chain in chains.values()}) > 1:
        raise InputError(
            f"{path} has the protein chains {', '.join(chains)}; choose one, for example {path}:{next(iter(chains))}"
        )
    name, chain = next(iter(chains.items()))
    if not chain.is_seen.any():
        raise InputError(f"{chain.name} has no Cβ, so that contacts cannot be told; use a structure with side chains")
    if unknown := found[name].unknown_names:
        print(
            f"{chain.name}: residues named {', '.join(unknown)} are unknown, and read as X", file=sys.stderr, flush=True
        )
    return chain


def _content(path: Path, *, whole: bool = True) -> bytes:
    """The text, or its first block; lines end in line feeds."""
    with Source(path) as source:
        blocks = source.blocks()
        content = b"".join(blocks) if whole else next(blocks, b"")
    return content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _chain(name: str, chain: ChainResidues) -> Chain:
    """A chain with points, whose unseen residues have their positions.

    Raises:
        InputError: two molecules have the chain's letter, or the declared sequence does not fit.
    """
    if chain.number_given_twice is not None:
        raise InputError(
            f"{name} has two residues {chain.number_given_twice}, as where two molecules have one chain letter; give each "
            "molecule its own"
        )
    if chain.declared:
        places = _places(chain, name)
        sequence = list(chain.declared)
    else:
        places = _places_by_number(chain, name)
        sequence = ["X"] * (places[-1] + 1)
        for place, letter in zip(places, chain.letters, strict=True):
            sequence[place] = letter
    points, numbers = np.full((len(sequence), 3), np.nan), [""] * len(sequence)
    for place, letter, residue in zip(places, chain.letters, chain.residues, strict=True):
        atom = "CA" if letter == "G" and "CB" not in residue else "CB"
        numbers[place] = residue_number(residue)
        if atom in residue:
            points[place] = residue[atom].coord
    return Chain(name, "".join(sequence), points, tuple(numbers))


def _places_by_number(chain: ChainResidues, name: str) -> list[int]:
    """Place of each residue, with room where numbers jump and no bond holds the two together."""
    places = [0]
    pairs = zip(itertools.pairwise(chain.residues), itertools.pairwise(chain.molecules), strict=True)
    for (residue, following), (molecule, next_molecule) in pairs:
        missing = following.id[1] - residue.id[1] - 1
        is_continued = is_bonded(residue, following)
        if not is_continued and (molecule != next_molecule or missing < -1):
            raise InputError(
                f"{name} is two molecules: no bond leads from the last residue of one, {residue_number(residue)}, to the "
                f"first of the next, {residue_number(following)}; give each molecule its own chain letter"
            )
        is_gap = 0 < missing <= _LONGEST_GAP and not is_continued
        places.append(places[-1] + 1 + (missing if is_gap else 0))
    return places


def _places(chain: ChainResidues, name: str) -> list[int]:
    """Place of each residue in the declared sequence: by the numbers if one shift fits all of them, or by alignment."""
    letters, residues, declared = chain.letters, chain.residues, chain.declared or ""
    by_number = _shifted_numbers(letters, residues, declared)
    if by_number is not None:
        return by_number
    aligner = PairwiseAligner(mode="global", match_score=1, mismatch_score=-2)
    aligner.open_insertion_score = aligner.extend_insertion_score = -100  # every residue that was seen is declared
    aligner.open_deletion_score, aligner.extend_deletion_score = -1, 0
    aligner.end_deletion_score = 0
    alignment = next(iter(aligner.align(declared, "".join(letters))))
    places = [-1] * len(letters)
    for (start, _), (first, last) in zip(*alignment.aligned, strict=True):
        for place in range(first, last):
            places[place] = int(start + place - first)
    pairs = ({declared[place], letter} for place, letter in zip(places, letters, strict=True))
    differing = sum(len(pair) == 2 and "X" not in pair for pair in pairs)
    if -1 in places or differing > _MOST_DIFFERING * len(letters) + 1:
        raise InputError(
            f"{name} has {len(letters):,} residues that do not fit the {len(declared):,} of its declared sequence; mend or "
            "remove its SEQRES"
        )
    return places


def _shifted_numbers(letters: list[str], residues: list[Residue], declared: str) -> list[int] | None:
    if any(residue.id[2].strip() for residue in residues):
        return None
    numbers = np.array([residue.id[1] for residue in residues])
    whole, part = np.array(list(declared)), np.array(letters)
    first, last = int(numbers.min()), int(numbers.max())
    for shift in (-1, *range(-first, len(declared) - last)):
        places = numbers + shift
        if first + shift >= 0 and last + shift < whole.size and (whole[places] == part).all():
            return places.tolist()
    return None
