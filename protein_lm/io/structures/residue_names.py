"""Residue names of structure files -> residue letters.

The file's own declarations come first (MODRES in PDB, _pdbx_struct_mod_residue in mmCIF), then the names of force fields.
Last come the modified residues of the Chemical Component Dictionary, by the amino acid that they were made from.
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
_MIRRORED = "DAL DCY DAS DGL DPN DHI DIL DLY DLE MED DSG DPR DGN DAR DSN DTH DVA DTR DTY"
"""D-amino acids, in the order of `_LETTERS_OF_MIRRORED`."""
_LETTERS_OF_MIRRORED = "ACDEFHIKLMNPQRSTVWY"
_UNDECIDED = {"ASX": "B", "GLX": "Z", "UNK": "X"}


LETTERS: Mapping[str, str] = MappingProxyType(
    {name.strip(): letter for name, letter in protein_letters_3to1_extended.items()}
    | dict(zip(_MIRRORED.split(), _LETTERS_OF_MIRRORED, strict=True))
    | {name: letter for letter, names in _FORCE_FIELDS.items() for name in names.split()}
    | _UNDECIDED
    | _STANDARD
)
"""Letter of each known name; files may declare more."""


def letters(declared: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Letters of all names that a file declares or that are in `LETTERS`.

    A name that a file traces to several amino acids, as the chromophore of GFP, is left out.

    Args:
        declared: pairs of a modified residue's name and its amino acid's, with repeats as in the file.

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
    """Shorten a name of four letters to three. Amber's names of a chain's first and last residue begin with N and C.

    >>> short_name("NALA"), short_name("CCYX"), short_name("HISE"), short_name("MSE")
    ('ALA', 'CYX', 'HIS', 'MSE')
    """
    is_terminal = len(name) == 4 and name[0] in "NC" and name[1:] in LETTERS
    return name[1:] if is_terminal else name[:3]
