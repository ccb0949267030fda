"""Text of a PDB or mmCIF file -> amino acids of each chain in its first model, with their letters."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from Bio.PDB.MMCIF2Dict import MMCIF2Dict
from Bio.PDB.MMCIFParser import MMCIFParser
from Bio.PDB.PDBParser import PDBParser
from Bio.PDB.Residue import Residue
from Bio.PDB.StructureBuilder import StructureBuilder

from protein_lm.files.guessed_format import ATOM_RECORDS
from protein_lm.io.structures.residue_names import letters, short_name

_PEPTIDE_BOND = 2.0
"""Å from C to the next N; the bond itself has 1.33."""
_UNASSIGNED = (".", "?")
_BACKBONE = frozenset(("N", "CA", "C"))


@dataclass(frozen=True, eq=False)
class ChainResidues:
    """Residues of one protein chain in a file."""

    residues: list[Residue]
    """L observed residues."""
    letters: list[str]
    """L residue letters."""
    molecules: list[object]
    """L marks, the same for residues of one molecule."""
    unknown_names: list[str]
    """Names that are unknown, whose residues are X."""
    declared: str | None
    """The whole sequence, if the file declares one."""
    number_given_twice: str | None
    """The first residue number that two residues have."""


def residue_number(residue: Residue) -> str:
    """Residue number with insertion code."""
    return f"{residue.id[1]}{residue.id[2].strip()}"


def is_bonded(residue: Residue, following: Residue) -> bool:
    """Whether a peptide bond joins two residues, by their atoms, or by consecutive numbers if atoms are missing."""
    if "C" in residue and "N" in following:
        return bool(np.linalg.norm(residue["C"].coord - following["N"].coord) < _PEPTIDE_BOND)
    return 0 <= following.id[1] - residue.id[1] <= 1


def read_residues(text: str, kind: str) -> dict[str, ChainResidues]:
    """Read protein chains by name from a text of kind PDB or mmCIF, whose lines end in line feeds.

    Raises:
        PDBConstructionException, ArithmeticError, AttributeError, LookupError, TypeError, ValueError: from Biopython, where
            the text is not valid.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        contents = _pdb(text) if kind == "PDB" else _mmcif(text)
        known = letters(contents.modified)
        builder = _Builder(known)
        structure = contents.parser(builder).get_structure("", io.StringIO(contents.text))
    chains = {}
    for chain in next(iter(structure), None) or ():
        residues = _amino_acids(list(chain), known)
        if residues:
            names = [residue.get_resname().strip() for residue in residues]
            sequence = contents.sequences.get(chain.id)
            chains[chain.id] = ChainResidues(
                residues=residues,
                letters=[known.get(name, "X") for name in names],
                molecules=[contents.molecules.get((chain.id, residue_number(residue))) for residue in residues],
                unknown_names=sorted(set(names) - known.keys()),
                declared="".join(known.get(name, "X") for name in sequence) if sequence else None,
                number_given_twice=builder.given_twice.get(chain.id),
            )
    return chains


@dataclass(frozen=True)
class _Contents:
    """Contents of a file that the parsers of Biopython do not give."""

    text: str
    parser: Callable[[StructureBuilder], Any]
    modified: Sequence[tuple[str, str]]
    """Names of modified residues, with the names of their parents."""
    sequences: Mapping[str, Sequence[str]]
    """Declared residue names by chain."""
    molecules: Mapping[tuple[str, str], object]
    """A mark of the molecule by chain and residue number."""


def _pdb(text: str) -> _Contents:
    lines: list[str] = []
    modified: list[tuple[str, str]] = []
    sequences: dict[str, list[str]] = {}
    molecules: dict[tuple[str, str], object] = {}
    num_ends = 0
    for line in text.split("\n"):
        if line.startswith(ATOM_RECORDS):
            if line[20:21].strip():
                line = f"{line[:17]}{short_name(line[17:21]):<4}{line[21:]}"
            molecules.setdefault((line[21:22], line[22:27].strip()), num_ends)
        elif line.startswith("TER"):
            num_ends += 1
        elif line.startswith("SEQRES"):
            sequences.setdefault(line[11], []).extend(line[19:].split())
        elif line.startswith("MODRES"):
            modified.append((line[12:15].strip(), line[24:27].strip()))
        elif line.strip() == "END" and molecules:  # more models of a trajectory follow
            break
        lines.append(line)
    return _Contents(
        text="\n".join(lines),
        parser=lambda builder: PDBParser(QUIET=True, structure_builder=builder),
        modified=modified,
        sequences=sequences,
        molecules=molecules,
    )


def _mmcif(text: str) -> _Contents:
    table = MMCIF2Dict(io.StringIO(text))

    def rows(category: str, *keys: str) -> Sequence[tuple[str, ...]]:
        return list(zip(*(table.get(f"_{category}.{key}", []) for key in keys), strict=True))

    sequences: dict[str, dict[str, str]] = {}
    for chain, index, name in rows("pdbx_poly_seq_scheme", "pdb_strand_id", "seq_id", "mon_id"):  # authors' chain names
        sequences.setdefault(chain, {}).setdefault(index, name)
    molecules: dict[tuple[str, str], object] = {}
    if "_atom_site.label_asym_id" in table and "_atom_site.auth_seq_id" in table:
        for chain, number, code, molecule in rows(
            "atom_site", "auth_asym_id", "auth_seq_id", "pdbx_PDB_ins_code", "label_asym_id"
        ):
            molecules.setdefault((chain, number if code in _UNASSIGNED else number + code), molecule)
    return _Contents(
        text=text,
        parser=lambda builder: MMCIFParser(QUIET=True, structure_builder=builder),
        modified=[(row[0], row[1]) for row in rows("pdbx_struct_mod_residue", "label_comp_id", "parent_comp_id")],
        sequences={chain: list(names.values()) for chain, names in sequences.items()},
        molecules=molecules,
    )


class _Builder(StructureBuilder):
    """Notes residue numbers that occur twice: Biopython keeps the first residue, and only warns."""

    def __init__(self, known: Mapping[str, str]) -> None:
        super().__init__()
        self.given_twice: dict[str, str] = {}
        """The first such number, by chain."""
        self._known = known
        self._seen: set[tuple[str, str, str, str]] = set()
        self._residue: tuple[str, str] | None = None

    def init_residue(self, resname: str, field: str, resseq: int, icode: str) -> None:
        is_counted = self.model is not None and self.model.id == 0 and resname in self._known
        self._residue = (self.chain.id, f"{resseq}{icode.strip()}") if is_counted and self.chain is not None else None
        super().init_residue(resname, field, resseq, icode)

    def init_atom(
        self, name: str, coord: Any, b_factor: Any, occupancy: Any, altloc: str, *rest: Any, **named: Any
    ) -> None:
        if self._residue is not None and name in _BACKBONE:
            atom = (*self._residue, name, altloc)
            if atom in self._seen:
                self.given_twice.setdefault(*self._residue)
            self._seen.add(atom)
        if self._residue is not None and self._residue[0] in self.given_twice:
            return  # nothing more of this chain is used, and in mmCIF Biopython would refuse the whole file
        super().init_atom(name, coord, b_factor, occupancy, altloc, *rest, **named)


def _amino_acids(residues: Sequence[Residue], known: Mapping[str, str]) -> list[Residue]:
    """Amino acids of a chain. Compounds and free amino acids, which are HETATM too, have no bond to it and are left out."""
    found = [residue for residue in residues if _is_amino_acid(residue, known)]
    kept = []
    for index, residue in enumerate(found):
        before, after = found[max(0, index - 1) : index], found[index + 1 : index + 2]
        is_hetero = residue.id[0].strip() != ""
        bonds = [*(is_bonded(other, residue) for other in before), *(is_bonded(residue, other) for other in after)]
        if not is_hetero or any(bonds):
            kept.append(residue)
    return kept


def _is_amino_acid(residue: Residue, known: Mapping[str, str]) -> bool:
    return "CA" in residue and (residue.get_resname().strip() in known or ("N" in residue and "C" in residue))
