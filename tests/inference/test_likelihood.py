"""Which position predicts which residue: by hand, on a model whose answers are known."""

import numpy as np
import pytest
import torch

from protein_lm import alphabet
from protein_lm.errors import NumericalError
from protein_lm.inference.likelihood import (
    causal_log_probabilities,
    evaluation_positions,
    masked_log_probabilities,
)
from protein_lm.inference.score import score
from tests.conftest import fresh_model
from tests.inference.toys import CopyModel, records

C = alphabet.TOKENS.index("C")


def test_a_causal_residue_is_predicted_from_the_one_before() -> None:
    """CopyModel gives its own input token probability 1/2 and every other token 1/64."""
    (result,) = causal_log_probabilities(CopyModel(causal=True), [alphabet.encode("AACC")], tokens_per_batch=100)
    # <cls> predicts A: 1/64. A predicts A: 1/2. A predicts C: 1/64. C predicts C: 1/2. <eos> is not counted.
    assert np.exp(result.log_probabilities) == pytest.approx([1 / 64, 1 / 2, 1 / 64, 1 / 2])
    assert result.correct.tolist() == [False, True, False, True]


def test_a_masked_residue_is_predicted_where_it_stands() -> None:
    model = CopyModel(causal=False)
    (result,) = masked_log_probabilities(model, [alphabet.encode("ACD")], [np.array([0, 2])], tokens_per_batch=100)
    # Both hidden residues show <mask>, so the copy is <mask> and the residues get 1/64 each.
    assert np.exp(result.log_probabilities) == pytest.approx([1 / 64, 1 / 64])
    assert model.seen[-1].tolist() == [alphabet.CLS, alphabet.MASK, C, alphabet.MASK, alphabet.EOS]


def test_pseudo_log_likelihood_hides_every_residue_once_the_last_two_included() -> None:
    model = CopyModel(causal=False)
    table = score(model, records("ACDE"), tokens_per_batch=6)
    hidden = [[int(p) for p in np.flatnonzero(row == alphabet.MASK)] for row in model.seen]
    assert sorted(hidden) == [[1], [2], [3], [4]]
    assert table["pseudo_log_likelihood"].tolist() == pytest.approx([4 * np.log(1 / 64)])
    assert table["pseudo_perplexity"].tolist() == pytest.approx([64.0])


def test_causal_score_by_hand() -> None:
    table = score(CopyModel(causal=True), records("AAAA", "AC"), tokens_per_batch=50)
    assert table.columns.tolist() == ["sequence_id", "length", "log_likelihood", "mean_log_likelihood", "perplexity"]
    totals = [np.log(1 / 64) + 3 * np.log(1 / 2), 2 * np.log(1 / 64)]
    assert table["log_likelihood"].tolist() == pytest.approx(totals)
    assert table["perplexity"].tolist() == pytest.approx([np.exp(-totals[0] / 4), 64.0])
    assert table["sequence_id"].tolist() == ["P0", "P1"] and table["length"].tolist() == [4, 2]


@pytest.mark.parametrize("objective", ["causal", "masked"])
@pytest.mark.parametrize("attention", ["exact", "performer-relu", "performer-softmax"])
def test_scores_do_not_depend_on_the_batch(objective, attention) -> None:
    model = fresh_model(objective=objective, attention=attention)
    proteins = records("MKTAYIAKQR", "GG", "ACDEFGHIKLMNPQRSTVWYACDEFGHIKL", "W", "MKV" * 9)
    measure = "log_likelihood" if objective == "causal" else "pseudo_log_likelihood"
    together = score(model, proteins, tokens_per_batch=4096)[measure]
    small = score(model, proteins, tokens_per_batch=40)[measure]
    alone = [score(model, [protein])[measure].iloc[0] for protein in proteins]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    np.testing.assert_allclose(small, alone, rtol=1e-5)


def test_causal_log_likelihood_equals_a_plain_loop() -> None:
    model = fresh_model(objective="causal")
    residues = alphabet.encode("MKTAYIAKQRQISFVK")
    tokens = torch.tensor([[alphabet.CLS, *residues.tolist()]])
    with torch.no_grad():
        log_probabilities = torch.log_softmax(model(tokens).double(), -1)[0]
    expected = sum(float(log_probabilities[i, residue]) for i, residue in enumerate(residues))
    (result,) = causal_log_probabilities(model, [residues], tokens_per_batch=100)
    assert result.log_probabilities.sum() == pytest.approx(expected, rel=1e-6)


def test_evaluation_hides_the_same_15_percent_for_everyone() -> None:
    residues = alphabet.encode("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV")
    positions = evaluation_positions(residues)
    assert positions.size == round(0.15 * residues.size)
    assert positions.tolist() == evaluation_positions(residues.copy()).tolist()
    # Golden: a change here would make figures of different versions incomparable.
    assert positions.tolist() == [3, 22, 24, 27, 34, 47, 52, 61, 65, 69]


@pytest.mark.parametrize("attention", ["exact", "performer-relu", "performer-softmax"])
def test_a_long_sequence_is_streamed_with_the_same_result(attention) -> None:
    model = fresh_model(objective="causal", attention=attention)
    sequence = alphabet.encode("MKTAYIAKQRGGWCDEFHL" * 3)
    (whole,) = causal_log_probabilities(model, [sequence], tokens_per_batch=4096)
    for tokens_per_batch in (1, 7, 58, 59):
        (streamed,) = causal_log_probabilities(model, [sequence], tokens_per_batch=tokens_per_batch)
        np.testing.assert_allclose(streamed.log_probabilities, whole.log_probabilities, rtol=1e-5)
        assert (streamed.correct == whole.correct).all()


def test_numbers_that_are_not_finite_are_reported_once_with_their_place() -> None:
    model = fresh_model(objective="causal")
    block = model.blocks[1]
    with torch.no_grad():
        block.attention.input_projection.bias[0] = 3e38
        block.attention.input_projection.weight[0] = 3e38
    with pytest.raises(NumericalError, match="the query of attention layer 2 of 2 is NaN or infinite"):
        score(model, records("MKTAYIAKQR"))
    with torch.no_grad():
        block.feedforward.output_projection.weight[3, 3] = float("nan")
    with pytest.raises(NumericalError, match=r"the weights blocks\.1\.feedforward\.output_projection\.weight is NaN"):
        score(model, records("MKTAYIAKQR"))
