"""Pfam families that are set aside as a whole: which ones, and which sequences belong to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm.corpus.family_table import ACCESSION, FamilyTable
from protein_lm.errors import ConfigError, InputError
from protein_lm.files.sources import Source
from protein_lm.files.text import unix_lines
from protein_lm.io.records import Columns

_PERFORMER = (
    *("PF03272", "PF03492", "PF03938", "PF04153", "PF04420", "PF04680", "PF05318", "PF06173", "PF06905", "PF06917"),
    *("PF10696", "PF10841", "PF11968", "PF12325", "PF12378", "PF15340", "PF17055", "PF17724", "PF17988", "PF18369"),
)
"""Held out by Choromanski et al., Rethinking Attention with Performers, arXiv 2009.14794, appendix on protein data."""
PRESETS = {"performer": _PERFORMER}
_FORM = "PF and five digits, as PF00069"
_SHOWN_LETTERS = 40
_SHOWN = 10


def read_families(words: Sequence[str]) -> tuple[str, ...]:
    """Accessions of Pfam in ascending order, out of accessions, names of presets and files of accessions.

    Each word is one of these or several, separated by commas; a file has one accession in a line.

    Raises:
        ConfigError: a word is none of these.
        InputError: a file cannot be read, or has something else in it.

    >>> read_families(["PF00069,PF07714", "PF00069"])
    ('PF00069', 'PF07714')
    """
    families: set[str] = set()
    for word in (part.strip() for several in words for part in several.split(",")):
        if ACCESSION.fullmatch(word):
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
        if line and not ACCESSION.fullmatch(line):
            raise InputError(f"{path}, line {number}: {line[:_SHOWN_LETTERS]!r} is no Pfam accession; write {_FORM}")
        families.add(line)
    if not (families := families - {""}):
        raise InputError(f"{path} names no family; write accessions of Pfam into it, one in a line")
    return families


class HeldOutFamilies:
    """The members of some families among the records of a corpus, noted block by block; holds 16 bytes per membership.

    A record is a member if it says so itself, as UniProtKB's flat files and XML do, or if the table says so, or if another
    record with the same residues is one: otherwise the family would be in training under another name.

    Args:
        families: accessions, at least one.
        table: see `FamilyTable`; without it, all sources must tell.

    Raises:
        InputError: the table is at fault.
    """

    def __init__(self, families: Sequence[str], table: Path | None) -> None:
        self.families = tuple(families)
        self._table = FamilyTable(table, families) if table else None
        self._telling: list[str] = []
        self._noted: list[NDArray[np.int64]] = [np.empty((0, 2), dtype=np.int64)]
        self._elsewhere: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
        self._counts = np.zeros(len(families), dtype=np.int64)

    def note(self, records: Columns, first: int, elsewhere: NDArray[np.bool_], source: Source) -> None:
        """Note the members among N records that are numbered from `first`.

        Args:
            records: what there is of them.
            first: number of the first.
            elsewhere: (N,) those for which the user has chosen another split than held_out.
            source: where they come from.

        Raises:
            InputError: neither the source nor a table tells their families.
        """
        found = [records.memberships] if records.memberships else []
        if self._table:
            found.append(self._table.memberships(records.ids, records.id_lengths, records.id_hashes))
        if not found:
            raise InputError(
                f"{source.shown} does not tell the families of its sequences, as UniProtKB's .dat and XML do; give a family "
                "table with columns sequence_id and family_id"
            )
        if records.memberships and source.path.name not in self._telling:
            self._telling.append(source.path.name)
        self._noted += [np.stack((first + each.records, each.families), axis=1) for each in found]
        self._elsewhere.append(first + np.flatnonzero(elsewhere))

    def replace(self, records: NDArray[np.int64], firsts: NDArray[np.int64]) -> None:
        """Where a member is one of these records (K,), the first record with the same residues (K,) is one in its place."""
        if records.size:
            members = self._members()[:, 0]
            order = np.argsort(records)
            place = order[np.minimum(np.searchsorted(records, members, sorter=order), records.size - 1)]
            members[:] = np.where(records[place] == members, firsts[place], members)

    def held_out(self) -> NDArray[np.int64]:
        """The members (K,) in ascending order, but for those that the user has put elsewhere.

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
        """What the members depend on, besides the records."""
        return [*self.families, self._table.path.name, self._table.sha256] if self._table else [*self.families]

    def state(self) -> dict[str, list[Any]]:
        """What was noted so far, for JSON."""
        elsewhere = np.concatenate(self._elsewhere)
        return {"noted": self._members().tolist(), "elsewhere": elsewhere.tolist(), "telling": self._telling}

    def restore(self, state: dict[str, list[Any]]) -> None:
        """Go on from what was noted before."""
        self._noted = [np.array(state["noted"], dtype=np.int64).reshape(-1, 2)]
        self._elsewhere = [np.array(state["elsewhere"], dtype=np.int64)]
        self._telling = state["telling"]

    def facts(self) -> dict[str, Any]:
        """What the manifest says."""
        table = self._table
        return {
            "num_held_out": dict(zip(self.families, self._counts.tolist(), strict=True)),
            "told_by_sources": self._telling,
            "table": {"name": table.path.name, "sha256": table.sha256} if table else None,
        }
