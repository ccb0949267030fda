"""Guesses the format of a file by its first bytes, for an error message that helps."""

import re

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"PAR1", "a Parquet table"),
    (b"PK\x03\x04", "a ZIP archive (or an Office document, or a NumPy .npz)"),
    (b"BAM\x01", "a BAM alignment"),
    (b"CRAM", "a CRAM alignment"),
    (b"\x1f\x8b", "compressed data inside compressed data"),
    (b"BZh", "bzip2 data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"<?xml", "XML of another kind than UniProt's"),
    (b"<!doctype html", "a web page (HTML)"),
    (b"<html", "a web page (HTML)"),
    (b"{", "JSON"),
    (b"[", "JSON"),
    (b"@", "FASTQ or SAM"),
    (b"LOCUS ", "a GenBank flat file"),
    (b"CLUSTAL", "a Clustal alignment"),
    (b"# STOCKHOLM", "a Stockholm alignment"),
    (b";", "FASTA with ';' comment lines, which are not supported"),
)
_TAR_MAGIC_AT = 257
ATOM_RECORDS = ("ATOM  ", "HETATM")
"""Beginnings of the lines of atoms in PDB files."""
_MMCIF = re.compile(rb"\s*(#[^\n]*\n\s*)*(data_|_atom_site\.)", re.IGNORECASE)
_PDB_HEAD = re.compile(rb"\s*(HEADER|TITLE |REMARK|SEQRES|CRYST1|MODEL |COMPND)")
"""A head may be so long that the beginning has no atom."""
_PDB_ATOM = re.compile(rb"^(ATOM  |HETATM)", re.MULTILINE)


def structure_format(beginning: bytes) -> str | None:
    r"""Return "PDB" or "mmCIF" for a structure with this beginning, else None.

    >>> structure_format(b"PARENT N/A\nATOM      1  N   MET A   1")
    'PDB'
    """
    if _MMCIF.match(beginning):
        return "mmCIF"
    has_atoms = _PDB_ATOM.search(beginning) is not None and not beginning.lstrip().startswith(b">")
    return "PDB" if has_atoms or _PDB_HEAD.match(beginning) else None


def describe_format(beginning: bytes) -> str | None:
    """Describe the format of a file with this beginning; None if it is unknown.

    >>> describe_format(b"%PDF-1.7")
    'a PDF document'
    """
    if beginning[_TAR_MAGIC_AT:].startswith(b"ustar"):
        return "a tar archive"
    if structure := structure_format(beginning):
        return f"a structure ({structure})"
    lowered = beginning.lower()
    for magic, name in _BEGINNINGS:
        if beginning.startswith(magic) or (magic.islower() and lowered.startswith(magic)):
            return name
    return None
