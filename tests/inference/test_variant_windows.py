"""Variants of proteins over the model's window."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protein_lm import alphabet
from protein_lm.choices import VariantStrategy
from protein_lm.inference.likelihood import causal_log_probabilities, each_hidden_in_turn
from protein_lm.inference.variants import MARGINALS, Scoring, all_variant_scores, cut_to_window, fault, variant_scores
from protein_lm.io.variants.variant_table import Variant, all_substitutions
from tests.conftest import fresh_model
from tests.inference.toys import CopyModel

MOST_TOKENS = 64
LONGEST = 62
TOO_SHORT = "what changes spans 62 residues, for which a window of 62 is too short"
LONG = (alphabet.FIRST_RESIDUE + np.random.default_rng(0).integers(0, 20, 150)).astype(np.uint8)


def other_than(residue: int) -> int:
    return alphabet.FIRST_RESIDUE + (residue - alphabet.FIRST_RESIDUE + 1) % 20


def at(*places: int) -> Variant:
    return Variant(tuple((place, other_than(int(LONG[place]))) for place in places))


def rewritten(start: int, end: int, inserted: str = "") -> Variant:
    parts = (LONG[:start], alphabet.encode(inserted), LONG[end:])
    return Variant(rewritten=np.concatenate(parts).tobytes())


def proteingym_window(token: int, num_tokens: int) -> range:
    """`get_optimal_window(token, num_tokens, 64)` by its four cases; tokens are those of <cls> r₁ … rₙ <eos>."""
    if num_tokens <= MOST_TOKENS:
        return range(num_tokens)
    if token < MOST_TOKENS // 2:
        return range(MOST_TOKENS)
    if token >= num_tokens - MOST_TOKENS // 2:
        return range(num_tokens - MOST_TOKENS, num_tokens)
    return range(token - MOST_TOKENS // 2, token + MOST_TOKENS // 2)


@pytest.mark.parametrize("length", [62, 63, 64, 100])
def test_marginals_of_every_site_are_those_of_the_loop_that_proteingym_has(length) -> None:
    model = fresh_model(objective="masked", attention="exact")
    residues = LONG[:length]
    whole = torch.tensor([[alphabet.CLS, *residues.tolist(), alphabet.EOS]])
    variants = [Variant(((place, other_than(int(own))),)) for place, own in enumerate(residues)]
    for strategy in MARGINALS:
        expected = []
        for token, variant in enumerate(variants, 1):
            window = proteingym_window(token, length + 2)
            tokens = whole.clone()
            if strategy is not VariantStrategy.WT_MARGINALS:
                tokens[0, token] = alphabet.MASK
            with torch.no_grad():
                rows = torch.log_softmax(model(tokens[:, window.start : window.stop]).double(), -1)[0]
            row = rows[token - window.start]
            expected.append(float(row[variant.substitutions[0][1]] - row[residues[token - 1]]))
        found = variant_scores(model, residues, variants, Scoring(strategy, tokens_per_batch=300))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_which_tokens_a_window_has() -> None:
    model = CopyModel(causal=False)
    variants = [at(0), at(70), at(60, 80), at(149)]
    variant_scores(model, LONG, variants, Scoring(VariantStrategy.MASKED_MARGINALS))
    own = LONG.tolist()
    tokens = [alphabet.CLS, *own, alphabet.EOS]
    expected = [tokens[:64], tokens[39:103], tokens[39:103], tokens[88:]]
    for row, places in zip(expected, ([1], [32], [22, 42], [62]), strict=True):
        for place in places:
            row[place] = alphabet.MASK
    assert [row.tolist() for row in model.seen] == expected
    model = CopyModel(causal=False)
    variant_scores(model, LONG, [at(0, 149), at(20), at(70)], Scoring(VariantStrategy.WT_MARGINALS))
    assert [row.tolist() for row in model.seen] == [tokens[:64], tokens[39:103], tokens[88:]]


EDGES = [
    *(at(0), at(75), at(149), at(50, 110)),
    *(rewritten(70, 75), rewritten(75, 75, "WW"), rewritten(60, 100), rewritten(75, 75, 60 * "W")),
    *(rewritten(0, 0, "W"), rewritten(0, 3), rewritten(150, 150, "WW"), rewritten(140, 150), rewritten(89, 150, "W")),
]


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_likelihoods_are_those_of_the_residues_in_the_window(objective) -> None:
    model = fresh_model(objective=objective)
    strategy = VariantStrategy.LOG_LIKELIHOOD if model.is_causal else VariantStrategy.PSEUDO_PPL

    def likelihood(residues) -> float:
        if not model.is_causal:
            return each_hidden_in_turn(model, residues, tokens_per_batch=8192).sum()
        return causal_log_probabilities(model, [residues], tokens_per_batch=8192)[0].log_probabilities.sum()

    middle = at(75)
    own, changed = LONG[44:106], middle.residues(LONG)[44:106]
    deletion = rewritten(70, 75)
    cut = np.frombuffer(deletion.rewritten, dtype=np.uint8)[41 : 103 - 5]
    found = all_variant_scores(model, LONG, [middle, deletion, Variant()], Scoring(strategy))
    expected = [likelihood(changed) - likelihood(own), likelihood(cut) - likelihood(LONG[41:103]), 0]
    np.testing.assert_allclose(found.total, expected, rtol=1e-5, atol=1e-4)
    means = [expected[0] / 62, likelihood(cut) / 57 - likelihood(LONG[41:103]) / 62, 0]
    np.testing.assert_allclose(found.per_residue, means, rtol=1e-4, atol=1e-5)
    assert np.isfinite(all_variant_scores(model, LONG, EDGES, Scoring(strategy)).per_residue).all()


def check_cut(wild_type, variant, longest: int) -> None:
    start, end, part = cut_to_window(variant, wild_type, longest)
    window = part.residues(wild_type[start:end])
    assert 0 < end - start <= longest and 0 < window.size <= longest
    assert [*wild_type[:start], *window, *wild_type[end:]] == variant.residues(wild_type).tolist()
    assert max(end - start, window.size) == min(longest, max(wild_type.size, len(variant.rewritten)))


@pytest.mark.parametrize("variant", EDGES)
def test_windows_hold_all_that_changes(variant) -> None:
    assert not fault(variant, LONG, VariantStrategy.PSEUDO_PPL, longest=LONGEST)
    check_cut(LONG, variant, LONGEST)


@given(st.data())
def test_windows_of_any_change(data) -> None:
    letters = st.lists(st.sampled_from([4, 5, 6]), min_size=1, max_size=40)
    wild_type = np.array(data.draw(letters), dtype=np.uint8)
    changed = np.array(data.draw(letters), dtype=np.uint8)
    longest = data.draw(st.integers(2, 30))
    places = np.flatnonzero(changed != wild_type).tolist() if changed.size == wild_type.size else []
    if changed.size != wild_type.size:
        variant = Variant(rewritten=changed.tobytes())
    elif places:
        variant = Variant(tuple((place, int(changed[place])) for place in places))
    else:
        return
    if fault(variant, wild_type, VariantStrategy.LOG_LIKELIHOOD, longest=longest):
        assert max(variant.stretch(wild_type)[1:]) - variant.stretch(wild_type)[0] >= longest
    else:
        check_cut(wild_type, variant, longest)


def test_what_no_window_holds() -> None:
    far = at(10, 71)
    for strategy in (VariantStrategy.MASKED_MARGINALS, VariantStrategy.PSEUDO_PPL):
        message = fault(far, LONG, strategy, longest=LONGEST)
        assert message == f"{TOO_SHORT}; choose --strategy additive-marginals"
    causal = fault(far, LONG, VariantStrategy.LOG_LIKELIHOOD, longest=LONGEST)
    assert causal == TOO_SHORT
    assert not fault(far, LONG, VariantStrategy.ADDITIVE_MARGINALS, longest=LONGEST)
    assert not fault(at(10, 70), LONG, VariantStrategy.MASKED_MARGINALS, longest=LONGEST)
    assert not fault(at(0, 61), LONG[:62], VariantStrategy.MASKED_MARGINALS, longest=LONGEST)
    assert fault(rewritten(20, 100), LONG, VariantStrategy.PSEUDO_PPL, longest=LONGEST).startswith(
        "what changes spans 80"
    )
    model = fresh_model(objective="masked")
    with pytest.raises(ValueError, match=TOO_SHORT):
        variant_scores(model, LONG, [far], Scoring(VariantStrategy.MASKED_MARGINALS))
    alone, pair = (Scoring(VariantStrategy.ADDITIVE_MARGINALS), [at(10), at(71), far])
    scores = variant_scores(model, LONG, pair, alone)
    assert scores[2] == pytest.approx(scores[0] + scores[1], abs=1e-6)


def test_a_scan_beyond_the_window_shares_the_windows_at_the_ends() -> None:
    model = CopyModel(causal=False)
    variant_scores(model, LONG, all_substitutions(LONG), Scoring(VariantStrategy.WT_MARGINALS))
    assert len(model.seen) == 150 + 2 - 64 + 1
