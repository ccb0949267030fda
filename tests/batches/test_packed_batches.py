"""Batches: budget, order, crops and masks are pure functions of seed, epoch and sequence."""

from dataclasses import fields
from itertools import pairwise, takewhile

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from protein_lm import alphabet
from protein_lm.batches.masking import choose_positions, corrupted, drawn, hide
from protein_lm.batches.packed_batches import IGNORED, TrainingBatches, causal_targets, fill, pack
from protein_lm.batches.plan import Pieces, PlannedBatch, PlanPosition
from protein_lm.choices import Objective
from protein_lm.config import DataConfig
from protein_lm.corpus.split import Split
from protein_lm.native.numpy_reader import mix


def batches(corpus, *, objective=Objective.CAUSAL, max_length=64, seed=0, **config) -> TrainingBatches:
    data = DataConfig(**{"tokens_per_batch": 256, **config})
    return TrainingBatches(corpus, data, objective=objective, max_length=max_length, seed=seed)


def planned(training: TrainingBatches, epoch: int, indices: NDArray[np.int64]) -> PlannedBatch:
    """A batch of the sequences of these indices, as the plan has them in an epoch."""
    plans = list(takewhile(lambda plan: plan.epoch == epoch, training.plan.batches(PlanPosition(epoch))))
    chosen = []
    for index in indices.tolist():
        (found,) = [p.pieces[i : i + 1] for p in plans for i in np.flatnonzero(p.pieces.indices == index).tolist()]
        chosen.append(found)
    columns = {field.name: np.concatenate([getattr(piece, field.name) for piece in chosen]) for field in fields(Pieces)}
    return PlannedBatch(epoch, Pieces(**{**columns, "rows": np.arange(indices.size)}), PlanPosition())


def test_pack_by_hand() -> None:
    tokens, packing = pack([alphabet.encode("MK"), alphabet.encode("A")])
    assert tokens.tolist() == [[0, 20, 15, 2, 0, 5, 2]]
    assert packing.boundaries.tolist() == [0, 4, 7]
    assert causal_targets(tokens, packing).tolist() == [[20, 15, 2, IGNORED, 5, 2, IGNORED]]


def test_batches_hold_everything_in_order_and_are_full() -> None:
    lengths = np.random.default_rng(0).integers(3, 90, size=300)
    groups = fill(lengths, 100)
    assert np.concatenate(groups).tolist() == list(range(300))
    sums = [lengths[group].sum() for group in groups]
    assert max(sums) <= 100
    assert all(total + lengths[following[0]] > 100 for total, following in zip(sums, groups[1:], strict=False))
    assert [group.tolist() for group in fill(np.array([500, 2, 98, 1]), 100)] == [[0], [1, 2], [3]]


@pytest.mark.parametrize("objective", Objective)
def test_a_sequence_is_treated_alike_in_any_batch(corpus, objective) -> None:
    training = batches(corpus, objective=objective, max_length=20)
    indices = corpus.indices(Split.TRAIN)[[3, 0, 9, 5, 1]]
    together = training.batch(planned(training, 2, indices))
    for row, (start, end) in enumerate(pairwise(together.packing.boundaries)):
        alone = training.batch(planned(training, 2, indices[[row]]))
        assert torch.equal(together.tokens[:, start:end], alone.tokens)
        assert torch.equal(together.targets[:, start:end], alone.targets)
    other_epoch = training.batch(planned(training, 3, indices))
    assert not torch.equal(together.tokens, other_epoch.tokens)


def test_masked_targets_are_the_hidden_residues(corpus) -> None:
    training = batches(corpus, objective=Objective.MASKED)
    indices = corpus.indices(Split.TRAIN)[:6]
    batch = training.batch(planned(training, 0, indices))
    for row, index in enumerate(indices.tolist()):
        residues = corpus.residues(index)
        span = slice(*batch.packing.boundaries[row : row + 2])
        tokens, targets = batch.tokens[0, span], batch.targets[0, span]
        scored = np.flatnonzero(targets.numpy() != IGNORED)
        assert scored.size == max(1, round(0.15 * residues.size))
        assert targets[scored].tolist() == residues[scored - 1].tolist()
        unscored = np.setdiff1d(np.arange(residues.size), scored - 1)
        assert tokens[unscored + 1].tolist() == residues[unscored].tolist()


def test_corruption_is_80_10_10() -> None:
    draws = mix(np.arange(100_000, dtype=np.uint64))
    residues = np.full(100_000, alphabet.TOKENS.index("W"), dtype=np.int64)
    seen = corrupted(residues, draws)
    assert abs((seen == alphabet.MASK).mean() - 0.8) < 0.01
    assert abs((seen == residues[0]).mean() - (0.1 + 0.1 / 20)) < 0.01
    numbers = np.bincount(seen, minlength=33)
    assert set(np.flatnonzero(numbers).tolist()) == {alphabet.MASK, *range(4, 24)}
    others = np.delete(numbers[4:24], residues[0] - 4)
    assert others.min() > 400 and others.max() < 600  # 500 expected of each


def test_draws_by_sorting_each_sequence() -> None:
    lengths, counts = np.array([1, 5, 40, 2]), np.array([1, 0, 6, 2])
    draws = mix(np.arange(48, dtype=np.uint64))
    starts = np.cumsum(lengths) - lengths
    expected = [
        start + place
        for start, length, count in zip(starts, lengths, counts, strict=True)
        for place in np.argsort(draws[start : start + length])[:count]
    ]
    assert drawn(draws, lengths, counts).tolist() == expected


def test_draws_of_more_sequences_than_16_bits_count() -> None:
    lengths = np.full(70_000, 3)
    draws = mix(np.arange(210_000, dtype=np.uint64))
    draws[:3] = 1 << 40, 5, 5  # of equal ones the first wins
    chosen = drawn(draws, lengths, np.full(70_000, 2))
    assert chosen[:2].tolist() == [1, 2]
    assert np.array_equal(chosen[:2000], drawn(draws[:3000], lengths[:1000], np.full(1000, 2)))
    assert np.array_equal(np.unique(chosen // 3), np.arange(70_000)) and np.unique(chosen).size == 140_000


def test_evaluation_hides_what_it_chooses() -> None:
    residues = np.full(1000, alphabet.TOKENS.index("W"), dtype=np.uint8)
    positions = choose_positions(residues.size, 0.15, np.random.default_rng(0))
    assert positions.size == 150 and np.unique(positions).size == 150
    hidden = hide(residues, positions)
    assert (hidden[positions] == alphabet.MASK).all() and (hidden != residues).sum() == 150
    assert choose_positions(2, 0.15, np.random.default_rng(0)).size == 1


def test_masks_reach_every_position_alike(corpus) -> None:
    training = batches(corpus, objective=Objective.MASKED)
    index = corpus.indices(Split.TRAIN)[[0]]
    chosen = np.zeros(corpus.length(int(index[0])))
    for epoch in range(200):
        chosen += training.batch(planned(training, epoch, index)).targets[0, 1:-1].numpy() != IGNORED
    expected = 200 * max(1, round(0.15 * chosen.size)) / chosen.size
    assert abs(chosen - expected).max() < 6 * expected**0.5


def test_crops_reach_the_whole_of_a_sequence(corpus) -> None:
    training = batches(corpus, max_length=12)
    index = int(corpus.indices(Split.TRAIN)[np.argmax(corpus.lengths_of(corpus.indices(Split.TRAIN)))])
    residues = corpus.residues(index)
    starts = set()
    for epoch in range(300):
        crop = training.batch(planned(training, epoch, np.array([index]))).tokens[0, 1:-1].numpy()
        starts |= {i for i in range(residues.size - 9) if (residues[i : i + 10] == crop).all()}
    assert starts == set(range(residues.size - 9))
