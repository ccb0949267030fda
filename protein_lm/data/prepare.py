"""Sequence files -> token store: read, filter, split, write."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm import __version__
from protein_lm.alphabet import ResiduePolicy
from protein_lm.choices import OnError
from protein_lm.data.cluster_table import ClusterTable
from protein_lm.data.duplicates import Ledger, RecordSet, fingerprints
from protein_lm.data.filters import Filter, Filters
from protein_lm.data.hashing import hash_identifiers, hash_letters
from protein_lm.data.readers import read_blocks
from protein_lm.data.records import RecordBlock
from protein_lm.data.sources import BLOCK_BYTES, STANDARD_INPUT, Source
from protein_lm.data.split import SplitRule, SplitTable
from protein_lm.data.store_writer import StoreWriter
from protein_lm.errors import InputError
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
    filters: Filters | None = None,
    on_progress: Callable[[int], None] | None = None,
    block_bytes: int = BLOCK_BYTES,
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
        filters: which records are wanted; None: all.
        on_progress: called with the bytes of source files read so far.
        block_bytes: of text worked on at a time; the result does not depend on it.

    Raises:
        InputError: a source or a table is at fault, a filter cannot be applied, or no sequence is left.
        ConfigError: impossible fractions.
        OutputError: the output exists already or cannot be written.
    """
    rule = SplitRule(seed=seed, valid_fraction=valid_fraction, test_fraction=test_fraction)
    table = SplitTable(split_table) if split_table else None
    of_clusters = ClusterTable(clusters) if clusters else None
    with new_directory(output) as folder, StoreWriter(folder) as writer:
        corpus = _Corpus(policy, on_error, filters or Filters(), rule, table, of_clusters, writer, folder)
        corpus.read(sources, block_bytes, on_progress)
        corpus.check(sources)
        return writer.complete(corpus.facts())


class _Corpus:
    """What must be remembered from block to block."""

    def __init__(
        self,
        policy: ResiduePolicy,
        on_error: OnError,
        filters: Filters,
        rule: SplitRule,
        table: SplitTable | None,
        clusters: ClusterTable | None,
        writer: StoreWriter,
        folder: Path,
    ) -> None:
        self._policy, self._on_error, self._filters = policy, on_error, filters
        self._filter = Filter(filters, policy)
        self._rule, self._table, self._clusters, self._writer = rule, table, clusters, writer
        self._num_without_cluster, self._without_cluster = 0, list[str]()
        self._sources: list[dict[str, Any]] = []
        self._sequences, self._identifiers = Ledger(folder, "sequences"), Ledger(folder, "identifiers")
        self._num_read = 0
        self._changes: Counter[str] = Counter()

    def read(self, sources: Sequence[Path], block_bytes: int, on_progress: Callable[[int], None] | None) -> None:
        """Write what is wanted of all sources; duplicates are noted."""
        for path in sources:
            before, num_before = sum(source["bytes"] for source in self._sources), self._num_read
            with Source(path, block_bytes=block_bytes) as source:
                for block in read_blocks(source, policy=self._policy, on_error=self._on_error):
                    self._add(block)
                    if on_progress:
                        on_progress(before + source.bytes_read)
                facts = {"name": path.name, "bytes": source.bytes_read, "sha256": source.sha256}
                self._sources.append({**facts, "sequences": self._num_read - num_before})

    def _add(self, block: RecordBlock) -> None:
        keep = self._filter.keep(block)
        self._num_read += len(block) + block.num_faulty
        self._changes += block.changes
        sequences, ids, id_lengths = block.sequences(), block.sequence_ids.join(), block.sequence_ids.lengths
        id_hashes = hash_letters(ids, id_lengths)
        splits = self._rule.assign(self._keys_of_split(block, keep, id_hashes))
        if self._table:
            self._table.assign(id_hashes, splits)
        tokens, lengths, annotations = block.tokens, block.lengths, block.annotations
        if not keep.all():
            sequences = list(compress(sequences, keep))
            tokens, ids = b"".join(sequences), ids[np.repeat(keep, id_lengths)]
            lengths, id_lengths, splits = lengths[keep], id_lengths[keep], splits[keep]
            id_hashes, annotations = id_hashes[keep], annotations.select(keep)
        prints, first = fingerprints(sequences), self._writer.num_sequences
        self._sequences.add(prints[:, 0], prints[:, 1], first)
        self._identifiers.add(id_hashes, prints[:, 0], first)
        self._writer.append(tokens, lengths, splits, ids, id_lengths, annotations)

    def _keys_of_split(
        self, block: RecordBlock, keep: NDArray[np.bool_], id_hashes: NDArray[np.uint64]
    ) -> NDArray[np.uint64]:
        """What decides the split of each record: its identifier, or its cluster."""
        if self._clusters is None:
            return id_hashes
        keys, has_cluster = self._clusters.keys(id_hashes)
        if (without := keep & ~has_cluster).any():
            self._num_without_cluster += int(without.sum())
            if len(self._without_cluster) < _SHOWN:
                self._without_cluster += [name.decode() for name in block.sequence_ids.select(without).cut()]
        return keys

    def check(self, sources: Sequence[Path]) -> None:
        """Drop duplicates, and refuse what can only be seen when all is read."""
        if (suspects := self._identifiers.conflicts()).size:
            _refuse_identifier(suspects, sources, self._policy, self._on_error)
        self._filter.check()
        if self._table:
            self._table.check_all_seen()
        if self._clusters and self._num_without_cluster:
            shown = ", ".join(self._without_cluster[:_SHOWN]) + (", ..." if self._num_without_cluster > _SHOWN else "")
            raise InputError(
                f"{self._clusters.path} has no cluster for {self._num_without_cluster:,} sequences: {shown}; add them, or "
                "filter them out"
            )
        repeated = RecordSet(self._writer.num_sequences)
        for records in self._sequences.repeats():
            repeated.add(records)
        self._writer.drop(repeated)
        self._filter.num_dropped["duplicate_sequence"] = repeated.num_members
        if not self._writer.num_sequences:
            dropped = {reason: count for reason, count in self._filter.num_dropped.items() if count}
            reasons = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in dropped.items())
            raise InputError(
                f"no sequence is left of {self._num_read:,} in {', '.join(map(str, sources))}: {reasons}; "
                "relax the filters or the residue policy"
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
            "num_dropped": self._filter.num_dropped,
            "filters": self._filters.facts(),
            "on_error": self._on_error.value,
            "residue_policy": self._policy.value,
            "residue_changes": {name: self._changes[name] for name in _CHANGES},
            "split": {
                "rule": "hash of cluster_id" if clusters else "hash of sequence_id",
                "seed": self._rule.seed,
                "valid_fraction": self._rule.valid_fraction,
                "test_fraction": self._rule.test_fraction,
                "table": {"name": table.path.name, "sha256": table.sha256} if table else None,
                "clusters": {"name": clusters.path.name, "sha256": clusters.sha256} if clusters else None,
            },
            "splits": splits,
        }


_SHOWN = 10
_CHANGES = ("lower_case", "gaps", "final_stops", "j_to_x", "bouz_to_x")


def _refuse_identifier(
    suspects: NDArray[np.uint64], sources: Sequence[Path], policy: ResiduePolicy, on_error: OnError
) -> None:
    """Refuse an identifier that stands for two sequences; once more for the same sequence is a duplicate sequence."""
    if STANDARD_INPUT in sources:
        raise InputError(
            "standard input has an identifier that stands for two sequences; write it to a file, and it will be named"
        )
    first: dict[bytes, tuple[str, bytes]] = {}
    for record in _records_of(suspects, sources, policy, on_error):
        identifier, tokens, place = record
        earlier_place, earlier_tokens = first.setdefault(identifier, (place, tokens))
        if tokens != earlier_tokens:
            raise InputError(
                f"{place}: sequence {identifier.decode()} has other residues than at {earlier_place}; "
                "rename or remove one of them"
            )


def _records_of(
    id_hashes: NDArray[np.uint64], sources: Sequence[Path], policy: ResiduePolicy, on_error: OnError
) -> Iterator[tuple[bytes, bytes, str]]:
    """Identifier, tokens and place of the records with these hashes, out of the sources, which are read again."""
    for path in sources:  # places are not worth the memory when all is well
        with Source(path) as source:
            for block in read_blocks(source, policy=policy, on_error=on_error):
                identifiers = block.sequence_ids.cut()
                chosen = np.isin(hash_identifiers(identifiers), id_hashes)
                records = zip(identifiers, block.sequences(), block.lines, strict=True)
                for identifier, tokens, line in compress(records, chosen):
                    yield identifier, tokens, f"{path}, line {line}"
