"""Batches: budget, order, crops and masks are pure functions of seed, epoch and sequence."""

from itertools import chain, islice, pairwise, takewhile

import numpy as np
import pytest
import torch

from protein_lm import alphabet
from protein_lm.choices import LongPolicy, Objective
from protein_lm.config import DataConfig
from protein_lm.data.batches import IGNORED, TrainingBatches, causal_targets, fill, pack
from protein_lm.data.hashing import mix
from protein_lm.data.masking import choose_positions, corrupted, hide, ranks
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


def one_epoch(training: TrainingBatches, epoch: int) -> list[list[int]]:
    return [plan.indices.tolist() for plan in takewhile(lambda plan: plan.epoch == epoch, training.plan(epoch))]


def test_an_epoch_sees_every_training_sequence_once(corpus) -> None:
    training = batches(corpus)
    for epoch in (0, 1):
        assert sorted(chain(*one_epoch(training, epoch))) == corpus.indices(Split.TRAIN).tolist()
    first, again, second = (one_epoch(training, epoch) for epoch in (0, 0, 1))
    assert first == again and first != second and first != one_epoch(batches(corpus, seed=1), 0)


def test_batches_are_full(corpus) -> None:
    plan = one_epoch(batches(corpus), 0)
    sizes = [int(corpus.lengths[indices].sum()) + 2 * len(indices) for indices in plan]
    assert max(sizes) <= 256
    following = [corpus.length(indices[0]) + 2 for indices in plan[1:]]
    assert all(size + more > 256 for size, more in zip(sizes, following, strict=False))


@pytest.mark.parametrize("planned_places", [1, 3, 2**14])
def test_the_plan_goes_on_from_any_batch(corpus, monkeypatch, planned_places) -> None:
    training = batches(corpus)
    whole = list(islice(training.plan(), 60))
    assert whole[-1].epoch > 0
    monkeypatch.setattr("protein_lm.data.batches._PLANNED_PLACES", planned_places)
    for number in (0, 1, 7, 30, 58):
        rest = islice(training.plan(whole[number].next_epoch, whole[number].next_place), 59 - number)
        expected = whole[number + 1 :]
        assert [(p.epoch, p.indices.tolist()) for p in rest] == [(p.epoch, p.indices.tolist()) for p in expected]


@pytest.mark.parametrize("objective", Objective)
def test_a_sequence_is_treated_alike_in_any_batch(corpus, objective) -> None:
    training = batches(corpus, objective=objective, max_length=20)
    indices = corpus.indices(Split.TRAIN)[[3, 0, 9, 5, 1]]
    together = training.batch(2, indices)
    for row, (start, end) in enumerate(pairwise(together.packing.boundaries)):
        alone = training.batch(2, indices[[row]])
        assert torch.equal(together.tokens[:, start:end], alone.tokens)
        assert torch.equal(together.targets[:, start:end], alone.targets)
    other_epoch = training.batch(3, indices)
    assert not torch.equal(together.tokens, other_epoch.tokens)


def test_masked_targets_are_the_hidden_residues(corpus) -> None:
    training = batches(corpus, objective=Objective.MASKED)
    indices = corpus.indices(Split.TRAIN)[:6]
    batch = training.batch(0, indices)
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


def test_ranks_by_sorting_each_sequence() -> None:
    lengths = np.array([1, 5, 40, 2])
    draws = mix(np.arange(48, dtype=np.uint64))
    expected = np.concatenate([np.argsort(np.argsort(part)) for part in np.split(draws, np.cumsum(lengths)[:-1])])
    assert ranks(draws, np.repeat(np.arange(4), lengths), lengths).tolist() == expected.tolist()


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
    for epoch in range(400):
        chosen += training.batch(epoch, index).targets[0, 1:-1].numpy() != IGNORED
    expected = 400 * max(1, round(0.15 * chosen.size)) / chosen.size
    assert abs(chosen - expected).max() < 6 * expected**0.5


def test_crops_reach_the_whole_of_a_sequence(corpus) -> None:
    training = batches(corpus, max_length=12)
    index = int(corpus.indices(Split.TRAIN)[np.argmax(corpus.lengths[corpus.indices(Split.TRAIN)])])
    residues = corpus.residues(index)
    starts = set()
    for epoch in range(600):
        crop = training.batch(epoch, np.array([index])).tokens[0, 1:-1].numpy()
        starts |= {i for i in range(residues.size - 9) if (residues[i : i + 10] == crop).all()}
    assert starts == set(range(residues.size - 9))


def test_long_sequences_by_policy(corpus) -> None:
    longest = int(corpus.lengths[corpus.indices(Split.TRAIN)].max())
    cropped = batches(corpus, max_length=22)
    assert cropped.num_too_long > 0
    longest_batch = max(
        cropped.batch(plan.epoch, plan.indices).packing.lengths.max() for plan in islice(cropped.plan(), 20)
    )
    assert longest_batch == 22
    dropped = batches(corpus, max_length=22, long_sequences=LongPolicy.DROP)
    assert dropped.num_too_long == cropped.num_too_long
    assert dropped.num_sequences == cropped.num_sequences - cropped.num_too_long
    assert len(list(chain(*one_epoch(dropped, 0)))) == dropped.num_sequences
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
