"""PDB and mmCIF files -> protein chains: a sequence, and where the Cβ of each residue is.

Of several models the first counts, of alternative locations the one of highest occupancy. Modified residues are read as the
amino acid that they were made from (selenomethionine as M). Residues that were not seen are found through the sequence
that the file declares (SEQRES, or mmCIF's _pdbx_poly_seq_scheme); without one, a jump of the residue numbers at a broken
peptide bond stands for so many residues X.
"""

import io
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from Bio.Align import PairwiseAligner
from Bio.Data.PDBData import protein_letters_3to1_extended
from Bio.PDB.MMCIF2Dict import MMCIF2Dict
from Bio.PDB.MMCIFParser import MMCIFParser
from Bio.PDB.PDBExceptions import PDBConstructionException
from Bio.PDB.PDBParser import PDBParser
from Bio.PDB.Residue import Residue
from numpy.typing import NDArray

from protein_lm.data.records import SequenceRecord
from protein_lm.data.sources import Source
from protein_lm.errors import InputError

_LETTERS = {name.strip(): letter for name, letter in protein_letters_3to1_extended.items()}
_LETTERS |= {"SEC": "U", "PYL": "O", "UNK": "X"}
_RECORDS = ("HEADER", "TITLE ", "REMARK", "SEQRES", "CRYST1", "MODEL ", "ATOM  ", "HETATM", "COMPND")
_PEPTIDE_BOND = 2.0
"""Å from C to the next N; the bond itself has 1.33."""
_LONGEST_GAP = 2000
"""Residues that a jump of the numbers may stand for; larger ones number something else."""


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
    return _format(_text(path, whole=False)) is not None


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
    text = _text(path)
    kind = _format(text)
    if kind is None:
        raise InputError(f"{path} is no structure: expected PDB or mmCIF")
    return text, kind


def read_chain(name: str) -> Chain:
    """The chain `FILE:CHAIN`, or that of a `FILE` whose protein chains are all alike, from PDB or mmCIF, plain or compressed.

    Raises:
        InputError: the file cannot be read or is of another format; it has no such chain, none at all, or several; no
            residue has a Cβ.
    """
    path, wanted = split_name(name)
    text, kind = read_text(name)
    try:
        chains = dict(_chains(text, kind, path))
    except (PDBConstructionException, ValueError, KeyError, IndexError, AttributeError) as error:
        raise InputError(f"{path} is no valid {kind} file: {error}; fetch it again") from error
    if not chains:
        raise InputError(f"{path} has no protein chain: no residue with the atom CA is an amino acid")
    if wanted is None and len({chain.sequence for chain in chains.values()}) > 1:
        raise InputError(
            f"{path} has the protein chains {', '.join(chains)}; choose one, for example {path}:{next(iter(chains))}"
        )
    if wanted is not None and wanted not in chains:
        raise InputError(f"{path} has no protein chain {wanted}; it has {', '.join(chains)}")
    chain = chains[wanted] if wanted is not None else next(iter(chains.values()))
    if not chain.is_seen.any():
        raise InputError(f"{chain.name} has no Cβ, so that contacts cannot be told; use a structure with side chains")
    return chain


def _text(path: Path, *, whole: bool = True) -> str:
    with Source(path) as source:
        blocks = source.blocks()
        content = b"".join(blocks) if whole else next(blocks, b"")
    return content.decode("utf-8", errors="replace")


def _format(text: str) -> str | None:
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    first = next(lines, "")
    if first.startswith("data_"):
        return "mmCIF"
    return "PDB" if f"{first:<6}".startswith(_RECORDS) else None


def _chains(text: str, kind: str, path: Path) -> Iterator[tuple[str, Chain]]:
    """Protein chains by name."""
    parser = PDBParser(QUIET=True) if kind == "PDB" else MMCIFParser(QUIET=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        structure = parser.get_structure(path.name, io.StringIO(text))
        declared = _declared_by_pdb(text) if kind == "PDB" else _declared_by_mmcif(text)
    model = next(iter(structure), None) if structure is not None else None
    for chain in model or ():
        residues = _amino_acids(list(chain))
        if residues:
            yield chain.id, _chain(f"{path.name}:{chain.id}", residues, declared.get(chain.id))


def _amino_acids(residues: Sequence[Residue]) -> list[Residue]:
    """Those of the chain: of free amino acids and other compounds, which are HETATM too, no bond leads to it."""
    found = [residue for residue in residues if _LETTERS.get(residue.get_resname().strip()) and "CA" in residue]
    kept = []
    for place, residue in enumerate(found):
        neighbours = [*found[max(0, place - 1) : place], *found[place + 1 : place + 2]]
        is_hetero = residue.id[0].strip() != ""
        if not is_hetero or any(_is_bonded(*sorted((residue, other), key=found.index)) for other in neighbours):
            kept.append(residue)
    return kept


def _is_bonded(residue: Residue, following: Residue) -> bool:
    """Whether a peptide bond is between them; without the atoms to tell, consecutive numbers say so."""
    if "C" in residue and "N" in following:
        return bool(np.linalg.norm(residue["C"].coord - following["N"].coord) < _PEPTIDE_BOND)
    return following.id[1] - residue.id[1] <= 1


def _chain(name: str, residues: list[Residue], declared: str | None) -> Chain:
    letters = [_LETTERS[residue.get_resname().strip()] for residue in residues]
    if declared:
        places = _places(letters, residues, declared, name)
        sequence = list(declared)
    else:
        places = _places_by_number(residues)
        sequence = ["X"] * (places[-1] + 1)
        for place, letter in zip(places, letters, strict=True):
            sequence[place] = letter
    points, numbers = np.full((len(sequence), 3), np.nan), [""] * len(sequence)
    for place, residue in zip(places, residues, strict=True):
        atom = "CA" if residue.get_resname().strip() == "GLY" else "CB"
        numbers[place] = f"{residue.id[1]}{residue.id[2].strip()}"
        if atom in residue:
            points[place] = residue[atom].coord
    return Chain(name, "".join(sequence), points, tuple(numbers))


def _places_by_number(residues: list[Residue]) -> list[int]:
    """Place of each residue, with room where numbers jump and no bond holds the two together."""
    places = [0]
    for residue, following in itertools.pairwise(residues):
        missing = following.id[1] - residue.id[1] - 1
        is_gap = 0 < missing <= _LONGEST_GAP and not _is_bonded(residue, following)
        places.append(places[-1] + 1 + (missing if is_gap else 0))
    return places


def _places(letters: list[str], residues: list[Residue], declared: str, name: str) -> list[int]:
    """Place of each residue in the declared sequence: by the numbers if one shift fits all of them, or by alignment."""
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
    if -1 in places:
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


def _declared_by_pdb(text: str) -> dict[str, str]:
    """Sequence of each chain by SEQRES."""
    declared: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("SEQRES"):
            letters = "".join(_LETTERS.get(name, "X") for name in line[19:].split())
            declared[line[11]] = declared.get(line[11], "") + letters
    return declared


def _declared_by_mmcif(text: str) -> dict[str, str]:
    """Sequence of each chain by _pdbx_poly_seq_scheme, chains named as authors do."""
    table = MMCIF2Dict(io.StringIO(text))
    columns = [table.get(f"_pdbx_poly_seq_scheme.{key}", []) for key in ("pdb_strand_id", "seq_id", "mon_id")]
    found: dict[str, dict[str, str]] = {}
    for chain, number, name in zip(*columns, strict=True):
        found.setdefault(chain, {}).setdefault(number, _LETTERS.get(name, "X"))
    return {chain: "".join(letters.values()) for chain, letters in found.items()}
