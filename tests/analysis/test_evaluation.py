"""Evaluation: the numbers by hand, and what the baseline is."""

import numpy as np
import pytest

from protein_lm.analysis.evaluation import describe, evaluate
from protein_lm.checkpoint.directory import load_model
from protein_lm.choices import LongPolicy
from protein_lm.corpus.prepare import prepare
from protein_lm.corpus.split import Split
from protein_lm.corpus.store import TokenStore
from protein_lm.errors import ConfigError, InputError
from tests.conftest import fresh_model, write_fasta
from tests.inference.toys import CopyModel


def test_accuracy_and_perplexity_by_hand(tmp_path) -> None:
    fasta = write_fasta(tmp_path / "a.fasta", {"a": "AAAA", "b": "AC", "c": "CCCCCA"})
    table = tmp_path / "t.csv"
    table.write_text("sequence_id,split\na,test\nb,test\nc,train\n")
    prepare([fasta], tmp_path / "store", split_table=table)
    row = evaluate(CopyModel(causal=True), TokenStore.open(tmp_path / "store"), splits=[Split.TEST]).iloc[0]
    log_likelihood = 3 * np.log(1 / 2) + 3 * np.log(1 / 64)
    assert (row["num_sequences"], row["num_residues"]) == (2, 6)
    assert row["perplexity"] == pytest.approx(np.exp(-log_likelihood / 6))
    assert row["accuracy"] == pytest.approx(3 / 6)
    p_alanine, p_cysteine = 2 / 31, 6 / 31
    assert row["unigram_perplexity"] == pytest.approx(np.exp(-(5 * np.log(p_alanine) + np.log(p_cysteine)) / 6))
    assert row["unigram_accuracy"] == pytest.approx(1 / 6)
    assert row["perplexity_low"] <= row["perplexity"] <= row["perplexity_high"]


def test_splits_and_intervals(runs, corpus) -> None:
    table = evaluate(load_model(runs["causal"]), corpus)
    assert table["split"].tolist() == ["valid", "test", "held_out"]
    assert (table["perplexity_low"] < table["perplexity"]).all()
    assert (table["perplexity"] < table["perplexity_high"]).all()
    test, held_out = table.iloc[1], table.iloc[2]
    assert test["perplexity"] < held_out["perplexity"], "held-out families follow another rule"
    assert "held_out" in describe(table)


def test_batches_do_not_matter(runs, corpus) -> None:
    model = load_model(runs["masked"])
    one, two = (evaluate(model, corpus, tokens_per_batch=budget) for budget in (100, 5000))
    np.testing.assert_allclose(one["perplexity"], two["perplexity"], rtol=1e-5)


def test_long_sequences_by_policy(corpus) -> None:
    model = fresh_model(max_length=40)
    with pytest.raises(InputError, match=r"sequence \w+ has \d+ residues; this model reads 38; choose --long crop"):
        evaluate(model, corpus)
    cropped = evaluate(model, corpus, long_sequences=LongPolicy.CROP)
    dropped = evaluate(model, corpus, long_sequences=LongPolicy.DROP)
    assert (cropped["num_too_long"] == dropped["num_too_long"]).all() and cropped["num_too_long"].sum() > 0
    assert (cropped["num_sequences"] - cropped["num_too_long"] == dropped["num_sequences"]).all()
    assert "were cropped to their start or left out" in describe(cropped)


def test_an_empty_split_is_refused(tmp_path, corpus) -> None:
    prepare([write_fasta(tmp_path / "a.fasta", {"a": "MKV"})], tmp_path / "store", valid_fraction=0, test_fraction=0)
    with pytest.raises(ConfigError, match="no sequence to evaluate in test"):
        evaluate(fresh_model(), TokenStore.open(tmp_path / "store"), splits=[Split.TEST])
    assert len(evaluate(fresh_model(), corpus, max_sequences=3, splits=[Split.TEST])) == 1
