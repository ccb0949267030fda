"""FASTA files -> token store: read, filter, split, write."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protein_lm import __version__
from protein_lm.alphabet import ResiduePolicy
from protein_lm.data.fasta import read_blocks
from protein_lm.data.hashing import HashSet, hash_identifiers, hash_letters
from protein_lm.data.records import RecordBlock
from protein_lm.data.sources import BLOCK_BYTES, Source
from protein_lm.data.split import Split, SplitRule, SplitTable
from protein_lm.data.store_writer import StoreWriter
from protein_lm.errors import ConfigError, InputError
from protein_lm.output import new_directory


def prepare(
    sources: Sequence[Path],
    output: Path,
    *,
    policy: ResiduePolicy = ResiduePolicy.KEEP,
    seed: int = 0,
    valid_fraction: float = 0.05,
    test_fraction: float = 0.05,
    split_table: Path | None = None,
    min_length: int = 1,
    max_length: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, Any]:
    """Make a token store of FASTA files and return its manifest.

    Of sequences with the same residues the first is kept. Memory grows with sequences (24 bytes each), not residues.

    Args:
        sources: FASTA files, plain or gzip, in the order of the store.
        output: the store's folder, which must not exist yet.
        policy: what happens to B, J, O, U, X and Z.
        seed: of the split.
        valid_fraction: of sequences, by hash of their identifiers.
        test_fraction: likewise.
        split_table: a table of splits by identifier, see `SplitTable`.
        min_length: in residues; shorter sequences are dropped.
        max_length: in residues; longer sequences are dropped. None keeps all.
        on_progress: called with the bytes of source files read so far.
        block_bytes: of text worked on at a time; the result does not depend on it.

    Raises:
        InputError: a source or the split table is at fault, or no sequence is left.
        ConfigError: impossible fractions or lengths.
        OutputError: the output exists already or cannot be written.
    """
    rule = SplitRule(seed=seed, valid_fraction=valid_fraction, test_fraction=test_fraction)
    if min_length < 1:
        raise ConfigError(f"minimum length {min_length} is below 1, and no sequence is empty; choose 1 or more")
    if max_length is not None and max_length < min_length:
        raise ConfigError(f"maximum length {max_length} is below minimum length {min_length}; exchange or correct them")
    with new_directory(output) as folder, StoreWriter(folder) as writer:
        corpus = _Corpus(policy, min_length, max_length, rule, SplitTable(split_table) if split_table else None)
        for block in corpus.read(sources, block_bytes, on_progress):
            writer.append(*corpus.select(block))
        corpus.check(sources)
        return writer.complete(corpus.facts())


class _Corpus:
    """What must be remembered from block to block."""

    def __init__(
        self,
        policy: ResiduePolicy,
        min_length: int,
        max_length: int | None,
        rule: SplitRule,
        table: SplitTable | None,
    ) -> None:
        self._policy, self._min_length, self._max_length = policy, min_length, max_length
        self._rule, self._table = rule, table
        self._sources: list[dict[str, Any]] = []
        self._known = HashSet()
        self._id_hashes: list[NDArray[np.uint64]] = []
        self._sequence_hashes: list[NDArray[np.uint64]] = []
        self._num_read = 0
        self._dropped = Counter(too_short=0, too_long=0, ambiguous_residue=0, duplicate_sequence=0)
        self._changes: Counter[str] = Counter()
        self._num_sequences = np.zeros(len(Split), dtype=np.int64)
        self._num_residues = np.zeros(len(Split), dtype=np.int64)

    def read(
        self, sources: Sequence[Path], block_bytes: int, on_progress: Callable[[int], None] | None
    ) -> Iterator[RecordBlock]:
        """All blocks of all sources."""
        for path in sources:
            before, num_before = sum(source["bytes"] for source in self._sources), self._num_read
            with Source(path, block_bytes=block_bytes) as source:
                for block in read_blocks(source, policy=self._policy):
                    yield block
                    if on_progress:
                        on_progress(before + source.bytes_read)
                facts = {"name": path.name, "bytes": source.bytes_read, "sha256": source.sha256}
                self._sources.append({**facts, "sequences": self._num_read - num_before})

    def select(
        self, block: RecordBlock
    ) -> tuple[bytes, NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
        """What `StoreWriter.append` takes, of the sequences to keep."""
        sequences, ids, id_lengths = block.sequences(), block.sequence_ids.join(), block.sequence_ids.lengths
        id_hashes = hash_letters(ids, id_lengths)
        sequence_hashes = np.fromiter(map(hash, sequences), dtype=np.int64, count=len(block)).view(np.uint64)
        splits = self._rule.assign(id_hashes)
        if self._table:
            self._table.assign(id_hashes, splits)
        keep = self._filter(block, sequence_hashes)
        self._id_hashes.append(id_hashes)
        self._sequence_hashes.append(sequence_hashes)
        self._num_read += len(block)
        self._changes += block.changes
        self._num_sequences += np.bincount(splits[keep], minlength=len(Split))
        self._num_residues += np.bincount(splits[keep], block.lengths[keep], len(Split)).astype(np.int64)
        if keep.all():
            return block.tokens, block.lengths, splits, ids, id_lengths
        tokens, ids = b"".join(compress(sequences, keep)), ids[np.repeat(keep, id_lengths)]
        return tokens, block.lengths[keep], splits[keep], ids, id_lengths[keep]

    def _filter(self, block: RecordBlock, sequence_hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """(N,) True for the sequences to keep; each of the others is counted under one reason."""
        keep = np.ones(len(block), dtype=bool)
        reasons = {"too_short": block.lengths < self._min_length}
        if self._max_length is not None:
            reasons["too_long"] = block.lengths > self._max_length
        if self._policy is ResiduePolicy.DROP:
            reasons["ambiguous_residue"] = block.has_ambiguous
        for reason, at_fault in reasons.items():
            self._dropped[reason] += int((keep & at_fault).sum())
            keep &= ~at_fault
        candidates = np.flatnonzero(keep)
        keep[candidates] = self._known.add(sequence_hashes[candidates])
        self._dropped["duplicate_sequence"] += candidates.size - int(keep.sum())
        return keep

    def check(self, sources: Sequence[Path]) -> None:
        """Refuse what can only be seen when all is read."""
        _check_identifiers(
            np.concatenate(self._id_hashes), np.concatenate(self._sequence_hashes), sources, self._policy
        )
        if self._table:
            self._table.check_all_seen()
        if not self._num_sequences.any():
            reasons = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in (+self._dropped).items())
            raise InputError(
                f"no sequence is left of {self._num_read:,} in {', '.join(map(str, sources))}: {reasons}; "
                "relax the length limits or the residue policy"
            )

    def facts(self) -> dict[str, Any]:
        """The manifest, without what the writer knows."""
        table = self._table
        return {
            "protein_lm_version": __version__,
            "sources": self._sources,
            "num_sequences": int(self._num_sequences.sum()),
            "num_residues": int(self._num_residues.sum()),
            "num_read": self._num_read,
            "num_dropped": dict(self._dropped),
            "min_length": self._min_length,
            "max_length": self._max_length,
            "residue_policy": self._policy.value,
            "residue_changes": {name: self._changes[name] for name in _CHANGES},
            "split": {
                "rule": "hash of sequence_id",
                "seed": self._rule.seed,
                "valid_fraction": self._rule.valid_fraction,
                "test_fraction": self._rule.test_fraction,
                "table": {"name": table.path.name, "sha256": table.sha256} if table else None,
            },
            "splits": {
                split.label: {
                    "num_sequences": int(self._num_sequences[split]),
                    "num_residues": int(self._num_residues[split]),
                }
                for split in Split
            },
        }


_CHANGES = ("lower_case", "gaps", "final_stops", "j_to_x", "bouz_to_x")


def _check_identifiers(
    id_hashes: NDArray[np.uint64], sequence_hashes: NDArray[np.uint64], sources: Sequence[Path], policy: ResiduePolicy
) -> None:
    """Refuse an identifier that stands for two sequences; once more for the same sequence is a duplicate sequence."""
    ordered = np.sort(id_hashes)
    if not (ordered[1:] == ordered[:-1]).any():
        return
    order = np.lexsort((sequence_hashes, id_hashes))
    ids, sequences = id_hashes[order], sequence_hashes[order]
    suspects = ids[1:][(ids[1:] == ids[:-1]) & (sequences[1:] != sequences[:-1])]
    if not suspects.size:
        return
    first: dict[bytes, tuple[str, bytes]] = {}
    for path in sources:  # read again: places are not worth the memory when all is well
        with Source(path) as source:
            for block in read_blocks(source, policy=policy):
                identifiers = block.sequence_ids.cut()
                chosen = np.isin(hash_identifiers(identifiers), suspects)
                records = zip(identifiers, block.sequences(), block.lines, strict=True)
                for identifier, tokens, line in compress(records, chosen):
                    place = f"{path}, line {line}"
                    earlier_place, earlier_tokens = first.setdefault(identifier, (place, tokens))
                    if tokens != earlier_tokens:
                        raise InputError(
                            f"{place}: sequence {identifier.decode()} has other residues than at {earlier_place}; "
                            "rename or remove one of them"
                        )
