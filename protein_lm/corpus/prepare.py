"""Makes a token store of sequence files: reads, filters, splits, writes. A killed run is resumed by the next one."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm import __version__
from protein_lm.alphabet import ResiduePolicy
from protein_lm.choices import OnError
from protein_lm.corpus.duplicates import Ledger, RecordSet, RepeatFinder
from protein_lm.corpus.families import HeldOutFamilies, read_families
from protein_lm.corpus.filters import REASONS, Filters, check_annotated
from protein_lm.corpus.split import ClusterTable, Split, SplitRule, SplitTable
from protein_lm.corpus.store import FORMAT_VERSION
from protein_lm.corpus.store_writer import StoreWriter
from protein_lm.corpus.workers import PartResult, Settings, Workers
from protein_lm.errors import ConfigError, InputError
from protein_lm.files.output import checksum
from protein_lm.files.resume import StateError, WorkFolder, resumable_directory
from protein_lm.files.sources import BLOCK_BYTES, STANDARD_INPUT, Source, text_bytes
from protein_lm.io.hashing import hash_identifiers, hash_letters
from protein_lm.io.readers import parts, read_blocks
from protein_lm.io.records import Columns, Spans

SAVED_SECONDS = 10.0
"""Time between two saves, which take 0.07 s each: a killed run loses no more."""
_MOST_THREADS = 4
"""Threads that read: more would only wait for the one that writes."""
_LARGE_BYTES = 2**26
"""Bytes of text from which on starting processes takes less time than they save."""


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

    The first of sequences with the same residues is kept. Memory does not grow with the corpus beyond a table of fixed size,
    but for a bit per record. If a run is killed while it reads, the next one with the same settings resumes it.

    Args:
        sources: sequence files in the order of the store; `-` is standard input, which cannot be resumed.
        output: the store's folder, which must not exist yet.
        policy: treatment of B, J, O, U, X and Z.
        on_error: treatment of records at fault.
        seed: seed of the split.
        valid_fraction: share of sequences, by a hash of their identifiers.
        test_fraction: share of sequences, likewise.
        split_table: path of a `SplitTable`; it goes before all else.
        clusters: path of a `ClusterTable`: the fractions are then of clusters, which are never torn apart.
        hold_out_families: families to hold out, as `read_families` takes them. This goes before all but the table of splits,
            and may tear a cluster apart.
        family_table: path of a `FamilyTable`, where sources do not name the families of their sequences.
        filters: which records are wanted; None: all.
        on_progress: called with the bytes of source files read so far.
        say: called with a line if a killed run is resumed, or if it cannot be.
        block_bytes: text worked on at a time; the result does not depend on it.
        workers: threads of the compiled reader, or processes for other formats; the result does not depend on it. 0: this
            process alone. None: threads for all processors but two; for large files of other formats, processes for all but
            one.

    Raises:
        InputError: a source or a table is at fault, a filter cannot be applied, or no sequence is left.
        ConfigError: impossible fractions.
        OutputError: the output exists already or cannot be written.
    """
    say = say or (lambda line: None)
    rule = SplitRule(seed=seed, valid_fraction=valid_fraction, test_fraction=test_fraction)
    accessions = read_families(hold_out_families)
    if family_table and not accessions:
        raise ConfigError(f"{family_table} tells families, but none is to be held out; name some, or leave it out")
    choices = _Choices(
        settings=Settings(policy, on_error, filters or Filters()),
        rule=rule,
        table=SplitTable(split_table) if split_table else None,
        clusters=ClusterTable(clusters) if clusters else None,
        families=HeldOutFamilies(accessions, family_table) if accessions else None,
    )
    determinants = choices.determinants(sources, block_bytes)
    threads, processes = (workers, workers) if workers is not None else _numbers_of_workers(sources)
    with (
        resumable_directory(output, determinants, check_input=partial(_check_source, sources), say=say) as work,
        StoreWriter(work) as writer,
        Workers(threads, processes) as readers,
    ):
        preparation = _Preparation(choices, work, writer, sources)
        if work.state is not None:
            say(f"{output}: resuming what a killed run had begun, after {preparation.num_read:,} records")
        for path in sources[preparation.num_sources :]:
            with Source(path, block_bytes=block_bytes) as source:
                remaining = islice(parts(source, accessions), preparation.num_parts, None)
                for result in readers.results(remaining, choices.settings):
                    preparation.add(result, source)
                    preparation.save_if_due(source)
                    if on_progress:
                        on_progress(preparation.bytes_before + source.bytes_read)
                preparation.end_source(source)
        preparation.check()
        return writer.complete(preparation.facts())


def _numbers_of_workers(sources: Sequence[Path]) -> tuple[int, int]:
    """Choose numbers of threads and of processes."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(0, min(processors - 2, _MOST_THREADS))  # another thread hashes or decompresses
    return threads, processors - 1 if processors > 2 and text_bytes(sources) > _LARGE_BYTES else 0


@dataclass(frozen=True)
class _Choices:
    """The user's choices that determine the store, besides the sources."""

    settings: Settings
    rule: SplitRule
    table: SplitTable | None
    clusters: ClusterTable | None
    families: HeldOutFamilies | None

    def determinants(self, sources: Sequence[Path], block_bytes: int) -> dict[str, Any]:
        """Return all that determines the store and the parts; messages use the names."""
        facts = [(path, path.stat()) for path in sources if path.is_file()]
        return {
            "version": [__version__, FORMAT_VERSION],
            "sources": [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in facts],
            "size of blocks": block_bytes,
            "residue policy": self.settings.policy.value,
            "treatment of errors": self.settings.on_error.value,
            "filters": self.settings.filters.facts(),
            "rule of the split": [self.rule.seed, self.rule.valid_fraction, self.rule.test_fraction],
            "table of splits": [self.table.path.name, self.table.sha256] if self.table else None,
            "table of clusters": [self.clusters.path.name, self.clusters.sha256] if self.clusters else None,
            "families": self.families.determinants() if self.families else None,
        }


def _check_source(sources: Sequence[Path], state: dict[str, Any]) -> None:
    """Raise StateError if the source that a killed run was reading does not begin with the bytes that it read."""
    source, read = sources[len(state["sources"])], state["read"]
    if checksum(source, num_bytes=read["bytes"], digest=hashlib.sha256()) != read["sha256"]:
        raise StateError(f"{source} has changed")


class _Preparation:
    """Everything to remember from part to part."""

    def __init__(self, choices: _Choices, work: WorkFolder, writer: StoreWriter, sources: Sequence[Path]) -> None:
        self._settings, self._rule = choices.settings, choices.rule
        self._table, self._clusters, self._families = choices.table, choices.clusters, choices.families
        self._work, self._writer, self._paths = work, writer, sources
        self._identifiers = Ledger(work, "identifiers")
        num_bytes = (
            None if choices.families else text_bytes(sources)
        )  # with families it matters which sequences are equal
        self._repeats = RepeatFinder(work, num_bytes, writer.sequences)
        saved = work.state or {}
        self._sources: list[dict[str, Any]] = saved.get("sources", [])
        self.num_parts: int = saved.get("num_parts", 0)
        """Parts of the current source that are done."""
        self.num_read: int = saved.get("num_read", 0)
        self._num_dropped: Counter[str] = Counter(saved.get("num_dropped"))
        self._annotated = frozenset(saved.get("annotated", ()))
        self._changes: Counter[str] = Counter(saved.get("changes"))
        self._lacks_cluster: bool = saved.get("lacks_cluster", False)
        self._saved_at = time.monotonic()
        if self._families and saved:
            self._families.restore(saved["families"])
        if self._table and saved:  # it notes which of its sequences came
            for _, ids, lengths in writer.identifiers():
                self._table.assign(hash_letters(ids, lengths), np.empty(lengths.size, dtype=np.uint8))

    def save_if_due(self, source: Source) -> None:
        """Save how far the run is, in the midst of a source, if the last save is some time ago."""
        if time.monotonic() - self._saved_at < SAVED_SECONDS or STANDARD_INPUT in self._paths:
            return
        self._writer.settle()
        self._repeats.settle()
        self._identifiers.settle()
        num_bytes, sha256 = source.read_so_far()  # at least what the parts so far came from
        self._work.save(
            {
                "sources": self._sources,
                "num_parts": self.num_parts,
                "num_read": self.num_read,
                "num_dropped": self._num_dropped,
                "annotated": sorted(self._annotated),
                "changes": self._changes,
                "lacks_cluster": self._lacks_cluster,
                "families": self._families.state() if self._families else None,
                "read": {"bytes": num_bytes, "sha256": sha256},
            }
        )
        self._saved_at = time.monotonic()

    @property
    def num_sources(self) -> int:
        """Number of sources that are done."""
        return len(self._sources)

    @property
    def bytes_before(self) -> int:
        """Bytes of the sources that are done."""
        return sum(source["bytes"] for source in self._sources)

    def add(self, result: PartResult | None, source: Source) -> None:
        """Write the records of a part, if it has any; note duplicates and members of families."""
        self.num_parts += 1
        if result is None:
            return
        self.num_read += result.num_read
        self._num_dropped += result.num_dropped
        self._annotated |= result.annotated
        records = result.records
        self._changes += records.changes
        splits = self._rule.assign(self._split_keys(records))
        first, prints = self._writer.num_sequences, records.fingerprints
        by_table = self._table.assign(records.id_hashes, splits) if self._table else np.zeros(splits.size, dtype=bool)
        if self._families:
            self._families.note(records, first, by_table & (splits != Split.HELD_OUT), source)
        self._identifiers.add(records.id_hashes, prints[:, 0], first)  # duplicates too, whose numbers nobody asks for
        is_new = self._repeats.add(prints, first)
        self._num_dropped["duplicate_sequence"] += int(np.count_nonzero(~is_new))
        self._writer.append(records, splits, is_new)

    def end_source(self, source: Source) -> None:
        """Add the source to the list of those that are done."""
        facts = {"name": source.path.name, "bytes": source.bytes_read, "sha256": source.sha256}
        before = sum(each["sequences"] for each in self._sources)
        self._sources.append({**facts, "sequences": self.num_read - before})
        self.num_parts = 0

    def _split_keys(self, records: Columns) -> NDArray[np.uint64]:
        """(N,) hash that decides the split of each record: of its identifier, or of its cluster."""
        if self._clusters is None:
            return records.id_hashes
        keys, has_cluster = self._clusters.keys(records.id_hashes)
        self._lacks_cluster |= not has_cluster.all()  # a fault, unless it turns out to be a duplicate
        return keys

    def check(self) -> None:
        """Drop duplicates, and refuse what shows only when all is read."""
        if (suspects := self._identifiers.conflicts()).size:
            _refuse_identifier(suspects, self._paths, self._settings)
        check_annotated(self._settings.filters, self._annotated)
        if self._table:
            self._table.check_all_seen()
        repeated = RecordSet(self._writer.num_sequences)
        for records, firsts in self._repeats.late_repeats():
            repeated.add(records)
            if self._families:
                self._families.replace(records, firsts)
        if self._clusters and self._lacks_cluster:
            self._check_clusters(self._clusters, repeated)
        self._work.forget()
        self._repeats.remove()
        self._identifiers.remove()
        if self._families and self._writer.num_sequences:
            self._writer.move(self._families.held_out(), Split.HELD_OUT)
        self._writer.drop(repeated)
        self._num_dropped["duplicate_sequence"] += repeated.num_members
        if not self._writer.num_sequences:
            dropped = {reason: self._num_dropped[reason] for reason in REASONS if self._num_dropped[reason]}
            reasons = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in dropped.items())
            raise InputError(
                f"no sequence is left of {self.num_read:,} in {', '.join(map(str, self._paths))}: {reasons}; "
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
        """Return the manifest, but for its list of files."""
        table, clusters, splits = self._table, self._clusters, self._writer.splits()
        return {
            "protein_lm_version": __version__,
            "sources": self._sources,
            "num_sequences": sum(numbers["num_sequences"] for numbers in splits.values()),
            "num_residues": sum(numbers["num_residues"] for numbers in splits.values()),
            "num_read": self.num_read,
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
    """Refuse an identifier of two different sequences. If the sequences are the same, one is a duplicate."""
    if STANDARD_INPUT in sources:
        raise InputError(
            "standard input has an identifier that stands for two sequences; write it to a file, and it will be named"
        )
    first: dict[bytes, tuple[str, bytes]] = {}
    for record in _records_of(suspects, sources, settings):
        identifier, tokens, location = record
        earlier_location, earlier_tokens = first.setdefault(identifier, (location, tokens))
        if tokens != earlier_tokens:
            raise InputError(
                f"{location}: sequence {identifier.decode()} has other residues than at {earlier_location}; "
                "rename or remove one of them"
            )


def _records_of(
    id_hashes: NDArray[np.uint64], sources: Sequence[Path], settings: Settings
) -> Iterator[tuple[bytes, bytes, str]]:
    """Yield identifier, tokens and location (file and line) of the records with these hashes: reads the sources again."""
    for path in sources:  # locations are not worth the memory when all is well
        with Source(path) as source:
            for block in read_blocks(source, policy=settings.policy, on_error=settings.on_error):
                identifiers = block.sequence_ids.cut()
                chosen = np.isin(hash_identifiers(identifiers), id_hashes)
                records = zip(identifiers, block.sequences(), block.lines, strict=True)
                for identifier, tokens, line in compress(records, chosen):
                    yield identifier, tokens, f"{path}, line {line}"
