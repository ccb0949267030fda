"""Pfam families that are held out as a whole: which ones, and which sequences belong to them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm.errors import ConfigError, InputError
from protein_lm.files.sources import Source
from protein_lm.files.text import unix_lines
from protein_lm.files.text_table import TextTable
from protein_lm.io.hashing import hash_identifiers
from protein_lm.io.records import Columns, Memberships, Spans

_PERFORMER = (
    *("PF03272", "PF03492", "PF03938", "PF04153", "PF04420", "PF04680", "PF05318", "PF06173", "PF06905", "PF06917"),
    *("PF10696", "PF10841", "PF11968", "PF12325", "PF12378", "PF15340", "PF17055", "PF17724", "PF17988", "PF18369"),
)
"""Held out by Choromanski et al., Rethinking Attention with Performers, arXiv 2009.14794, appendix on protein data."""
PRESETS = {"performer": _PERFORMER}
_ACCESSION = re.compile(r"PF\d{5}", re.ASCII)
_ACCESSION_LETTERS = 7
_FORM = "PF and five digits, as PF00069"
_SHOWN_LETTERS, _SHOWN_CELL_LETTERS = 40, 100
_SHOWN = 10
_SEQUENCE_COLUMNS = ("sequence_id", "uniprot_acc", "pfamseq_acc")
_FAMILY_COLUMNS = ("family_id", "pfamA_acc")
"""Our names of columns, and those of Pfam-A.regions.tsv and Pfam-A.regions.uniprot.tsv."""
_BLOCK_BYTES = 2**22
_NAMED_AFTER = re.compile(
    rb"(?:UniRef(?:50|90|100)_)?"
    rb"([OPQ]\d[A-Z\d]{3}\d|[A-NR-Z]\d(?:[A-Z][A-Z\d]{2}\d){1,2}|UPI[\dA-F]{10})"
    rb"(?:-\d+)?"
)
"""Identifiers that begin with an accession (https://www.uniprot.org/help/accession_numbers). A UniRef cluster is named after
its representative, whose sequence it shows (https://www.uniprot.org/help/uniref)."""


def read_families(words: Sequence[str]) -> tuple[str, ...]:
    """Return accessions of Pfam in ascending order.

    Args:
        words: accessions, presets and files with an accession in each line; a word may name several, with commas.

    Raises:
        ConfigError: a word is none of these.
        InputError: a file cannot be read, or has something else in it.

    >>> read_families(["PF00069,PF07714", "PF00069"])
    ('PF00069', 'PF07714')
    """
    families: set[str] = set()
    for word in (part.strip() for several in words for part in several.split(",")):
        if _ACCESSION.fullmatch(word):
            families.add(word)
        elif word in PRESETS:
            families.update(PRESETS[word])
        elif word and Path(word).is_file():
            families.update(_read_file(Path(word)))
        else:
            raise ConfigError(
                f"{word[:_SHOWN_LETTERS]!r} is no Pfam accession ({_FORM}), no file of them, and no preset "
                f"({', '.join(PRESETS)}); correct it"
            )
    return tuple(sorted(families))


def _read_file(path: Path) -> set[str]:
    with Source(path) as source:
        lines = b"".join(unix_lines(source.blocks())).decode("utf-8-sig", "replace").split("\n")
    families = set()
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not _ACCESSION.fullmatch(line):
            raise InputError(f"{path}, line {number}: {line[:_SHOWN_LETTERS]!r} is no Pfam accession; write {_FORM}")
        families.add(line)
    if not (families := families - {""}):
        raise InputError(f"{path} names no family; write accessions of Pfam into it, one in a line")
    return families


class FamilyTable:
    """A table of the members of some families: text, plain or compressed, with a row for each family of a sequence.

    Either its first line names `sequence_id` and `family_id`. Or it is Pfam's own (`Pfam-A.regions.tsv`,
    `Pfam-A.regions.uniprot.tsv`). Or it has two columns without names, one of which begins with an accession of Pfam. Rows of
    other families are ignored; each row of `families` takes 16 bytes of memory.

    The clusters `UniRef50_P12345` (or 90, 100) and the isoforms `P12345-2` belong to the families of `P12345`.

    Raises:
        InputError: the file cannot be read, has other columns, or none of the families.
    """

    def __init__(self, path: Path, families: Sequence[str]) -> None:
        self.path = path
        hashes: list[NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]
        numbers: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        with Source(path, block_bytes=_BLOCK_BYTES) as source:
            for identifiers, families_of_part in _family_rows(source, families):
                hashes.append(hash_identifiers(identifiers))
                numbers.append(families_of_part)
            self.sha256 = source.sha256
        all_hashes = np.concatenate(hashes)
        if not all_hashes.size:
            raise InputError(f"{path} has no row of a family to hold out; check the accessions, or give another table")
        order = np.argsort(all_hashes)
        self._hashes, self._families = all_hashes[order], np.concatenate(numbers)[order]

    def memberships(
        self, ids: NDArray[np.uint8], id_lengths: NDArray[np.int64], id_hashes: NDArray[np.uint64]
    ) -> Memberships:
        """Return the families of N sequences; pairs may repeat.

        Args:
            ids: identifiers (UTF-8) back to back.
            id_lengths: (N,) bytes of each.
            id_hashes: (N,) their hashes.
        """
        direct, names = self._find(id_hashes), ids.tobytes()
        if b"UniRef" not in names and b"-" not in names:
            return direct
        identifiers = Spans.back_to_back(names, id_lengths).cut()
        accessions = [match[1] if (match := _NAMED_AFTER.fullmatch(name)) else name for name in identifiers]
        others = self._find(hash_identifiers(accessions))
        return Memberships(
            np.concatenate((direct.records, others.records)), np.concatenate((direct.families, others.families))
        )

    def _find(self, hashes: NDArray[np.uint64]) -> Memberships:
        # (N,) the rows [first, end) of each identifier, which are consecutive since hashes are sorted
        first, end = (np.searchsorted(self._hashes, hashes, side=side) for side in ("left", "right"))
        numbers = end - first
        records = np.repeat(np.arange(hashes.size), numbers)  # (K,) each identifier once for each of its rows
        rows = np.arange(records.size) + np.repeat(first - (np.cumsum(numbers) - numbers), numbers)  # (K,)
        return Memberships(records, self._families[rows])


_FamilyRows = tuple[list[bytes], NDArray[np.int64]]
"""Identifiers, and indices of their families, of the rows of these families."""


def _family_rows(source: Source, families: Sequence[str]) -> Iterator[_FamilyRows]:
    """Yield the rows of these families, many at a time: Arrow reads blocks without quotes or anything odd."""
    table = TextTable.of(source, wanted=(*_SEQUENCE_COLUMNS, *_FAMILY_COLUMNS))
    columns, has_heading = _family_columns(table)
    indices = {name: index for index, name in enumerate(families)}

    def exact(rows: Iterable[tuple[int, list[str]]]) -> _FamilyRows:
        identifiers, chosen = [], []
        for line, cells in rows:
            identifier, family = (cells[column].strip() for column in columns)
            if family.startswith("PF") and len(family.encode()) != _ACCESSION_LETTERS:
                raise InputError(
                    f"{table.path}, line {line:,}: {family[:_SHOWN_CELL_LETTERS]!r} is no accession of Pfam; write PF and "
                    "five digits, and a row for each family"
                )
            if (index := indices.get(family)) is None:
                continue
            if not identifier:
                raise InputError(f"{table.path}, line {line:,}: the row has no identifier; write one")
            identifiers.append(identifier.encode())
            chosen.append(index)
        return identifiers, np.array(chosen, dtype=np.int64)

    return table.read(lambda block: _by_arrow(block, table, columns, families), exact, has_heading=has_heading)


def _by_arrow(block: bytes, table: TextTable, columns: tuple[int, int], families: Sequence[str]) -> _FamilyRows | None:
    """Read the rows of these families in a block without quotes; None if it must be read row by row."""
    import pyarrow.compute
    from pyarrow import csv

    compute: Any = pyarrow.compute  # its functions are made when it is imported
    names = [str(column) for column in range(len(table.cells))]
    if block.isspace():
        return [], np.empty(0, dtype=np.int64)
    try:
        rows = csv.read_csv(
            pyarrow.BufferReader(block),
            csv.ReadOptions(block_size=len(block) + 1, column_names=names, use_threads=False),
            csv.ParseOptions(delimiter=table.delimiter, quote_char=False),
            csv.ConvertOptions(
                include_columns=[names[column] for column in columns],
                column_types=dict.fromkeys(names, pyarrow.string()),
            ),
        )
    except pyarrow.ArrowException:
        return None
    sequence_ids, family_ids = (compute.utf8_trim_whitespace(column.combine_chunks()) for column in rows.columns)
    is_other = compute.not_equal(compute.binary_length(family_ids), _ACCESSION_LETTERS)
    if np.asarray(compute.and_(is_other, compute.starts_with(family_ids, "PF"))).any():
        return None
    found = compute.index_in(family_ids, pyarrow.array(families, pyarrow.string()))
    chosen = np.flatnonzero(np.asarray(found.is_valid()))
    identifiers = sequence_ids.take(chosen).cast(pyarrow.binary()).to_pylist()
    return None if b"" in identifiers else (identifiers, np.asarray(found.take(chosen), dtype=np.int64))


def _family_columns(table: TextTable) -> tuple[tuple[int, int], bool]:
    """Return the columns of identifiers and of families, and whether the first line names them."""
    names = table.names
    sequence_columns = [names.index(name) for name in _SEQUENCE_COLUMNS if name in names]
    family_columns = [names.index(name) for name in _FAMILY_COLUMNS if name in names]
    if sequence_columns and family_columns:
        table.check_names()
        return (sequence_columns[0], family_columns[0]), True
    is_family = [_ACCESSION.fullmatch(name) is not None for name in names]
    if sorted(is_family) == [False, True]:
        family = is_family.index(True)
        return (1 - family, family), False
    raise InputError(
        f"{table.path}: its first line must name sequence_id and family_id, or there must be two columns without names: "
        f"identifiers and accessions of Pfam; {table.what_it_is()}"
    )


class HeldOutFamilies:
    """The members of some families among the records of a corpus, noted block by block; takes 16 bytes per membership.

    A record is a member if it says so itself, as in UniProtKB's flat files and XML, or if the table says so. It is one too if
    another record with the same residues is: otherwise the family would be in training under another name.

    Args:
        families: accessions, at least one.
        table: the path of a `FamilyTable`; without it, all sources must name the families of their sequences.

    Raises:
        InputError: the table is at fault.
    """

    def __init__(self, families: Sequence[str], table: Path | None) -> None:
        self.families = tuple(families)
        self._table = FamilyTable(table, families) if table else None
        self._sources_with_families: list[str] = []
        self._noted: list[NDArray[np.int64]] = [np.empty((0, 2), dtype=np.int64)]
        self._elsewhere: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        self._counts = np.zeros(len(families), dtype=np.int64)

    def note(self, records: Columns, first: int, elsewhere: NDArray[np.bool_], source: Source) -> None:
        """Note the members among N records that are numbered from `first`.

        Args:
            records: the records.
            first: number of the first.
            elsewhere: (N,) whether the user has chosen another split than held_out for a record.
            source: their file.

        Raises:
            InputError: neither the source nor a table names their families.
        """
        memberships = [records.memberships] if records.memberships else []
        if self._table:
            memberships.append(self._table.memberships(records.ids, records.id_lengths, records.id_hashes))
        if not memberships:
            raise InputError(
                f"{source.shown} does not tell the families of its sequences, as UniProtKB's .dat and XML do; give a family "
                "table with columns sequence_id and family_id"
            )
        if records.memberships and source.path.name not in self._sources_with_families:
            self._sources_with_families.append(source.path.name)
        self._noted += [np.stack((first + each.records, each.families), axis=1) for each in memberships]
        self._elsewhere.append(first + np.flatnonzero(elsewhere))

    def replace(self, records: NDArray[np.int64], firsts: NDArray[np.int64]) -> None:
        """Replace members that are among `records` (K,) by the first record with the same residues, in `firsts` (K,)."""
        if records.size:
            members = self._members()[:, 0]
            order = np.argsort(records)
            # (members,) index of each member in `records`, if it is among them
            index = order[np.minimum(np.searchsorted(records, members, sorter=order), records.size - 1)]
            members[:] = np.where(records[index] == members, firsts[index], members)

    def held_out(self) -> NDArray[np.int64]:
        """(K,) members in ascending order, but for those that the user has put elsewhere.

        Raises:
            InputError: there is none at all.
        """
        members = np.unique(self._members(), axis=0)
        if not members.size:
            shown = ", ".join(self.families[:_SHOWN]) + (", ..." if len(self.families) > _SHOWN else "")
            names = f", and that {self._table.path} names sequences as the sources do" if self._table else ""
            raise InputError(f"no sequence belongs to a family to hold out ({shown}); check the accessions{names}")
        members = members[~np.isin(members[:, 0], np.concatenate(self._elsewhere))]
        self._counts = np.bincount(members[:, 1], minlength=len(self.families))
        return np.unique(members[:, 0])

    def _members(self) -> NDArray[np.int64]:
        """(K, 2) records and families, to be changed in place."""
        self._noted = [np.concatenate(self._noted)]
        return self._noted[0]

    def determinants(self) -> list[Any]:
        """Return what determines the members, besides the records."""
        return [*self.families, self._table.path.name, self._table.sha256] if self._table else [*self.families]

    def state(self) -> dict[str, list[Any]]:
        """Return what was noted so far, as JSON can hold it."""
        elsewhere = np.concatenate(self._elsewhere)
        return {
            "noted": self._members().tolist(),
            "elsewhere": elsewhere.tolist(),
            "telling": self._sources_with_families,
        }

    def restore(self, state: dict[str, list[Any]]) -> None:
        """Take over what was noted before."""
        self._noted = [np.array(state["noted"], dtype=np.int64).reshape(-1, 2)]
        self._elsewhere = [np.array(state["elsewhere"], dtype=np.int64)]
        self._sources_with_families = state["telling"]

    def facts(self) -> dict[str, Any]:
        """Return the entry for the manifest."""
        table = self._table
        return {
            "num_held_out": dict(zip(self.families, self._counts.tolist(), strict=True)),
            "told_by_sources": self._sources_with_families,
            "table": {"name": table.path.name, "sha256": table.sha256} if table else None,
        }
