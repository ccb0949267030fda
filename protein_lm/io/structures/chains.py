"""PDB and mmCIF files -> protein chains: a sequence, and the coordinates of each residue's Cβ.

The first model counts, and of alternative locations the one of highest occupancy. Modified residues are read as the amino
acid that they were made from (selenomethionine as M). An unknown name with a backbone is read as X, and named on standard
error.

Unobserved residues come from the sequence that the file declares (SEQRES, or mmCIF's _pdbx_poly_seq_scheme). Without one,
residue numbers that jump at a broken peptide bond mean as many residues X.
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
"""Residues that may be missing where numbers jump; larger jumps number something else."""

_MOST_DIFFERING = 0.1
"""Share of residues that may differ from the declared sequence, as where two are present at one position."""


@dataclass(frozen=True, eq=False)
class Chain:
    """A protein chain."""

    name: str
    """File and chain, for messages and file names."""
    sequence: str
    """L letters, unobserved residues included."""
    points: NDArray[np.float64]
    """(L, 3) coordinates of Cβ, for glycine of Cα, in Å; NaN where not observed."""
    numbers: tuple[str, ...]
    """L residue numbers with insertion code, empty where not observed."""

    @property
    def is_seen(self) -> NDArray[np.bool_]:
        """(L,) whether a residue has a point."""
        return ~np.isnan(self.points[:, 0])

    def placed_in(self, record: SequenceRecord) -> "Chain":
        """Align the chain without gaps to a longer sequence, whose other residues are unobserved.

        Raises:
            InputError: at every offset, observed residues differ from the sequence; names the first difference at the best
                offset.
        """
        whole, part = np.array(list(record.sequence)), np.array(list(self.sequence))
        compared = np.array([bool(number) for number in self.numbers]) & (part != "X")
        indices = np.flatnonzero(compared)  # of observed residues with a known letter
        if not indices.size:
            raise InputError(f"{self.name} has no residue that is known, to be found in sequence {record.sequence_id}")
        first, last = int(indices[0]), int(indices[-1])
        starts = range(-first, whole.size - last)
        if not starts:
            raise InputError(
                f"{self.name} has {last - first + 1:,} residues from the first to the last seen, sequence "
                f"{record.sequence_id} only {whole.size:,}; give the sequence of this structure"
            )
        is_known = whole != "X"
        differences = [
            indices[is_known[indices + start] & (whole[indices + start] != part[indices])] for start in starts
        ]
        start, differing = min(zip(starts, differences, strict=True), key=lambda pair: pair[1].size)
        if differing.size:
            index = int(differing[0])
            raise InputError(
                f"{self.name} does not match sequence {record.sequence_id}: residue {self.numbers[index]} is "
                f"{part[index]}, position {index + start + 1} of the sequence is {whole[index + start]} "
                f"({differing.size} of {indices.size} differ); give the sequence of this structure"
            )
        points = np.full((whole.size, 3), np.nan)
        numbers = [""] * whole.size
        for index, number in enumerate(self.numbers):
            if number and 0 <= index + start < whole.size:
                points[index + start], numbers[index + start] = self.points[index], number
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
    """Read the chain `FILE:CHAIN` from PDB or mmCIF, plain or compressed. `FILE` alone will do if its chains are the same.

    Raises:
        InputError: the file cannot be read or is of another format; it has no such chain, none, or different ones; or no
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
    """Make a chain, in whose sequence unobserved residues have their positions.

    Raises:
        InputError: two molecules share the chain's letter, or the declared sequence does not fit.
    """
    if chain.number_given_twice is not None:
        raise InputError(
            f"{name} has two residues {chain.number_given_twice}, as where two molecules have one chain letter; give each "
            "molecule its own"
        )
    if chain.declared:
        indices = _indices_in_declared(chain, name)
        sequence = list(chain.declared)
    else:
        indices = _indices_by_number(chain, name)
        sequence = ["X"] * (indices[-1] + 1)
        for index, letter in zip(indices, chain.letters, strict=True):
            sequence[index] = letter
    points, numbers = np.full((len(sequence), 3), np.nan), [""] * len(sequence)
    for index, letter, residue in zip(indices, chain.letters, chain.residues, strict=True):
        atom = "CA" if letter == "G" and "CB" not in residue else "CB"
        numbers[index] = residue_number(residue)
        if atom in residue:
            points[index] = residue[atom].coord
    return Chain(name, "".join(sequence), points, tuple(numbers))


def _indices_by_number(chain: ChainResidues, name: str) -> list[int]:
    """Index of each residue, leaving room where numbers jump and no bond joins the two residues."""
    indices = [0]
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
        indices.append(indices[-1] + 1 + (missing if is_gap else 0))
    return indices


def _indices_in_declared(chain: ChainResidues, name: str) -> list[int]:
    """Index of each residue in the declared sequence: by numbers, if one shift fits all of them, or by alignment."""
    letters, residues, declared = chain.letters, chain.residues, chain.declared or ""
    by_number = _shifted_numbers(letters, residues, declared)
    if by_number is not None:
        return by_number
    aligner = PairwiseAligner(mode="global", match_score=1, mismatch_score=-2)
    aligner.open_insertion_score = aligner.extend_insertion_score = -100  # every observed residue is declared
    aligner.open_deletion_score, aligner.extend_deletion_score = -1, 0
    aligner.end_deletion_score = 0
    alignment = next(iter(aligner.align(declared, "".join(letters))))
    indices = [-1] * len(letters)
    for (start, _), (first, last) in zip(*alignment.aligned, strict=True):
        indices[first:last] = range(start, start + last - first)
    pairs = ({declared[index], letter} for index, letter in zip(indices, letters, strict=True))
    differing = sum(len(pair) == 2 and "X" not in pair for pair in pairs)
    if -1 in indices or differing > _MOST_DIFFERING * len(letters) + 1:
        raise InputError(
            f"{name} has {len(letters):,} residues that do not fit the {len(declared):,} of its declared sequence; fix or "
            "remove its SEQRES"
        )
    return indices


def _shifted_numbers(letters: list[str], residues: list[Residue], declared: str) -> list[int] | None:
    if any(residue.id[2].strip() for residue in residues):
        return None
    numbers = np.array([residue.id[1] for residue in residues])
    whole, part = np.array(list(declared)), np.array(letters)
    first, last = int(numbers.min()), int(numbers.max())
    for shift in (-1, *range(-first, len(declared) - last)):
        indices = numbers + shift
        if first + shift >= 0 and last + shift < whole.size and (whole[indices] == part).all():
            return indices.tolist()
    return None
