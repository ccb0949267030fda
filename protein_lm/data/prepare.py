"""Sequence files -> token store: read, filter, split, write."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm import __version__
from protein_lm.alphabet import ResiduePolicy
from protein_lm.choices import OnError
from protein_lm.data.cluster_table import ClusterTable
from protein_lm.data.digest import Digest, Settings, digests, make_pool
from protein_lm.data.duplicates import Ledger, RecordSet
from protein_lm.data.families import HeldOutFamilies, read_families
from protein_lm.data.filters import REASONS, Filters, check_answered
from protein_lm.data.hashing import hash_identifiers
from protein_lm.data.readers import parts, read_blocks
from protein_lm.data.records import Spans
from protein_lm.data.sources import BLOCK_BYTES, STANDARD_INPUT, Source
from protein_lm.data.split import Split, SplitRule, SplitTable
from protein_lm.data.store_writer import StoreWriter
from protein_lm.errors import ConfigError, InputError
from protein_lm.output import new_directory


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
    block_bytes: int = BLOCK_BYTES,
    workers: int | None = None,
) -> dict[str, Any]:
    """Make a token store of sequence files and return its manifest.

    Of sequences with the same residues the first is kept. Memory does not grow with the corpus, but for a bit per record.

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
        block_bytes: of text worked on at a time; the result does not depend on it.
        workers: processes that parse; the result does not depend on it. 0: this one alone. None: all processors but one if
            there are more than two and the files are large, or else this one alone.

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
    if workers is None:
        workers = _processors() - 1 if _processors() > 2 and _size(sources) > _LARGE_BYTES else 0
    settings = Settings(policy, on_error, filters or Filters())
    with new_directory(output) as folder, StoreWriter(folder) as writer, _pool(workers) as pool:
        corpus = _Corpus(settings, rule, table, of_clusters, families, writer, folder)
        for path in sources:
            with Source(path, block_bytes=block_bytes) as source:
                for each in digests(parts(source, accessions), settings, pool, workers):
                    corpus.add(each, source)
                    if on_progress:
                        on_progress(corpus.bytes_before + source.bytes_read)
                corpus.end_source(source)
        corpus.check(sources)
        return writer.complete(corpus.facts())


_LARGE_BYTES = 2**26
"""Of all sources: below, starting processes takes longer than they save."""


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _size(sources: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in sources if path.is_file())


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    if not workers:
        yield None
        return
    pool = make_pool(workers)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class _Corpus:
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
    ) -> None:
        self._settings = settings
        self._rule, self._table, self._clusters, self._families = rule, table, clusters, families
        self._writer = writer
        self._without_cluster: list[NDArray[np.int64]] = []
        self._names_without_cluster: dict[int, str] = {}
        self._sources: list[dict[str, Any]] = []
        self._sequences, self._identifiers = Ledger(folder, "sequences"), Ledger(folder, "identifiers")
        self._num_read = self._num_read_before = 0
        self._num_dropped: Counter[str] = Counter()
        self._was_said: frozenset[str] = frozenset()
        self._changes: Counter[str] = Counter()

    @property
    def bytes_before(self) -> int:
        """Bytes of the sources that are done."""
        return sum(source["bytes"] for source in self._sources)

    def add(self, digest: Digest, source: Source) -> None:
        """Write records; duplicates and members of families are noted."""
        self._num_read += digest.num_read
        self._num_dropped += digest.num_dropped
        self._was_said |= digest.was_said
        self._changes += digest.changes
        splits = self._rule.assign(self._keys_of_split(digest))
        first, prints = self._writer.num_sequences, digest.fingerprints
        by_table = self._table.assign(digest.id_hashes, splits) if self._table else np.zeros(splits.size, dtype=bool)
        if self._families:
            self._families.note(digest, first, by_table & (splits != Split.HELD_OUT), source)
        self._sequences.add(prints[:, 0], prints[:, 1], first)
        self._identifiers.add(digest.id_hashes, prints[:, 0], first)
        self._writer.append(digest.tokens, digest.lengths, splits, digest.ids, digest.id_lengths, digest.annotations)

    def end_source(self, source: Source) -> None:
        """Note where the records since the last source came from."""
        facts = {"name": source.path.name, "bytes": source.bytes_read, "sha256": source.sha256}
        self._sources.append({**facts, "sequences": self._num_read - self._num_read_before})
        self._num_read_before = self._num_read

    def _keys_of_split(self, digest: Digest) -> NDArray[np.uint64]:
        """What decides the split of each record: its identifier, or its cluster."""
        if self._clusters is None:
            return digest.id_hashes
        keys, has_cluster = self._clusters.keys(digest.id_hashes)
        if not has_cluster.all():  # a fault, unless it turns out to be a duplicate
            records = self._writer.num_sequences + np.flatnonzero(~has_cluster)
            self._without_cluster.append(records)
            if len(self._names_without_cluster) < _NAMES_HELD:
                names = Spans.back_to_back(digest.ids.tobytes(), digest.id_lengths).select(~has_cluster).cut()
                self._names_without_cluster |= zip(records.tolist(), map(bytes.decode, names), strict=True)
        return keys

    def check(self, sources: Sequence[Path]) -> None:
        """Drop duplicates, and refuse what can only be seen when all is read."""
        if (suspects := self._identifiers.conflicts()).size:
            _refuse_identifier(suspects, sources, self._settings)
        check_answered(self._settings.filters, self._was_said)
        if self._table:
            self._table.check_all_seen()
        repeated = RecordSet(self._writer.num_sequences)
        for records, firsts in self._sequences.repeats():
            repeated.add(records)
            if self._families:
                self._families.replace(records, firsts)
        if self._clusters:
            self._check_clusters(self._clusters, repeated)
        if self._families and self._writer.num_sequences:
            self._writer.move(self._families.held_out(), Split.HELD_OUT)
        self._writer.drop(repeated)
        self._num_dropped["duplicate_sequence"] = repeated.num_members
        if not self._writer.num_sequences:
            dropped = {reason: self._num_dropped[reason] for reason in REASONS if self._num_dropped[reason]}
            reasons = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in dropped.items())
            raise InputError(
                f"no sequence is left of {self._num_read:,} in {', '.join(map(str, sources))}: {reasons}; "
                "relax the filters or the residue policy"
            )

    def _check_clusters(self, clusters: ClusterTable, repeated: RecordSet) -> None:
        records = np.concatenate([np.empty(0, dtype=np.int64), *self._without_cluster])
        if not (records := records[~repeated.has(records)]).size:
            return
        held = self._names_without_cluster
        names = [held[record] for record in records[:_SHOWN].tolist() if record in held]
        raise InputError(
            f"{clusters.path} has no cluster for {records.size:,} sequences: {', '.join(names)}"
            f"{', ...' if records.size > len(names) else ''}; add them, or filter them out"
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
_NAMES_HELD = 100_000
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
