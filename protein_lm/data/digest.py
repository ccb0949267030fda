"""Parts of sources -> what goes into a store, in this process or in several."""

import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import compress
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from protein_lm.alphabet import ResiduePolicy
from protein_lm.choices import OnError
from protein_lm.data.duplicates import fingerprints
from protein_lm.data.filters import Filters, select
from protein_lm.data.hashing import hash_letters
from protein_lm.data.readers import Part
from protein_lm.data.records import Annotations, Memberships

_PARTS_PER_WORKER = 3
"""Read ahead of what is written."""


class Settings(NamedTuple):
    """How records are treated."""

    policy: ResiduePolicy
    on_error: OnError
    filters: Filters


@dataclass(frozen=True, slots=True, eq=False)
class Digest:
    """The wanted records of a part, N of them, and what became of the others."""

    tokens: bytes
    """Token ids back to back."""
    lengths: NDArray[np.int64]
    """(N,) residues."""
    ids: NDArray[np.uint8]
    """UTF-8 identifiers back to back."""
    id_lengths: NDArray[np.int64]
    """(N,) bytes."""
    id_hashes: NDArray[np.uint64]
    """(N,) `hashing.hash_letters` of the identifiers."""
    fingerprints: NDArray[np.uint64]
    """(N, 2) of the sequences."""
    annotations: Annotations
    memberships: Memberships | None
    """In the families to hold out; None: the source does not tell, or none are asked for."""
    num_read: int
    num_dropped: Counter[str]
    was_said: frozenset[str]
    changes: Counter[str]


def digest(part: Part, settings: Settings) -> Digest | None:
    """Parse a part and take what is wanted; None if it has no record.

    Raises:
        InputError: a record is at fault.
    """
    block = part.block(settings.policy, settings.on_error)
    if block is None:
        return None
    selection = select(block, settings.filters, settings.policy)
    keep, sequences = selection.keep, block.sequences()
    ids, id_lengths = block.sequence_ids.join(), block.sequence_ids.lengths
    tokens, lengths, annotations, memberships = block.tokens, block.lengths, block.annotations, block.memberships
    if not keep.all():
        sequences = list(compress(sequences, keep))
        tokens, ids = b"".join(sequences), ids[np.repeat(keep, id_lengths)]
        lengths, id_lengths, annotations = lengths[keep], id_lengths[keep], annotations.select(keep)
        memberships = memberships and memberships.select(keep)
    return Digest(
        tokens=tokens,
        lengths=lengths,
        ids=ids,
        id_lengths=id_lengths,
        id_hashes=hash_letters(ids, id_lengths),
        fingerprints=fingerprints(sequences),
        annotations=annotations,
        memberships=memberships,
        num_read=len(block) + block.num_faulty,
        num_dropped=selection.num_dropped,
        was_said=selection.was_said,
        changes=block.changes,
    )


def digests(
    parts: Iterable[Part], settings: Settings, pool: ProcessPoolExecutor | None, workers: int
) -> Iterator[Digest | None]:
    """The digest of each part, in their order, whoever makes them.

    Raises:
        InputError: as `digest`, for the first part at fault.
    """
    if pool is None:
        return (digest(part, settings) for part in parts)
    return _in_order(parts, settings, pool, workers * _PARTS_PER_WORKER)


def _in_order(
    parts: Iterable[Part], settings: Settings, pool: ProcessPoolExecutor, ahead: int
) -> Iterator[Digest | None]:
    running: deque[Future[Digest | None]] = deque()
    for part in parts:
        running.append(pool.submit(digest, part, settings))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def make_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that make digests; they end with this one, however it ends."""
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=partial(_begin, os.getpid()))


def _begin(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says what there is to say
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
