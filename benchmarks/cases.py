"""The cases: which shapes, which directions, which contestants; and the specs that a choice of them makes."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.contestants import (
    attention,
    attention_layers,
    attention_peers,
    decoding,
    embedding,
    scoring,
    training,
    variants,
)
from benchmarks.contestants import training_peers as peers
from benchmarks.contestants.base import Contestant
from benchmarks.spec import Spec


@dataclass(frozen=True)
class Case:
    """One task, done by several contestants."""

    contestants: Mapping[str, Contestant]
    directions: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    """(batch, length)."""
    passes: int
    """Timed passes per process."""
    short: int
    """Length of a first pass that loads libraries and starts threads, before anything is measured."""
    rate: str = "tokens/s"
    """What `units` over seconds is called."""


CASES: Mapping[str, Case] = {
    "attention": Case(
        attention.CONTESTANTS | attention_peers.CONTESTANTS | attention_layers.CONTESTANTS,
        ("causal", "bidirectional"),
        ("float32", "bfloat16"),
        tuple((1, 2**power) for power in range(9, 16)),
        passes=3,
        short=128,
    ),
    "training_step": Case(
        training.CONTESTANTS | peers.CONTESTANTS,
        ("masked", "causal"),
        ("float32", "bfloat16"),
        ((8, 1024), (2, 4096), (1, 8192), (1, 32768)),
        passes=2,
        short=128,
    ),
    "decoding": Case(
        decoding.CONTESTANTS,
        ("causal",),
        ("float32", "bfloat16"),
        ((1, 1024), (16, 1024), (1, 4096)),
        passes=1,
        short=16,
    ),
    "embedding": Case(
        embedding.CONTESTANTS, ("masked",), ("float32",), ((4096, 2000),), passes=1, short=8, rate="residues/s"
    ),
    "scoring": Case(scoring.CONTESTANTS, ("causal",), ("float32",), ((8, 200),), passes=1, short=8, rate="residues/s"),
    "variants": Case(
        variants.CONTESTANTS,
        ("masked",),
        ("float32", "bfloat16"),
        ((300, 302),),
        passes=1,
        short=32,
        rate="positions/s",
    ),
    "saturation": Case(
        variants.SATURATION, ("masked",), ("float32", "bfloat16"), ((1, 8192),), passes=3, short=128, rate="residues/s"
    ),
}


@dataclass(frozen=True)
class Choice:
    """What of a case is measured; None stands for the case's own."""

    lengths: Sequence[int] | None = None
    batches: Collection[int] | None = None
    contestants: Collection[str] | None = None
    directions: Collection[str] | None = None
    dtypes: Collection[str] | None = None
    allocators: Sequence[str] = ("default",)


def specs(name: str, choice: Choice) -> list[Spec]:
    """The specs of a case, contestants innermost, so that in a walk through them they take turns."""
    case = CASES[name]
    return [
        Spec(name, rival, direction, dtype, batch, length, allocator, passes=1 if slow else case.passes)
        for direction in _chosen(case.directions, choice.directions)
        for dtype in _chosen(case.dtypes, choice.dtypes)
        for batch, length in shapes(case, choice.lengths)
        if choice.batches is None or batch in choice.batches
        for rival, contestant in case.contestants.items()
        if choice.contestants is None or rival in choice.contestants
        if length <= contestant.longest.get(direction, 0) and length % contestant.shortest == 0
        for slow in [direction in contestant.slow]
        for allocator in choice.allocators
    ]


def shapes(case: Case, lengths: Sequence[int] | None) -> list[tuple[int, int]]:
    """The case's shapes of these lengths; a length that it does not have comes with the smallest batch of the case."""
    if lengths is None:
        return list(case.shapes)
    smallest = min(batch for batch, _ in case.shapes)
    known: dict[int, list[tuple[int, int]]] = {}
    for batch, length in case.shapes:
        known.setdefault(length, []).append((batch, length))
    return [shape for length in lengths for shape in known.get(length, [(smallest, length)])]


def _chosen(all_names: Sequence[str], chosen: Collection[str] | None) -> list[str]:
    return [name for name in all_names if chosen is None or name in chosen]
