"""Which residues of which sequences make which batch: beside plain loops, and from any place on."""

from itertools import islice, pairwise, takewhile

import numpy as np
import pytest

from protein_lm import alphabet
from protein_lm.batches.order import shuffled
from protein_lm.batches.packed_batches import IGNORED, TrainingBatches
from protein_lm.batches.plan import PlannedBatch, PlanPosition, TrainingPlan
from protein_lm.choices import Objective, TrainingLongPolicy, Windows
from protein_lm.config import DataConfig
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError, InputError

MODES = {
    "crop": {},
    "drop": {"long_sequences": TrainingLongPolicy.DROP},
    "window": {"long_sequences": TrainingLongPolicy.WINDOW, "window_overlap": 5},
    "concatenate": {"windows": Windows.CONCATENATE},
}


def plan(corpus, *, max_length=24, seed=0, **config) -> TrainingPlan:
    return TrainingPlan(corpus, DataConfig(**{"tokens_per_batch": 100, **config}), max_length=max_length, seed=seed)


def one_epoch(training: TrainingPlan, epoch: int = 0) -> list[PlannedBatch]:
    return list(takewhile(lambda planned: planned.epoch == epoch, training.batches(PlanPosition(epoch))))


def facts(planned: PlannedBatch) -> tuple:
    pieces = planned.pieces
    rows = pieces.rows - pieces.rows[0]
    return planned.epoch, *(a.tolist() for a in (pieces.indices, pieces.starts, pieces.lengths, pieces.ends, rows))


def in_order(corpus, epoch: int, seed: int = 0) -> list[int]:
    """Training sequences in the order of an epoch."""
    order = shuffled(np.arange(corpus.num_sequences), corpus.num_sequences, seed, epoch)
    return [int(index) for index in order if corpus.splits[index] == Split.TRAIN]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("planned_positions", [1, 3, 50, 2**14])
def test_the_plan_goes_on_from_any_batch_however_much_is_looked_at(
    corpus, monkeypatch, mode, planned_positions
) -> None:
    training = plan(corpus, **MODES[mode])
    whole = list(islice(training.batches(), 300))
    assert whole[-1].epoch > 0
    monkeypatch.setattr("protein_lm.batches.plan._PLANNED_POSITIONS", planned_positions)
    for number in (0, 1, 17, 150, 298):
        rest = islice(training.batches(whole[number].next_position), min(40, 299 - number))
        assert [facts(p) for p in rest] == [facts(p) for p in whole[number + 1 : number + 41]]


@pytest.mark.parametrize("mode", MODES)
def test_orders_differ_by_epoch_and_seed(corpus, mode) -> None:
    training = plan(corpus, **MODES[mode])
    first, again, second = ([facts(p)[1:] for p in one_epoch(training, epoch)] for epoch in (0, 0, 1))
    assert first == again and first != second
    assert first != [facts(p)[1:] for p in one_epoch(plan(corpus, seed=1, **MODES[mode]))]


@pytest.mark.parametrize("mode", ["crop", "drop", "window"])
def test_rows_hold_whole_sequences_in_order_and_batches_are_full(corpus, mode) -> None:
    training = plan(corpus, **MODES[mode])
    batches = one_epoch(training, 1)
    window, stride = 22, 17
    expected = []
    for index in in_order(corpus, 1):
        length = corpus.length(index)
        if length <= window:
            expected.append((index, 0, length))
        elif mode == "crop":
            expected.append((index, None, window))
        elif mode == "window":
            expected += [(index, start, window) for start in [*range(0, length - window, stride), length - window]]
    found = []
    for planned in batches:
        pieces = planned.pieces
        columns = (values.tolist() for values in (pieces.indices, pieces.starts, pieces.lengths))
        found += list(zip(*columns, strict=True))
    assert len(found) == len(expected)
    for (index, start, length), (wanted_index, wanted_start, wanted_length) in zip(found, expected, strict=True):
        assert (index, length) == (wanted_index, wanted_length)
        assert start == wanted_start if wanted_start is not None else 0 <= start <= corpus.length(index) - window
    sizes = [int((p.pieces.lengths + 2).sum()) for p in batches]
    assert max(sizes) <= 100
    firsts = [int(p.pieces.lengths[0]) + 2 for p in batches[1:]]
    assert all(size + more > 100 for size, more in zip(sizes, firsts, strict=False))


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("max_length", [24, 100])
def test_concatenated_rows_are_one_stream_cut_into_windows(corpus, objective, max_length) -> None:
    config = DataConfig(tokens_per_batch=100, windows=Windows.CONCATENATE)
    training = TrainingBatches(corpus, config, objective=objective, max_length=max_length, seed=0)
    stream: list[int] = []
    for index in in_order(corpus, 0):
        stream += [*corpus.residues(index).tolist(), alphabet.EOS]
    place = 0
    for planned in one_epoch(training.plan):
        batch = training.batch(planned)
        size = batch.tokens.shape[1]
        original = batch.tokens[0].clone()
        if objective is Objective.MASKED:
            scored = batch.targets[0] != IGNORED
            original[scored] = batch.targets[0, scored]
            assert (original[scored] != alphabet.EOS).all() and scored.any()
        assert original.tolist() == stream[place : place + size]
        lengths = batch.packing.lengths.tolist()
        if place + size < len(stream):
            assert lengths == [max_length] * (100 // max_length)
        else:
            assert set(lengths[:-1]) <= {max_length} and lengths[-1] <= max_length
        place += size
    assert place == len(stream)


def test_a_sequence_over_several_windows_goes_on_where_it_was_cut(corpus) -> None:
    shown: dict[int, list[tuple[int, int, bool]]] = {}
    for planned in one_epoch(plan(corpus, max_length=7, **MODES["concatenate"])):
        part = planned.pieces
        for index, start, length, end in zip(part.indices, part.starts, part.lengths, part.ends, strict=True):
            shown.setdefault(int(index), []).append((int(start), int(length), bool(end)))
    for index, parts in shown.items():
        assert parts[0][0] == 0 and sum(length for _, length, _ in parts) == corpus.length(index)
        assert all(a + n == b for (a, n, _), (b, _, _) in pairwise(parts))
        assert [end for *_, end in parts] == [False] * (len(parts) - 1) + [True]


def test_counts_and_refusals(corpus) -> None:
    lengths = corpus.lengths_of(corpus.indices(Split.TRAIN))
    number, too_long = lengths.size, int((lengths > 22).sum())
    assert (plan(corpus).num_sequences, plan(corpus).num_too_long) == (number, too_long)
    assert plan(corpus, **MODES["drop"]).num_sequences == number - too_long
    with pytest.raises(
        InputError, match=r"sequence S\d+ has \d+ residues; this model reads 22; set data.long_sequences"
    ):
        plan(corpus, long_sequences=TrainingLongPolicy.ERROR)
    fitting = int(lengths.max()) + 2
    plan(corpus, max_length=fitting, tokens_per_batch=1000, long_sequences=TrainingLongPolicy.ERROR)
    with pytest.raises(ConfigError, match=r"data\.tokens_per_batch 10 is below the longest sequence of 24 tokens"):
        plan(corpus, tokens_per_batch=10)
    with pytest.raises(ConfigError, match=r"data\.tokens_per_batch 100 is below a window of 101 tokens"):
        plan(corpus, max_length=101, **MODES["concatenate"])
    with pytest.raises(ConfigError, match=r"no training sequence fits model\.max_length 5; raise it"):
        plan(corpus, max_length=5, **MODES["drop"])
    with pytest.raises(ConfigError, match=r"data\.window_overlap 22 leaves nothing of a window of 22 residues"):
        plan(corpus, long_sequences=TrainingLongPolicy.WINDOW, window_overlap=22)
