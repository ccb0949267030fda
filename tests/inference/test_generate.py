"""Sequences out of a causal model: the same whatever the batch, scored as `score` scores them, drawn as they should be."""

import numpy as np
import pytest
import torch

from protein_lm import alphabet
from protein_lm.checkpoint.directory import load_model
from protein_lm.errors import ConfigError, NumericalError
from protein_lm.inference.generate import Generated, Generator, Prefix
from protein_lm.inference.sampling import Sampling, draw, log_softmax
from protein_lm.inference.score import score
from protein_lm.io.records import SequenceRecord
from tests.conftest import fresh_model


@pytest.fixture(scope="module")
def model(runs):
    return load_model(runs["causal"])


def letters(made: list[Generated]) -> list[str]:
    return [alphabet.decode(each.residues) for each in made]


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.8, top_k=6, top_p=0.9, repetition_penalty=1.3)]
)
def test_sequences_do_not_depend_on_the_batch(model, sampling) -> None:
    made = [list(Generator(model, sampling=sampling, batch_size=size, seed=3).generate(8)) for size in (1, 3)]
    assert letters(made[0]) == letters(made[1])
    assert [each.sequence_id for each in made[1]] == [f"generated_{number}" for number in range(1, 9)]
    assert len({each.residues.size for each in made[0]}) > 3, "rows end at different times"
    assert letters(made[0])[:4] == letters(list(Generator(model, sampling=sampling, seed=3).generate(4)))
    assert letters(made[0]) != letters(list(Generator(model, sampling=sampling, seed=4).generate(8)))


@pytest.mark.parametrize("attention", ["exact", "lsh", "bigbird", "cosformer", "performer-softmax"])
def test_every_kind_generates_the_same_in_any_batch(attention) -> None:
    """Kinds whose rows cannot be replaced too: they take the sequences of one prefix batch by batch."""
    model = fresh_model(attention=attention, kmer_sizes=[3], kmer_buckets=64, convolution_taps=3)
    prefixes = [Prefix("a", alphabet.encode("MKV")), Prefix("b", alphabet.encode("W"))]
    made = [list(Generator(model, batch_size=size, max_length=20).generate(5, prefixes)) for size in (1, 4)]
    assert letters(made[0]) == letters(made[1])
    assert [each.sequence_id for each in made[0]] == [f"{name}_{n}" for name in "ab" for n in range(1, 6)]
    assert all(text.startswith("MKV") for text in letters(made[0])[:5])


def test_log_likelihood_is_that_of_the_whole_sequence_under_the_model_itself(model) -> None:
    prefix = Prefix("p", alphabet.encode("MKVX"))
    sampling = Sampling(temperature=0.5, top_k=4, repetition_penalty=2)
    made = list(Generator(model, sampling=sampling, batch_size=3).generate(5, [prefix]))
    records = [SequenceRecord(each.sequence_id, each.residues, 1) for each in made]
    expected = score(model, records)["log_likelihood"]
    assert [each.log_likelihood for each in made] == pytest.approx(list(expected), abs=1e-3)
    first = made[0]
    perplexity = np.exp(-first.log_likelihood / first.residues.size)
    measures = f"length={first.residues.size} log_likelihood={first.log_likelihood:.3f} perplexity={perplexity:.3f}"
    assert first.header == f"p_1 {measures} {'finished' if first.is_finished else 'unfinished'}"


def test_the_model_ends_sequences_within_the_lengths(model) -> None:
    made = list(Generator(model, min_length=20, max_length=30, batch_size=8).generate(40))
    assert {20 <= each.residues.size <= 30 for each in made} == {True}
    unfinished = [each for each in made if not each.is_finished]
    assert unfinished and all(each.residues.size == 30 and each.header.endswith(" unfinished") for each in unfinished)
    assert all(each.header.endswith(" finished") for each in made if each.is_finished)
    whole_window = list(Generator(model, min_length=62).generate(3))
    assert [each.residues.size for each in whole_window] == [62] * 3
    assert alphabet.EOS not in np.concatenate([each.residues for each in made])


def test_sequences_end_as_the_model_has_it_whatever_the_temperature() -> None:
    model = fresh_model()
    with torch.no_grad():
        logits = model(torch.tensor([[alphabet.CLS, alphabet.TOKENS.index("A")]]))[0, -1].double()
        possible = [alphabet.EOS, *range(4, 24)]
        expected = float(torch.softmax(logits[possible], -1)[0])
    sampling = Sampling(temperature=0.1, top_k=2, top_p=0.5)
    generator = Generator(model, sampling=sampling, max_length=2, batch_size=500)
    made = list(generator.generate(3000, [Prefix("a", alphabet.encode("A"))]))
    ended = np.mean([each.residues.size == 1 for each in made])
    assert ended == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 3000) ** 0.5)


def test_temperature_zero_takes_the_most_probable_residue(model) -> None:
    (made,) = Generator(model, sampling=Sampling(temperature=0), max_length=20).generate(1)
    tokens = torch.tensor([alphabet.CLS, *made.residues.tolist()])[None]
    allowed = Sampling().allowed()
    allowed[alphabet.EOS] = True
    with torch.no_grad():
        logits = model(tokens)[0].masked_fill(~torch.from_numpy(allowed), -torch.inf)
    logits[0, alphabet.EOS] = -torch.inf
    assert logits.argmax(-1)[:-1].tolist() == made.residues.tolist()


def test_generated_residues_have_the_frequencies_of_the_model() -> None:
    """The first residue of many sequences, against the model's own probabilities."""
    model = fresh_model()
    with torch.no_grad():
        expected = torch.softmax(3 * model(torch.tensor([[alphabet.CLS]]))[0, 0, 4:24].double(), -1).numpy()
    generator = Generator(model, sampling=Sampling(temperature=1 / 3), max_length=1, batch_size=500)
    counts = np.bincount([int(each.residues[0]) - 4 for each in generator.generate(3000)], minlength=20)
    assert (((counts - 3000 * expected) ** 2 / (3000 * expected)).sum()) < 43.8, "0.1 % of chi-squared with 19 degrees"


def test_only_the_standard_residues_unless_others_are_wanted() -> None:
    made = list(Generator(fresh_model(), max_length=50).generate(30))
    assert set("".join(letters(made))) <= set(alphabet.STANDARD_RESIDUES)
    made = list(Generator(fresh_model(), sampling=Sampling(residues="AXU"), max_length=50).generate(30))
    assert set("".join(letters(made))) == set("AXU")


def test_distribution_by_hand() -> None:
    log_probabilities = np.log([[0.5, 0.25, 0.15, 0.1]])
    everything = np.ones(4, dtype=bool)

    def shares(allowed=everything, repeated=None, **settings) -> list[float]:
        return Sampling(**settings).distribution(log_probabilities, allowed, repeated)[0].tolist()

    assert shares() == pytest.approx([0.5, 0.25, 0.15, 0.1])
    assert shares(temperature=0.5) == pytest.approx((np.array([0.25, 0.0625, 0.0225, 0.01]) / 0.345).tolist())
    assert shares(temperature=0) == [1, 0, 0, 0]
    assert shares(temperature=0, allowed=np.array([False, True, True, True])) == [0, 1, 0, 0]
    assert shares(top_k=2) == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert shares(top_p=0.5) == [1, 0, 0, 0]
    assert shares(top_p=0.51) == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert shares(top_k=3, top_p=0.8) == pytest.approx([2 / 3, 1 / 3, 0, 0]), "top-p counts what top-k has left"
    penalized = np.array([0.25, 0.25, 0.15, 0.1])
    assert shares(repeated=np.array([[True, False, False, False]]), repetition_penalty=2) == pytest.approx(
        (penalized / penalized.sum()).tolist()
    )


def test_draws_fall_where_the_sum_passes_them() -> None:
    probabilities = np.array([[0.0, 0.25, 0.0, 0.75, 0.0]]).repeat(5, 0)
    uniforms = np.array([0.0, 0.2499, 0.2501, 0.75, np.nextafter(1, 0)])
    assert draw(probabilities, uniforms).tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"temperature": -1}, "temperature -1 must be 0 (the most probable residue) or more"),
        ({"temperature": float("nan")}, "temperature nan must be 0"),
        ({"top_k": -2}, "top-k -2 is no number of residues; choose 1 or more, or 0 for all"),
        ({"top_p": 0}, "top-p 0 is no probability to reach; choose one over 0 and up to 1"),
        ({"top_p": 1.5}, "top-p 1.5 is no probability"),
        ({"repetition_penalty": 0}, "repetition penalty 0 must be over 0; 1 changes nothing"),
        ({"repetition_window": 0}, "repetition window 0 must be 1 residue or more"),
        ({"residues": "ACJ"}, "residues 'ACJ': 'J' is no residue letter; choose among LAGVSERTIDPKQNFYMHWCXBUZO"),
        ({"residues": ""}, "no residues to draw; choose among LAGV"),
    ],
)
def test_settings_without_meaning(settings, words) -> None:
    with pytest.raises(ConfigError) as error:
        Sampling(**settings)
    assert words in str(error.value)


def test_what_cannot_be_generated(model, runs) -> None:
    with pytest.raises(ConfigError, match=r"generate with a causal model, or fill in .* with protein-lm infill"):
        Generator(load_model(runs["masked"]))
    with pytest.raises(ConfigError, match="--max-length 63 is over the 62 residues that the model's window holds"):
        Generator(model, max_length=63)
    with pytest.raises(ConfigError, match="--min-length 21 must lie between 1 and the longest length, 20"):
        Generator(model, min_length=21, max_length=20)
    with pytest.raises(ConfigError, match="--batch-size 0 grows no sequence; choose 1 or more"):
        Generator(model, batch_size=0)  # once without an end
    with pytest.raises(ConfigError, match="--seed -1 must be 0 or more"):
        Generator(model, seed=-1)
    with pytest.raises(ConfigError, match="0 sequences for each prefix are none; choose 1 or more"):
        list(Generator(model).generate(0))
    with pytest.raises(
        ConfigError, match="prefix long has 62 residues, which leaves no room within the longest length of 62"
    ):
        list(Generator(model).generate(1, [Prefix("long", alphabet.encode("A" * 62))]))
    with pytest.raises(NumericalError, match="a logit is NaN or infinite"):
        log_softmax(np.array([[0.0, np.nan]]))
