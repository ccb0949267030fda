"""The comparison of models by time: same data for all, whatever the layout of their rows."""

import json

import numpy as np
import pytest
import torch

from benchmarks import time_to_perplexity
from benchmarks.contestants.learners import ours, padded, padded_perplexity, validation_sequences
from protein_lm import alphabet
from protein_lm.data.batches import IGNORED
from tests.conftest import small_recipe


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_padded_rows_are_judged_as_packed_ones(corpus, objective) -> None:
    recipe = small_recipe(objective=objective, num_steps=20, warmup_steps=1)
    sequences = validation_sequences(corpus, 12, recipe.model.max_length - 2)
    assert len(sequences) == 12
    learner = ours(recipe, corpus, sequences)
    learner.model.eval()
    found = padded_perplexity(
        lambda tokens: learner.model(tokens, valid_mask=tokens != alphabet.PAD),
        sequences,
        is_causal=objective == "causal",
        budget=200,
    )
    assert found == pytest.approx(learner.validate(), rel=1e-4)


def test_rows_are_padded_little_and_none_is_lost() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 90, 50).tolist()
    rows = [(torch.full((length,), 4 + length), torch.full((length,), length)) for length in lengths]
    seen, space = [], 0
    for tokens, targets in padded(rows, budget=300):
        assert tokens.shape == targets.shape and tokens.numel() <= 300
        assert ((tokens == alphabet.PAD) == (targets == IGNORED)).all()
        seen += (targets != IGNORED).sum(1).tolist()
        space += tokens.numel()
    assert sorted(seen) == sorted(lengths) and space < 1.2 * sum(lengths)


def test_turns_go_on_where_they_stopped(corpus, tmp_path, capsys) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(small_recipe(num_steps=20, warmup_steps=1).model_dump(mode="json")))
    results = tmp_path / "results.json"
    command = [
        str(corpus.path),
        "-o",
        str(results),
        "--recipe",
        str(recipe),
        "--contestants",
        "ours",
        "--objectives",
        "causal",
    ]
    command += ["--minutes", "0.02", "--slice", "0.6", "--validation", "8"]
    assert time_to_perplexity.main(command) == 0
    first, second = json.loads(results.read_text())
    assert second["num_steps"] > first["num_steps"] > 0 and second["seconds"] > first["seconds"]
    assert "| ours | " in capsys.readouterr().out
    assert time_to_perplexity.main(command) == 0
    assert json.loads(results.read_text()) == [first, second]  # nothing was measured again
    with pytest.raises(SystemExit, match="expected NAME=NUMBER"):
        time_to_perplexity.main([*command, "--minutes", "0.04", "--learning-rates", "hf-esm"])
