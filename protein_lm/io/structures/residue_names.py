"""Residue names of structure files -> residue letters: standard, modified, of force fields, and as a file itself declares.

A file's own word comes first (MODRES in PDB files, _pdbx_struct_mod_residue in mmCIF), then the names of force fields, then
the modified residues of the Chemical Component Dictionary, by the amino acid that they were made from.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from Bio.Data.PDBData import protein_letters_3to1, protein_letters_3to1_extended

_STANDARD = {name.upper(): letter for name, letter in protein_letters_3to1.items()} | {"SEC": "U", "PYL": "O"}
_FORCE_FIELDS = {
    "D": "ASH ASPH ASPP AS4",
    "C": "CYX CYM CYN CYD CYS1 CYS2 CYSH",
    "E": "GLH GLUH GLUP GL4",
    "H": "HSD HSE HSP HSC HID HIE HIP HIN HIH HISA HISB HISD HISE HISH HIS1 HIS2 H1D H2D H1E H2E",
    "K": "LYN LYP LSN LYSH LYSN",
    "Q": "QLN",
    "R": "ARN AR0 ARGN",
    "S": "S1P",
    "T": "T1P",
    "Y": "TYM Y1P",
}
"""Names of protonation states, disulfides and phosphates in Amber, CHARMM, GROMOS, OPLS and Rosetta."""
_MIRRORED = {
    "A": "DAL",
    "C": "DCY",
    "D": "DAS",
    "E": "DGL",
    "F": "DPN",
    "H": "DHI",
    "I": "DIL",
    "K": "DLY",
    "L": "DLE",
    "M": "MED",
    "N": "DSG",
    "P": "DPR",
    "Q": "DGN",
    "R": "DAR",
    "S": "DSN",
    "T": "DTH",
    "V": "DVA",
    "W": "DTR",
    "Y": "DTY",
}
"""D-amino acids."""
_UNDECIDED = {"ASX": "B", "GLX": "Z", "UNK": "X"}


def _by_name(names: Mapping[str, str]) -> dict[str, str]:
    return {name: letter for letter, listed in names.items() for name in listed.split()}


LETTERS: Mapping[str, str] = MappingProxyType(
    {name.strip(): letter for name, letter in protein_letters_3to1_extended.items()}
    | _by_name(_MIRRORED)
    | _by_name(_FORCE_FIELDS)
    | _UNDECIDED
    | _STANDARD
)
"""Letter of each known name; files may say more, see `letters`."""


def letters(declared: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Letter of each name that is known, by what a file declares and by `LETTERS`.

    A name that a file traces to several amino acids (the chromophore of GFP) is not known.

    Args:
        declared: name of a modified residue and that of the amino acid it was made from, as often as the file says so.

    >>> letters([("HSE", "SER")])["HSE"], letters([])["HSE"]
    ('S', 'H')
    """
    parents: dict[str, set[str]] = {}
    for name, parent in declared:
        if parent in _STANDARD and name not in _STANDARD:
            parents.setdefault(name, set()).add(_STANDARD[parent])
    known = {name: letter for name, letter in LETTERS.items() if name not in parents}
    return known | {name: next(iter(found)) for name, found in parents.items() if len(found) == 1}


def short_name(name: str) -> str:
    """Three letters of a name that has four: Amber's of the first and last residue of a chain begin with N and C.

    >>> short_name("NALA"), short_name("CCYX"), short_name("HISE"), short_name("MSE")
    ('ALA', 'CYX', 'HIS', 'MSE')
    """
    is_terminal = len(name) == 4 and name[0] in "NC" and name[1:] in LETTERS
    return name[1:] if is_terminal else name[:3]
