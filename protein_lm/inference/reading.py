"""Reads a file for long work: checks it before, hands out its records in parts, and skips those of earlier work."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xxhash

from protein_lm.choices import ReadingLongPolicy
from protein_lm.corpus.duplicates import Ledger, fingerprints
from protein_lm.errors import ConfigError, InputError
from protein_lm.files.resume import WorkFolder
from protein_lm.files.sources import STANDARD_INPUT, Source
from protein_lm.io.proteins import named_twice
from protein_lm.io.readers import read_blocks, read_records
from protein_lm.io.records import RecordBlock, SequenceRecord
from protein_lm.model.language_model import ProteinLM

TOKENS_OF_PART = 2**18
"""About how many tokens pass through a model between two saves of long work."""
SHOWN_LONG = 5
"""Number of sequences over the window that are named; the others are only counted."""
LEAVE_OUT = "leave it out with --long drop, or use a model with a longer window"


def too_long(sequence_id: str, length: int, longest: int, remedy: str = LEAVE_OUT) -> InputError:
    """Return the error for a sequence over the model's window (residues)."""
    return InputError(f"sequence {sequence_id} has {length:,} residues; this model reads {longest:,}; {remedy}")


def survey(source: Path, *, longest: int | None) -> int | None:
    """Check a file for faults that would stop the work later; memory hardly grows with the file.

    Returns:
        The number of records; None for standard input, which is read only once.

    Raises:
        InputError: as `read_records`, or the file has no record, an identifier twice, or a sequence over `longest` residues.
    """
    if source == STANDARD_INPUT:
        return None
    number = 0
    with TemporaryDirectory() as folder, closing(WorkFolder(Path(folder))) as work, Source(source) as opened:
        ledger = Ledger(work, "identifiers")
        for block in read_blocks(opened):
            if longest is not None and (over := np.flatnonzero(block.lengths > longest)).size:
                raise too_long(_identifiers(block)[over[0]].decode(), int(block.lengths[over[0]]), longest)
            keys = fingerprints(_identifiers(block))
            ledger.add(keys[:, 0], keys[:, 1], number)
            number += len(block)
        pairs = [(int(b), int(a)) for later, first in ledger.repeats() for a, b in zip(first, later, strict=True)]
    if pairs:
        later, first = min(pairs)
        (_, earlier_line), (name, line) = _find(source, first), _find(source, later)
        raise named_twice(name, f"{source}, line {line}", f"line {earlier_line}")
    if not number:
        raise InputError(f"{source} holds no sequence")
    return number


def lift_window_if(policy: ReadingLongPolicy, model: ProteinLM) -> None:
    """Lift the model's window if the policy is `EXTEND`.

    Raises:
        ConfigError: the model cannot read beyond it.
    """
    if policy is ReadingLongPolicy.EXTEND:
        try:
            model.lift_window()
        except ValueError as error:
            raise ConfigError(f"--long extend: {error}; use --long drop, or a model with a longer window") from error


def _identifiers(block: RecordBlock) -> list[bytes]:
    return block.sequence_ids.cut()


def _find(source: Path, number: int) -> tuple[str, int]:
    """Return identifier and line of a record."""
    with Source(source) as opened:
        for block in read_blocks(opened):
            if number < len(block):
                return _identifiers(block)[number].decode(), int(block.lines[number])
            number -= len(block)
    raise InputError(f"{source} has changed while it was read; start again")


@dataclass(frozen=True)
class Summary:
    """Counts of the sequences of a file."""

    num_used: int
    num_long: int
    """Sequences over the model's window, used or not."""
    first_long: Sequence[str]
    """Identifiers of the first of them."""


class Reading:
    """The records of a file in parts, without those that earlier work has read; counts those over the window.

    Args:
        source: the file; `-` is standard input.
        longest: most residues of a sequence.
        policy: treatment of longer sequences.
        state: the state of an earlier reading, to resume behind it.
        records: yields the records of the file.
    """

    def __init__(
        self,
        source: Path,
        *,
        longest: int,
        policy: ReadingLongPolicy,
        state: Mapping[str, Any] | None = None,
        records: Callable[[Path], Iterator[SequenceRecord]] = read_records,
    ) -> None:
        self._source, self._longest, self._policy = source, longest, policy
        self._records = records
        self._before = state
        self._digest = xxhash.xxh3_128()
        self.num_read = 0
        """Records read so far."""
        self.num_long = 0
        """Records over the window."""
        self.first_long: list[str] = []
        """Identifiers of the first of them."""

    def summary(self) -> Summary:
        """Return the counts of the sequences read so far."""
        num_dropped = self.num_long if self._policy is ReadingLongPolicy.DROP else 0
        return Summary(self.num_read - num_dropped, self.num_long, self.first_long)

    def state(self) -> dict[str, Any]:
        """Return how far the reading is, as JSON can hold it."""
        return {"num_read": self.num_read, "checksum_of_read": self._digest.hexdigest()}

    def parts(self, cost: Callable[[int], int], budget: int) -> Iterator[list[SequenceRecord]]:
        """Yield consecutive records, as many at a time as it takes for the `cost` of their lengths to reach a budget.

        Raises:
            InputError: as `read_records`, or a sequence is too long and the policy is `ERROR`, or the earlier reading read
                another file.
        """
        part: list[SequenceRecord] = []
        spent = 0
        num_before = self._before["num_read"] if self._before else 0
        for record in self._records(self._source):
            self._note(record)
            if self.num_read == num_before:
                self._check()
            if self.num_read > num_before and (
                len(record) <= self._longest or self._policy is ReadingLongPolicy.EXTEND
            ):
                part.append(record)
                spent += cost(len(record))
            if spent >= budget:
                yield part
                part, spent = [], 0
        if self.num_read < num_before:
            self._check()
        if part:
            yield part

    def _note(self, record: SequenceRecord) -> None:
        self.num_read += 1
        self._digest.update(f"{record.sequence_id}\0{len(record)}\0".encode())
        self._digest.update(record.tokens.data)
        if len(record) > self._longest:
            if self._policy is ReadingLongPolicy.ERROR:
                raise too_long(record.sequence_id, len(record), self._longest)
            self.num_long += 1
            self.first_long += [record.sequence_id][: SHOWN_LONG - len(self.first_long)]

    def _check(self) -> None:
        if self._before is not None and self.state() != dict(self._before):
            raise InputError(
                f"{self._source} is not what it was when the work began: of the {self._before['num_read']:,} sequences read "
                "then, some have changed; give the same file, or remove the unfinished work to start over"
            )
