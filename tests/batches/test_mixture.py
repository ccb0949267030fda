"""Orders by weight."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from protein_lm.batches.mixture import BLOCK, Mixture
from protein_lm.batches.packed_batches import TrainingBatches
from protein_lm.batches.plan import TrainingPlan
from protein_lm.choices import Objective
from protein_lm.config import DataConfig
from protein_lm.corpus.joined import join, open_corpus
from protein_lm.corpus.prepare import prepare
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError
from tests.conftest import grammar, write_fasta

GROUPS = [range(1000), range(1000, 1007), range(1007, 250_000)]


def test_shares_are_exact_and_each_sequence_comes_once_a_visit() -> None:
    mixture = Mixture(GROUPS, [3, 1, 4], seed=5)
    indices, visits = mixture.at(np.arange(6 * BLOCK))
    for group, share in zip(GROUPS, (3, 1, 4), strict=True):
        chosen = (indices >= group.start) & (indices < group.stop)
        for block in range(6):
            assert chosen[block * BLOCK : (block + 1) * BLOCK].sum() == BLOCK * share // 8
        for visit in range(visits[chosen].max()):  # all but the last, which is not through yet
            assert np.array_equal(np.sort(indices[chosen & (visits == visit)]), np.array(group))
    first, second = (indices[(indices < 1000) & (visits == visit)] for visit in (0, 1))
    assert not np.array_equal(first, second)


def test_any_place_can_be_had_alone() -> None:
    mixture = Mixture(GROUPS, [3, 1, 4], seed=5)
    indices, visits = mixture.at(np.arange(3 * BLOCK))
    for start, size in ((0, 1), (BLOCK - 2, 5), (2 * BLOCK + 77, 300)):
        some, their_visits = mixture.at(np.arange(start, start + size))
        assert np.array_equal(some, indices[start : start + size])
        assert np.array_equal(their_visits, visits[start : start + size])


def test_stores_are_mixed_evenly_within_a_block() -> None:
    indices, _ = Mixture(GROUPS, [3, 1, 4], seed=0).at(np.arange(BLOCK))
    of_first = (indices < 1000).reshape(64, -1).sum(1)  # 64 parts of 1,024 places, 384 of them expected
    assert abs(of_first - 384).max() < 5 * np.sqrt(1024 * 3 / 8 * 5 / 8)


def test_uneven_shares_fill_the_block() -> None:
    indices, _ = Mixture([range(10), range(10, 20), range(20, 30)], [1, 1, 1], seed=0).at(np.arange(BLOCK))
    assert sorted(np.bincount(indices // 10).tolist()) == [BLOCK // 3, BLOCK // 3, BLOCK // 3 + 1]


def test_a_share_of_no_place_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.weights: the least of them is under 1/65,536 of all positions"):
        Mixture(GROUPS, [1, 1e-9, 1], seed=0)


@pytest.fixture
def joined(tmp_path) -> Path:
    """A large store and a small one, of which more is kept back."""
    sequences = list(grammar(300).items())
    for name, part, kept_back in (("large", sequences[:270], 0.1), ("small", sequences[270:], 0.5)):
        fasta = write_fasta(tmp_path / f"{name}.fasta", dict(part))
        prepare([fasta], tmp_path / name, valid_fraction=kept_back, test_fraction=0)
    join([tmp_path / "large", tmp_path / "small"], tmp_path / "both")
    return tmp_path / "both"


def test_weights_are_of_the_sequences_trained_on(joined) -> None:
    corpus = open_corpus(joined)
    config = DataConfig(tokens_per_batch=100, weights={"large": 1, "small": 3})
    plan = TrainingPlan(corpus, config, max_length=64, seed=0)
    drawn = np.concatenate([planned.pieces.indices for planned in islice(plan.batches(), 3000)])
    assert (corpus.splits[drawn] == Split.TRAIN).all()
    of_small = drawn >= corpus.groups["small"].start
    assert of_small.mean() == pytest.approx(0.75, abs=0.01)
    small = np.unique(drawn[of_small], return_counts=True)[1]
    assert small.max() - small.min() <= 2  # every sequence of a store as often as the others


def test_a_sequence_that_comes_again_is_masked_anew_and_runs_go_on_anywhere(joined) -> None:
    config = DataConfig(tokens_per_batch=100, weights={"large": 1, "small": 3})
    training = TrainingBatches(open_corpus(joined), config, objective=Objective.MASKED, max_length=64, seed=0)
    planned = list(islice(training.plan.batches(), 400))
    shown: dict[int, set[tuple[int, ...]]] = {}
    for each in planned:
        batch = training.batch(each)
        firsts = batch.packing.boundaries
        for index, start, end in zip(each.pieces.indices.tolist(), firsts, firsts[1:], strict=False):
            shown.setdefault(index, set()).add(tuple(batch.targets[0, start:end].tolist()))
    often = max(shown, key=lambda index: len(shown[index]))
    assert len(shown[often]) > 5
    for number in (0, 57, 300):
        rest = islice(training.plan.batches(planned[number].next_position), 50)
        for expected, found in zip(planned[number + 1 :], rest, strict=False):
            assert expected.pieces.indices.tolist() == found.pieces.indices.tolist()
            assert training.batch(expected).targets.tolist() == training.batch(found).targets.tolist()


def test_bad_weights(joined) -> None:
    def plan(**weights: float) -> TrainingPlan:
        return TrainingPlan(open_corpus(joined), DataConfig(weights=weights), max_length=64, seed=0)

    with pytest.raises(ConfigError, match=r"data.weights names huge, which is no store of .*both; it has large, small"):
        plan(huge=1, small=1, large=1)
    with pytest.raises(ConfigError, match=r"data.weights has no weight for large, a store of .*both; give it one"):
        plan(small=1)
    with pytest.raises(ValueError, match="greater than 0"):
        plan(small=1, large=0)
