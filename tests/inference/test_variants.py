"""Scores of variants by their definitions, written out."""

import numpy as np
import pytest
import torch

from protein_lm import alphabet
from protein_lm.choices import Precision, VariantStrategy
from protein_lm.errors import ConfigError
from protein_lm.inference.likelihood import causal_log_probabilities
from protein_lm.inference.variants import MARGINALS, Scoring, all_variant_scores, choose_strategy, variant_scores
from protein_lm.io.variants.variant_table import Variant, all_substitutions
from tests.conftest import EVERY_FORM, KINDS, fresh_model
from tests.inference.toys import CopyModel

WILD_TYPE = alphabet.encode("MKTAYIAKQRQISFVKSH")
A, C, D = (alphabet.TOKENS.index(letter) for letter in "ACD")
PAIR = Variant(((0, A), (17, C)))
INDELS = [
    Variant(rewritten=alphabet.encode(text).tobytes())
    for text in (
        "MKTAYIAKQRQISFVKSHWW",
        "MKTAYIAKQ",
        "KTAYIAKQRQISFVKSH",
        "MKTAYWWWIAKQRQISFVKSH",
        "WMKTAYIAKQRQISFVKSH",
    )
]
MIXED = [*all_substitutions(WILD_TYPE)[::25], PAIR, Variant(), PAIR]


def plain_rows(model, tokens) -> np.ndarray:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([tokens])).double(), -1)[0].numpy()


def with_ends(residues) -> list[int]:
    return [alphabet.CLS, *residues.tolist(), alphabet.EOS]


def plain_pseudo_log_likelihood(model, residues) -> float:
    total = 0.0
    for place in range(1, residues.size + 1):
        tokens = with_ends(residues)
        tokens[place] = alphabet.MASK
        total += plain_rows(model, tokens)[place, residues[place - 1]]
    return total


@pytest.mark.parametrize("attention", ["exact", "performer-relu", "linformer"])
@pytest.mark.parametrize("tokens_per_batch", [1, 50])
def test_marginals_of_masked_models(attention, tokens_per_batch) -> None:
    model = fresh_model(objective="masked", attention=attention)
    for strategy in MARGINALS:
        scores = variant_scores(model, WILD_TYPE, MIXED, Scoring(strategy, tokens_per_batch))
        for variant, score in zip(MIXED, scores, strict=True):
            hidden = {
                VariantStrategy.MASKED_MARGINALS: lambda place, sites=variant.sites: sites,  # all at once
                VariantStrategy.ADDITIVE_MARGINALS: lambda place: [place],  # one after the other, each alone
                VariantStrategy.WT_MARGINALS: lambda place: [],
            }[strategy]
            expected = 0.0
            for place, token in variant.substitutions:
                tokens = with_ends(WILD_TYPE)
                for each in hidden(place):
                    tokens[each + 1] = alphabet.MASK
                row = plain_rows(model, tokens)[place + 1]
                expected += row[token] - row[WILD_TYPE[place]]
            assert score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_per_residue_is_the_difference_of_means(objective) -> None:
    model = fresh_model(objective=objective)
    scoring = Scoring(VariantStrategy.LOG_LIKELIHOOD if model.is_causal else VariantStrategy.PSEUDO_PPL)
    variants = [PAIR, Variant(), *INDELS]

    def likelihood(residues) -> float:
        if not model.is_causal:
            return plain_pseudo_log_likelihood(model, residues)
        (found,) = causal_log_probabilities(model, [residues], tokens_per_batch=8192)
        return found.log_probabilities.sum()

    own = likelihood(WILD_TYPE)
    whole = [variant.residues(WILD_TYPE) for variant in variants]
    found = all_variant_scores(model, WILD_TYPE, variants, scoring)
    sums = [likelihood(each) for each in whole]
    np.testing.assert_allclose(found.total, np.array(sums) - own, rtol=1e-5, atol=1e-4)
    means = [total / each.size - own / WILD_TYPE.size for total, each in zip(sums, whole, strict=True)]
    np.testing.assert_allclose(found.per_residue, means, rtol=1e-5, atol=1e-5)
    assert found.total[3] > 20 and abs(found.per_residue[3]) < 1, "half of the protein is gone"


def test_pseudo_likelihoods_know_insertions_and_deletions() -> None:
    model = fresh_model(objective="masked")
    variants = [PAIR, Variant(), *INDELS]
    scores = variant_scores(model, WILD_TYPE, variants, Scoring(VariantStrategy.PSEUDO_PPL))
    own = plain_pseudo_log_likelihood(model, WILD_TYPE)
    expected = [plain_pseudo_log_likelihood(model, variant.residues(WILD_TYPE)) - own for variant in variants]
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-4)
    assert scores[1] == 0


@pytest.mark.parametrize("attention", KINDS)
def test_going_on_from_the_shared_beginning_equals_whole_sequences(attention) -> None:
    model = fresh_model(objective="causal", attention=attention, convolution_taps=3, kmer_sizes=[2, 3])
    variants = [*MIXED, *INDELS]
    whole = [WILD_TYPE, *(variant.residues(WILD_TYPE) for variant in variants)]
    results = causal_log_probabilities(model, whole, tokens_per_batch=8192)
    own, *others = [result.log_probabilities.sum() for result in results]
    for tokens_per_batch in (40, 8192):
        scores = variant_scores(model, WILD_TYPE, variants, Scoring(VariantStrategy.LOG_LIKELIHOOD, tokens_per_batch))
        np.testing.assert_allclose(scores, np.array(others) - own, rtol=0, atol=1e-5 * abs(own))


def test_which_positions_are_seen_and_read() -> None:
    """CopyModel gives what it sees probability 1/2 and everything else 1/64, so <mask> hides the wild type."""
    model = CopyModel(causal=False)
    masked, shown = (
        variant_scores(model, alphabet.encode("ACDE"), [Variant(((3, A),))], Scoring(strategy))
        for strategy in (VariantStrategy.MASKED_MARGINALS, VariantStrategy.WT_MARGINALS)
    )
    assert masked.tolist() == pytest.approx([0]) and shown.tolist() == pytest.approx([np.log(2 / 64)])
    assert [row.tolist() for row in model.seen] == [
        [alphabet.CLS, A, C, D, alphabet.MASK, alphabet.EOS],
        with_ends(alphabet.encode("ACDE")),
    ]


@pytest.mark.parametrize("strategy", [VariantStrategy.MASKED_MARGINALS, VariantStrategy.ADDITIVE_MARGINALS])
def test_sites_are_computed_once(strategy) -> None:
    model = CopyModel(causal=False)
    variants = all_substitutions(WILD_TYPE)
    variant_scores(model, WILD_TYPE, variants if strategy is MARGINALS[0] else [*variants, PAIR], Scoring(strategy))
    assert len(model.seen) == WILD_TYPE.size


@pytest.mark.parametrize(
    "attention, objective", [form for form in EVERY_FORM if form[0] in ("exact", "performer-relu")]
)
def test_bfloat16_is_near_and_not_rounded_to_three_digits(attention, objective) -> None:
    model = fresh_model(objective=objective, attention=attention)
    strategy = choose_strategy(model, None)
    every = all_substitutions(WILD_TYPE)
    exact, rough = (
        variant_scores(model, WILD_TYPE, every, Scoring(strategy, precision=precision))
        for precision in (Precision.FLOAT32, Precision.BFLOAT16)
    )
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()
    assert len(np.unique(rough)) > 0.99 * len(every)


def test_strategies_without_a_meaning_are_refused() -> None:
    masked, causal = CopyModel(causal=False), CopyModel(causal=True)
    assert choose_strategy(masked, None) is VariantStrategy.MASKED_MARGINALS
    assert choose_strategy(causal, None) is VariantStrategy.LOG_LIKELIHOOD
    with pytest.raises(ConfigError, match="wt-marginals has no meaning for a causal model; choose log-likelihood"):
        choose_strategy(causal, VariantStrategy.WT_MARGINALS)
    with pytest.raises(ConfigError, match="for a masked model; choose masked-marginals or additive-marginals or"):
        choose_strategy(masked, VariantStrategy.LOG_LIKELIHOOD)
    with pytest.raises(ValueError, match="masked-marginals know no insertions and deletions"):
        variant_scores(masked, WILD_TYPE, INDELS, Scoring(VariantStrategy.MASKED_MARGINALS))
