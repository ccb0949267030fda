"""Wild types, and folders of assays in ProteinGym's layout: a table for each, and one of their wild types."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from protein_lm.errors import InputError
from protein_lm.files.sources import STANDARD_INPUT
from protein_lm.files.tables import SUFFIXES, column_names, read_table, table_name
from protein_lm.io.proteins import read_distinct
from protein_lm.io.readers import read_records
from protein_lm.io.records import SequenceRecord
from protein_lm.io.residues import read_residues
from protein_lm.io.variants.measurements import GROUPS, MEASURED
from protein_lm.io.variants.variant_table import MUTANT, SEQUENCE, VariantTable, read_variants

TARGET, FILE, IDENTIFIER = "target_seq", "DMS_filename", "DMS_id"
"""Columns of ProteinGym's reference table: the wild type, and the assay's file or name."""


@dataclass(frozen=True)
class Assay:
    """Variants of one protein, measured together."""

    name: str
    """The file's name without its suffixes."""
    path: Path
    table: VariantTable
    groups: Mapping[str, str]
    """Its cells in the columns `GROUPS`, if the reference table has them all."""


@dataclass(frozen=True)
class AssayFolder:
    """The assays of a folder, by name."""

    assays: list[Assay]
    absent: list[str]
    """Names of the reference table that have no file."""
    left_out: list[str]
    """Names of assays whose wild types are over the window."""


@dataclass(frozen=True)
class _Protein:
    record: SequenceRecord
    groups: Mapping[str, str] = field(default_factory=dict)


def read_wild_type(path: Path, *, longest: int | None = None) -> SequenceRecord:
    """The one protein of a sequence file.

    Raises:
        InputError: the file cannot be read, holds several proteins, or one of more than `longest` residues.
    """
    records = list(islice(read_records(path), 2))
    if len(records) != 1:
        raise InputError(f"{path} holds more than one protein; variants are of one: give a file with that one alone")
    _check_length(records[0], path, longest)
    return records[0]


def read_assays(folder: Path, wild_types: Path, *, first_residue: int, longest: int | None = None) -> AssayFolder:
    """Read all tables in a folder. No model is needed yet, so that mistakes show before the work.

    Tables are .csv, .tsv and .parquet files, in any case, also compressed, and others whose first line names a column of
    variants. Other files are passed over.

    Args:
        folder: the tables.
        wild_types: ProteinGym's reference table (`target_seq`, and `DMS_filename` or `DMS_id`); or a sequence file, whose
            identifiers are the tables' names without suffixes. A single protein is the wild type of all.
        first_residue: number of the first residue of all wild types.
        longest: assays of proteins with more residues are left out.

    Raises:
        InputError: there is no table, a table has no wild type or no measurements, nothing is left, or as `read_variants`.
    """
    paths = _tables(folder, wild_types)
    if not paths:
        raise InputError(f"{folder} holds no table; assays are files that end in {', '.join(SUFFIXES)}")
    proteins = _reference(wild_types) or _sequences(wild_types, list(paths))
    assays, left_out = [], []
    for name, path in paths.items():
        if name not in proteins:
            raise InputError(f"{wild_types} has no wild type for {path}; add one named {name!r}, or move the file away")
        protein = proteins[name]
        if longest is not None and len(protein.record) > longest:
            left_out.append(name)
            continue
        table = read_variants(path, protein.record, first_residue=first_residue, is_one_of_many=len(paths) > 1)
        if MEASURED not in table.frame:
            raise InputError(
                f"{path} has no column {MEASURED}, so there is nothing to compare with; move the file away"
            )
        assays.append(Assay(name, path, table, protein.groups))
    if not assays:
        _check_length(proteins[left_out[0]].record, wild_types, longest)
    return AssayFolder(assays, sorted(proteins.keys() - paths.keys()), left_out)


def _tables(folder: Path, wild_types: Path) -> dict[str, Path]:
    """The tables in a folder by name, in order."""
    paths: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file() or path.resolve() == wild_types.resolve():
            continue
        name = table_name(path)
        if name is None or path.suffix.lower() == ".txt":
            if not {MUTANT, SEQUENCE} & set(column_names(path, wanted=(MUTANT, SEQUENCE))):
                continue
            name = name or path.stem
        if name in paths:
            raise InputError(f"{paths[name]} and {path} have one name, {name!r}; rename one of them")
        paths[name] = path
    return paths


def _reference(path: Path) -> dict[str, _Protein] | None:
    """Proteins of a reference table by names of assays; None if the file is no such table."""
    columns = (TARGET, FILE, IDENTIFIER, *GROUPS)
    if path == STANDARD_INPUT or TARGET not in column_names(path, wanted=columns):
        return None
    frame, _ = read_table(path, wanted=columns)
    names = FILE if FILE in frame else IDENTIFIER
    if names not in frame:
        raise InputError(f"{path} has neither a column {FILE} nor {IDENTIFIER}, which name the assays; add one")
    groups = GROUPS if set(GROUPS) <= set(frame) else ()
    proteins = {}
    for row, cells in enumerate(frame.to_dict("records"), 1):
        file = Path(cells[names].strip())
        name = table_name(file) or file.name
        tokens = read_residues(cells[TARGET], f"{path}, row {row}: {TARGET}", "correct or remove the row").tokens
        if name in proteins:
            raise InputError(f"{path}, row {row}: {name} has a row already; correct or remove the row")
        record = SequenceRecord(cells.get("UniProt_ID", "") or name, tokens, row + 1)
        proteins[name] = _Protein(record, {column: cells[column] for column in groups})
    return proteins


def _sequences(path: Path, names: list[str]) -> dict[str, _Protein]:
    records = list(read_distinct(path))
    if len(records) == 1:
        return {name: _Protein(records[0]) for name in names}
    return {record.sequence_id: _Protein(record) for record in records}


def _check_length(record: SequenceRecord, path: Path, longest: int | None) -> None:
    if longest is not None and len(record) > longest:
        raise InputError(
            f"{path}: sequence {record.sequence_id} has {len(record):,} residues; this model reads {longest:,}; use --long "
            "window, which scores variants in windows, or a model with a longer window"
        )
