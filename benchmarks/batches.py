"""How fast batches for training come out of a prepared corpus, in one process.

    python -m benchmarks.batches STORE

Opens the store and makes packed batches of whole proteins, causal and masked; processor time, best of five rounds. The first
round reads the store from disk, or from the system's cache if it is there.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from benchmarks.machine import processor
from protein_lm.batches.packed_batches import TrainingBatches
from protein_lm.choices import Objective
from protein_lm.config import DataConfig
from protein_lm.corpus.joined import open_corpus

ROUNDS = 5


def measure(store: Path, objective: Objective, *, tokens: int, count: int) -> tuple[float, float]:
    """Million tokens per second of processor time: in the first round, and in the best."""
    speeds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        batches = TrainingBatches(
            open_corpus(store), DataConfig(tokens_per_batch=tokens), objective=objective, max_length=tokens, seed=0
        )
        made = sum(batches.batch(planned).tokens.numel() for planned in islice(batches.plan.batches(), count))
        speeds.append(made / (time.process_time() - start) / 1e6)
    return speeds[0], max(speeds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.batches", description="Speed of batches for training.")
    parser.add_argument("store", type=Path, metavar="STORE", help="corpus made by protein-lm data prepare")
    parser.add_argument("--tokens", type=int, default=8192, help="of a batch and of the window, 8192 by default")
    parser.add_argument("--batches", type=int, default=1000, help="1000 by default")
    options = parser.parse_args(arguments)
    print(processor())
    for objective in Objective:
        first, best = measure(options.store, objective, tokens=options.tokens, count=options.batches)
        print(f"{objective.value}: {best:.1f} million tokens/s, {first:.1f} in the first round")
    return 0


if __name__ == "__main__":
    sys.exit(main())
