"""Batches: budget, order, crops and masks are pure functions of seed, epoch and sequence."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from protein_lm import alphabet
from protein_lm.choices import LongPolicy, Objective
from protein_lm.config import DataConfig
from protein_lm.data.batches import IGNORED, TrainingBatches, causal_targets, fill, pack
from protein_lm.data.masking import choose_positions, corrupt, hide
from protein_lm.data.split import Split
from protein_lm.errors import ConfigError, InputError


def batches(corpus, *, objective=Objective.CAUSAL, max_length=64, seed=0, **config) -> TrainingBatches:
    data = DataConfig(**{"tokens_per_batch": 256, **config})
    return TrainingBatches(corpus, data, objective=objective, max_length=max_length, seed=seed)


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


def test_an_epoch_sees_every_training_sequence_once(corpus) -> None:
    training = batches(corpus)
    for epoch in (0, 1):
        members = np.concatenate(training.epoch(epoch))
        assert sorted(training.indices[members].tolist()) == corpus.indices(Split.TRAIN).tolist()
    first, again, second, other = (
        [batch.tolist() for batch in plan]
        for plan in (training.epoch(0), training.epoch(0), training.epoch(1), batches(corpus, seed=1).epoch(0))
    )
    assert first == again and first != second and first != other


@pytest.mark.parametrize("objective", Objective)
def test_a_sequence_is_treated_alike_in_any_batch(corpus, objective) -> None:
    training = batches(corpus, objective=objective, max_length=20)
    together = training.batch(2, np.arange(5))
    for row, (start, end) in enumerate(pairwise(together.packing.boundaries)):
        alone = training.batch(2, np.array([row]))
        assert torch.equal(together.tokens[:, start:end], alone.tokens)
        assert torch.equal(together.targets[:, start:end], alone.targets)
    other_epoch = training.batch(3, np.arange(5))
    assert not torch.equal(together.tokens, other_epoch.tokens)


def test_masked_targets_are_the_hidden_residues(corpus) -> None:
    training = batches(corpus, objective=Objective.MASKED)
    members = np.arange(6)
    batch = training.batch(0, members)
    for row, index in enumerate(training.indices[members].tolist()):
        residues = corpus.residues(index)
        span = slice(*batch.packing.boundaries[row : row + 2])
        tokens, targets = batch.tokens[0, span], batch.targets[0, span]
        scored = np.flatnonzero(targets.numpy() != IGNORED)
        assert scored.size == max(1, round(0.15 * residues.size))
        assert targets[scored].tolist() == residues[scored - 1].tolist()
        unscored = np.setdiff1d(np.arange(residues.size), scored - 1)
        assert tokens[unscored + 1].tolist() == residues[unscored].tolist()


def test_corruption_is_80_10_10() -> None:
    generator = np.random.default_rng(0)
    residues = np.full(100_000, alphabet.TOKENS.index("W"), dtype=np.uint8)
    positions = choose_positions(residues.size, 0.15, generator)
    assert positions.size == 15_000 and np.unique(positions).size == 15_000
    seen = corrupt(residues, positions, generator)[positions]
    assert abs((seen == alphabet.MASK).mean() - 0.8) < 0.01
    assert abs((seen == residues[0]).mean() - (0.1 + 0.1 / 20)) < 0.01
    assert set(seen.tolist()) - {alphabet.MASK} == set(range(4, 24))
    untouched = np.setdiff1d(np.arange(residues.size), positions)
    assert (corrupt(residues, positions, generator)[untouched] == residues[0]).all()
    assert (hide(residues, positions)[positions] == alphabet.MASK).all()
    assert choose_positions(2, 0.15, generator).size == 1


def test_long_sequences_by_policy(corpus) -> None:
    longest = int(corpus.lengths[corpus.indices(Split.TRAIN)].max())
    cropped = batches(corpus, max_length=22)
    assert cropped.num_too_long > 0 and cropped.lengths.max() == 22
    dropped = batches(corpus, max_length=22, long_sequences=LongPolicy.DROP)
    assert dropped.num_too_long == cropped.num_too_long
    assert dropped.indices.size == cropped.indices.size - cropped.num_too_long
    with pytest.raises(
        InputError, match=r"sequence S\d+ has \d+ residues; this model reads 20; set data.long_sequences"
    ):
        batches(corpus, max_length=22, long_sequences=LongPolicy.ERROR)
    assert batches(corpus, max_length=longest + 2, long_sequences=LongPolicy.ERROR).num_too_long == 0


def test_impossible_budgets(corpus) -> None:
    with pytest.raises(ConfigError, match=r"data\.tokens_per_batch 10 is below the longest sequence"):
        batches(corpus, tokens_per_batch=10)
    with pytest.raises(ConfigError, match=r"no training sequence fits model\.max_length 5; raise it"):
        batches(corpus, max_length=5, long_sequences=LongPolicy.DROP)
