"""Sequence files -> token store: read, filter, split, write."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm import __version__
from protein_lm.alphabet import ResiduePolicy
from protein_lm.choices import OnError
from protein_lm.corpus.cluster_table import ClusterTable
from protein_lm.corpus.digest import Digest, Settings, Workers
from protein_lm.corpus.duplicates import Ledger, RecordSet, Repeated
from protein_lm.corpus.families import HeldOutFamilies, read_families
from protein_lm.corpus.filters import REASONS, Filters, check_answered
from protein_lm.corpus.hashing import hash_identifiers, hash_letters
from protein_lm.corpus.split import Split, SplitRule, SplitTable
from protein_lm.corpus.store import FORMAT_VERSION
from protein_lm.corpus.store_writer import StoreWriter
from protein_lm.errors import ConfigError, InputError
from protein_lm.files.journal import Journal
from protein_lm.files.output import new_directory
from protein_lm.files.sources import BLOCK_BYTES, STANDARD_INPUT, Source, text_bytes
from protein_lm.io.readers import parts, read_blocks
from protein_lm.io.records import Columns, Spans


def prepare(
    sources: Sequence[Path],
    output: Path,
    *,
    policy: ResiduePolicy = ResiduePolicy.KEEP,
    on_error: OnError = OnError.STOP,
    seed: int = 0,
    valid_fraction: float = 0.05,
    test_fraction: float = 0.05,
    split_table: Path | None = None,
    clusters: Path | None = None,
    hold_out_families: Sequence[str] = (),
    family_table: Path | None = None,
    filters: Filters | None = None,
    on_progress: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
    block_bytes: int = BLOCK_BYTES,
    workers: int | None = None,
) -> dict[str, Any]:
    """Make a token store of sequence files and return its manifest.

    Of sequences with the same residues the first is kept. Memory does not grow with the corpus beyond a table of fixed size,
    but for a bit per record. A run that was killed while it read is gone on with by the next one that would give the same,
    see `journal`.

    Args:
        sources: sequence files in the order of the store, see `readers`; `-` is standard input.
        output: the store's folder, which must not exist yet.
        policy: what happens to B, J, O, U, X and Z.
        on_error: what happens to records at fault.
        seed: of the split.
        valid_fraction: of sequences, by hash of their identifiers.
        test_fraction: likewise.
        split_table: a table of splits by identifier, see `SplitTable`; it goes before all else.
        clusters: a table of clusters, see `ClusterTable`: the fractions are then of clusters, which are never torn apart.
        hold_out_families: whose members are held out, see `read_families`; this goes before all but the table of splits,
            and a cluster may be torn apart by it.
        family_table: tells which sequences belong to them where the sources do not, see `FamilyTable`.
        filters: which records are wanted; None: all.
        on_progress: called with the bytes of source files read so far.
        say: called with a line that says that a killed run is gone on with, or why not.
        block_bytes: of text worked on at a time; the result does not depend on it.
        workers: processes that parse, or threads where the compiled reader does; the result does not depend on it. 0: this
            process alone. None: threads for all processors but two, or where files are large, processes for all but one.

    Raises:
        InputError: a source or a table is at fault, a filter cannot be applied, or no sequence is left.
        ConfigError: impossible fractions.
        OutputError: the output exists already or cannot be written.
    """
    rule = SplitRule(seed=seed, valid_fraction=valid_fraction, test_fraction=test_fraction)
    accessions = read_families(hold_out_families)
    if family_table and not accessions:
        raise ConfigError(f"{family_table} tells families, but none is to be held out; name some, or leave it out")
    table = SplitTable(split_table) if split_table else None
    of_clusters = ClusterTable(clusters) if clusters else None
    families = HeldOutFamilies(accessions, family_table) if accessions else None
    others = _processors() - 1
    threads = max(0, min(others - 1, _MOST_THREADS))  # one processor is for the thread that hashes or decompresses
    processes = others if others > 1 and text_bytes(sources) > _LARGE_BYTES else 0
    if workers is not None:
        threads = processes = workers
    settings = Settings(policy, on_error, filters or Filters())
    facts = _determinants(sources, settings, rule, table, of_clusters, families, block_bytes)
    journal = Journal(output, sources, facts, say=say)
    with (
        new_directory(output, adopt=journal.adopt) as folder,
        StoreWriter(folder, journal.files) as writer,
        Workers(threads, processes) as readers,
    ):
        preparation = _Preparation(settings, rule, table, of_clusters, families, writer, folder, journal, sources)
        for path in sources[preparation.num_sources :]:
            with Source(path, block_bytes=block_bytes) as source:
                remaining = islice(parts(source, accessions), preparation.num_parts, None)
                for each in readers.digests(remaining, settings):
                    preparation.add(each, source)
                    if journal.is_due():
                        preparation.save(source)
                    if on_progress:
                        on_progress(preparation.bytes_before + source.bytes_read)
                preparation.end_source(source)
        preparation.check(sources)
        return writer.complete(preparation.facts())


def _determinants(
    sources: Sequence[Path],
    settings: Settings,
    rule: SplitRule,
    table: SplitTable | None,
    clusters: ClusterTable | None,
    families: HeldOutFamilies | None,
    block_bytes: int,
) -> dict[str, Any]:
    """All that determines the store, and where its parts are cut; names are those of messages."""
    facts = [(path, path.stat()) for path in sources if path.is_file()]
    return {
        "version": [__version__, FORMAT_VERSION],
        "sources": [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in facts],
        "size of blocks": block_bytes,
        "residue policy": settings.policy.value,
        "treatment of errors": settings.on_error.value,
        "filters": settings.filters.facts(),
        "rule of the split": [rule.seed, rule.valid_fraction, rule.test_fraction],
        "table of splits": [table.path.name, table.sha256] if table else None,
        "table of clusters": [clusters.path.name, clusters.sha256] if clusters else None,
        "families": families.determinants() if families else None,
    }


_MOST_THREADS = 4
"""That read: more only wait for the one that writes."""
_LARGE_BYTES = 2**26
"""Of text: below, starting processes takes longer than they save."""


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Preparation:
    """What must be remembered from block to block."""

    def __init__(
        self,
        settings: Settings,
        rule: SplitRule,
        table: SplitTable | None,
        clusters: ClusterTable | None,
        families: HeldOutFamilies | None,
        writer: StoreWriter,
        folder: Path,
        journal: Journal,
        sources: Sequence[Path],
    ) -> None:
        self._settings, self._folder, self._journal = settings, folder, journal
        self._rule, self._table, self._clusters, self._families = rule, table, clusters, families
        self._writer = writer
        self._identifiers = Ledger(folder, "identifiers", journal.files)
        saved = journal.state or {}
        num_bytes = None if families else text_bytes(sources)  # with families it matters which sequences are equal
        self._repeated = Repeated(folder, num_bytes, journal.files, writer.sequences)
        self._sources: list[dict[str, Any]] = saved.get("sources", [])
        self.num_parts: int = saved.get("num_parts", 0)
        """Of the source at hand, that are done."""
        self._num_read: int = saved.get("num_read", 0)
        self._num_dropped: Counter[str] = Counter(saved.get("num_dropped"))
        self._was_said = frozenset(saved.get("was_said", ()))
        self._changes: Counter[str] = Counter(saved.get("changes"))
        self._lacks_cluster: bool = saved.get("lacks_cluster", False)
        if self._families and saved:
            self._families.restore(saved["families"])
        if self._table and saved:
            for _, ids, lengths in writer.identifiers():
                self._table.assign(hash_letters(ids, lengths), np.empty(lengths.size, dtype=np.uint8))

    def save(self, source: Source) -> None:
        """Save where the run is, in the midst of a source."""
        state = {
            "sources": self._sources,
            "num_parts": self.num_parts,
            "num_read": self._num_read,
            "num_dropped": self._num_dropped,
            "was_said": sorted(self._was_said),
            "changes": self._changes,
            "lacks_cluster": self._lacks_cluster,
            "families": self._families.state() if self._families else None,
        }
        files = self._writer.marks() | self._repeated.marks() | self._identifiers.marks()
        self._journal.save(self._folder, state, files, source.read_so_far())

    @property
    def num_sources(self) -> int:
        """Sources that are done."""
        return len(self._sources)

    @property
    def bytes_before(self) -> int:
        """Bytes of the sources that are done."""
        return sum(source["bytes"] for source in self._sources)

    def add(self, digest: Digest | None, source: Source) -> None:
        """Write the records of a part, if it has any; duplicates and members of families are noted."""
        self.num_parts += 1
        if digest is None:
            return
        self._num_read += digest.num_read
        self._num_dropped += digest.num_dropped
        self._was_said |= digest.was_said
        records = digest.records
        self._changes += records.changes
        splits = self._rule.assign(self._keys_of_split(records))
        first, prints = self._writer.num_sequences, records.fingerprints
        by_table = self._table.assign(records.id_hashes, splits) if self._table else np.zeros(splits.size, dtype=bool)
        if self._families:
            self._families.note(records, first, by_table & (splits != Split.HELD_OUT), source)
        self._identifiers.add(records.id_hashes, prints[:, 0], first)  # duplicates too, whose numbers nobody asks for
        is_new = self._repeated.add(prints, first)
        self._num_dropped["duplicate_sequence"] += int(np.count_nonzero(~is_new))
        self._writer.append(records, splits, is_new)

    def end_source(self, source: Source) -> None:
        """Note where the records since the last source came from."""
        facts = {"name": source.path.name, "bytes": source.bytes_read, "sha256": source.sha256}
        before = sum(each["sequences"] for each in self._sources)
        self._sources.append({**facts, "sequences": self._num_read - before})
        self.num_parts = 0

    def _keys_of_split(self, records: Columns) -> NDArray[np.uint64]:
        """What decides the split of each record: its identifier, or its cluster."""
        if self._clusters is None:
            return records.id_hashes
        keys, has_cluster = self._clusters.keys(records.id_hashes)
        self._lacks_cluster |= not has_cluster.all()  # a fault, unless it turns out to be a duplicate
        return keys

    def check(self, sources: Sequence[Path]) -> None:
        """Drop duplicates, and refuse what can only be seen when all is read."""
        if (suspects := self._identifiers.conflicts()).size:
            _refuse_identifier(suspects, sources, self._settings)
        check_answered(self._settings.filters, self._was_said)
        if self._table:
            self._table.check_all_seen()
        repeated = RecordSet(self._writer.num_sequences)
        for records, firsts in self._repeated.found():
            repeated.add(records)
            if self._families:
                self._families.replace(records, firsts)
        if self._clusters and self._lacks_cluster:
            self._check_clusters(self._clusters, repeated)
        self._journal.close(self._folder)
        self._repeated.remove()
        self._identifiers.remove()
        if self._families and self._writer.num_sequences:
            self._writer.move(self._families.held_out(), Split.HELD_OUT)
        self._writer.drop(repeated)
        self._num_dropped["duplicate_sequence"] += repeated.num_members
        if not self._writer.num_sequences:
            dropped = {reason: self._num_dropped[reason] for reason in REASONS if self._num_dropped[reason]}
            reasons = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in dropped.items())
            raise InputError(
                f"no sequence is left of {self._num_read:,} in {', '.join(map(str, sources))}: {reasons}; "
                "relax the filters or the residue policy"
            )

    def _check_clusters(self, clusters: ClusterTable, repeated: RecordSet) -> None:
        number, names = 0, list[bytes]()
        for first, ids, lengths in self._writer.identifiers():
            _, has_cluster = clusters.keys(hash_letters(ids, lengths))
            lacking = ~has_cluster & ~repeated.has(np.arange(first, first + lengths.size))
            number += int(lacking.sum())
            names += Spans.back_to_back(ids.tobytes(), lengths).select(lacking).cut()[: _SHOWN - len(names)]
        if number:
            raise InputError(
                f"{clusters.path} has no cluster for {number:,} sequences: {b', '.join(names).decode()}"
                f"{', ...' if number > len(names) else ''}; add them, or filter them out"
            )

    def facts(self) -> dict[str, Any]:
        """The manifest, without what the writer knows."""
        table, clusters, splits = self._table, self._clusters, self._writer.splits()
        return {
            "protein_lm_version": __version__,
            "sources": self._sources,
            "num_sequences": sum(numbers["num_sequences"] for numbers in splits.values()),
            "num_residues": sum(numbers["num_residues"] for numbers in splits.values()),
            "num_read": self._num_read,
            "num_dropped": {reason: self._num_dropped[reason] for reason in REASONS},
            "filters": self._settings.filters.facts(),
            "on_error": self._settings.on_error.value,
            "residue_policy": self._settings.policy.value,
            "residue_changes": {name: self._changes[name] for name in _CHANGES},
            "split": {
                "rule": "hash of cluster_id" if clusters else "hash of sequence_id",
                "seed": self._rule.seed,
                "valid_fraction": self._rule.valid_fraction,
                "test_fraction": self._rule.test_fraction,
                "table": {"name": table.path.name, "sha256": table.sha256} if table else None,
                "clusters": {"name": clusters.path.name, "sha256": clusters.sha256} if clusters else None,
                "families": self._families.facts() if self._families else None,
            },
            "splits": splits,
        }


_SHOWN = 10
_CHANGES = ("lower_case", "gaps", "final_stops", "j_to_x", "bouz_to_x")


def _refuse_identifier(suspects: NDArray[np.uint64], sources: Sequence[Path], settings: Settings) -> None:
    """Refuse an identifier that stands for two sequences; once more for the same sequence is a duplicate sequence."""
    if STANDARD_INPUT in sources:
        raise InputError(
            "standard input has an identifier that stands for two sequences; write it to a file, and it will be named"
        )
    first: dict[bytes, tuple[str, bytes]] = {}
    for record in _records_of(suspects, sources, settings):
        identifier, tokens, place = record
        earlier_place, earlier_tokens = first.setdefault(identifier, (place, tokens))
        if tokens != earlier_tokens:
            raise InputError(
                f"{place}: sequence {identifier.decode()} has other residues than at {earlier_place}; "
                "rename or remove one of them"
            )


def _records_of(
    id_hashes: NDArray[np.uint64], sources: Sequence[Path], settings: Settings
) -> Iterator[tuple[bytes, bytes, str]]:
    """Identifier, tokens and place of the records with these hashes, out of the sources, which are read again."""
    for path in sources:  # places are not worth the memory when all is well
        with Source(path) as source:
            for block in read_blocks(source, policy=settings.policy, on_error=settings.on_error):
                identifiers = block.sequence_ids.cut()
                chosen = np.isin(hash_identifiers(identifiers), id_hashes)
                records = zip(identifiers, block.sequences(), block.lines, strict=True)
                for identifier, tokens, line in compress(records, chosen):
                    yield identifier, tokens, f"{path}, line {line}"
