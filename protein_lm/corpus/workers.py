"""Turns parts of sources into what goes into a store: in this process, in threads or in other processes."""

import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from protein_lm.alphabet import ResiduePolicy
from protein_lm.choices import OnError
from protein_lm.corpus.duplicates import fingerprints
from protein_lm.corpus.filters import Filters, select
from protein_lm.io.hashing import hash_letters
from protein_lm.io.readers import Part
from protein_lm.io.records import Columns
from protein_lm.native.reader import reader

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

_PARTS_PER_WORKER = 3
"""Parts that are read ahead for each worker."""


class Settings(NamedTuple):
    """How records are treated."""

    policy: ResiduePolicy
    on_error: OnError
    filters: Filters


@dataclass(frozen=True, slots=True, eq=False)
class PartResult:
    """The wanted records of a part, and why others were dropped."""

    records: Columns
    num_read: int
    num_dropped: Counter[str]
    """Records by reason, `filters.REASONS`."""
    annotated: frozenset[str]
    """Annotations that some record has, as in `filters.Selection`."""


def process_part(part: Part, settings: Settings) -> PartResult | None:
    """Parse a part and take what is wanted; None if it has no record.

    Raises:
        InputError: a record is at fault.
    """
    records = _columns(part, settings)
    if records is None:
        return None
    selection = select(records, settings.filters, settings.policy)
    return PartResult(
        records=records.select(selection.keep),
        num_read=records.lengths.size + records.num_faulty,
        num_dropped=selection.num_dropped,
        annotated=selection.annotated,
    )


def _columns(part: Part, settings: Settings) -> Columns | None:
    if (records := part.columns(settings.policy)) is not None:
        return records
    block = part.block(settings.policy, settings.on_error)
    if block is None:
        return None
    ids, id_lengths = block.sequence_ids.join(), block.sequence_ids.lengths
    return Columns(
        tokens=np.frombuffer(block.tokens, dtype=np.uint8),
        lengths=block.lengths,
        has_ambiguous=block.has_ambiguous,
        ids=ids,
        id_lengths=id_lengths,
        id_hashes=hash_letters(ids, id_lengths),
        fingerprints=fingerprints(block.sequences()),
        annotations=block.annotations,
        changes=block.changes,
        memberships=block.memberships,
        num_faulty=block.num_faulty,
    )


class Workers:
    """Threads and processes that process parts.

    The compiled reader does not hold the interpreter's lock, so threads serve it. All other parsers need processes.

    Args:
        threads: for formats that the compiled reader knows, if it is installed; 0: treat these like all others.
        processes: for all other formats; 0: the caller itself.
    """

    def __init__(self, threads: int, processes: int) -> None:
        self._threads = ThreadPoolExecutor(threads) if threads and reader().is_compiled else None
        self._processes = _process_pool(processes) if processes else None  # they start at the first part for them
        self._num_threads, self._num_processes = threads, processes

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._threads, self._processes):
            if pool:
                pool.shutdown(cancel_futures=True)

    def results(self, parts: Iterable[Part], settings: Settings) -> Iterator[PartResult | None]:
        """Yield the result of each part, in their order, whoever makes them.

        Raises:
            InputError: as `process_part`, for the first part at fault.
        """
        running: deque[Callable[[], PartResult | None]] = deque()
        for part in parts:
            pool, number = self._processes, self._num_processes
            if part.is_for_compiled_reader and self._threads:
                pool, number = self._threads, self._num_threads
            if pool:
                running.append(pool.submit(process_part, part, settings).result)
            else:
                running.append(partial(process_part, part, settings))
            while len(running) > number * _PARTS_PER_WORKER:
                yield running.popleft()()
        while running:
            yield running.popleft()()


def _process_pool(workers: int) -> "ProcessPoolExecutor":
    """Make processes that end with this one, however it ends."""
    from concurrent.futures import ProcessPoolExecutor  # takes longer to import than most stores need
    from multiprocessing import get_context

    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=partial(_begin, os.getpid()))


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent reports the interruption
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
