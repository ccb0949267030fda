"""Small structures to write into files: two helices side by side, in PDB and mmCIF."""

from collections.abc import Iterator, Sequence

import numpy as np
from Bio.Data.PDBData import protein_letters_1to3

THREE = {letter: protein_letters_1to3[letter].upper() for letter in "ACEGKLMSV"}
SEQUENCE = "MAELKKLLEELKKLGSGKELLKKLEELLKALE"
Atom = tuple[str, str, str, int, str, str, np.ndarray]
"""Record, atom name, residue name, residue number, insertion code, alternative location, coordinates."""


def helices(sequence: str = SEQUENCE, *, first: int = 1) -> list[Atom]:
    """N, CA, CB and C of ideal helices (1.5 Å and 100° for each residue) that run up and down 8 Å apart."""
    half, atoms = len(sequence) // 2, []
    for number, letter in enumerate(sequence):
        up = number < half
        height = 1.5 * (number if up else len(sequence) - 1 - number)
        axis = np.array([0.0 if up else 8.0, 0.0, height])
        for name, radius, turn, rise in (
            ("N", 1.55, -28, -0.9),
            ("CA", 2.3, 0, 0),
            ("C", 1.6, 26, 1.1),
            ("CB", 3.3, -20, 0),
        ):
            if letter == "G" and name == "CB":
                continue
            angle = np.radians(100 * number + turn)
            place = axis + np.array([radius * np.cos(angle), radius * np.sin(angle), rise if up else -rise])
            atoms.append(("ATOM", name, THREE[letter], first + number, "", "", place))
    return atoms


def pdb_lines(atoms: Sequence[Atom], chain: str = "A") -> Iterator[str]:
    """ATOM and HETATM lines."""
    for serial, (record, name, residue, number, code, location, (x, y, z)) in enumerate(atoms, 1):
        yield (
            f"{record:<6}{serial:>5} {name:^4}{location or ' '}{residue:>3} {chain}{number:>4}{code or ' '}   "
            f"{x:8.3f}{y:8.3f}{z:8.3f}{0.4 if location == 'A' else 0.6:6.2f}{0:6.2f}          {name[0]:>2}"
        )


def seqres_lines(sequence: str, chain: str = "A") -> Iterator[str]:
    """SEQRES lines."""
    for row, start in enumerate(range(0, len(sequence), 13), 1):
        names = " ".join(THREE[letter] for letter in sequence[start : start + 13])
        yield f"SEQRES {row:>3} {chain} {len(sequence):>4}  {names}"


def cif_text(atoms: Sequence[Atom], declared: str, chain: str = "A") -> str:
    """An mmCIF file with the sequence that it declares."""
    keys = (
        "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id"
    )
    keys += " pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_comp_id auth_asym_id"
    keys += " auth_atom_id pdbx_PDB_model_num"
    lines = ["data_TEST", "loop_", *(f"_atom_site.{key}" for key in keys.split())]
    for serial, (record, name, residue, number, code, _, (x, y, z)) in enumerate(atoms, 1):
        lines.append(
            f"{record} {serial} {name[0]} {name} . {residue} {chain} 1 {number} {code or '?'} "
            f"{x:.3f} {y:.3f} {z:.3f} 1.0 0.0 {number} {residue} {chain} {name} 1"
        )
    lines += [
        "#",
        "loop_",
        *(f"_pdbx_poly_seq_scheme.{key}" for key in ("asym_id", "seq_id", "mon_id", "pdb_strand_id")),
    ]
    lines += [f"{chain} {number} {THREE[letter]} {chain}" for number, letter in enumerate(declared, 1)]
    return "\n".join([*lines, "#", ""])
