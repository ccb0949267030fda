"""The comparison of models by time: same data for all, whatever the layout of their rows."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import ablations, time_to_perplexity
from benchmarks.contestants.learners import ours, padded, padded_perplexity, validation_sequences
from protein_lm import alphabet
from protein_lm.batches.packed_batches import IGNORED
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


def test_ablations_take_equal_time_and_go_on(corpus, tmp_path, capsys, monkeypatch) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(small_recipe(num_steps=20, warmup_steps=1).model_dump(mode="json")))
    speeds = {ablations.AS_IS: 1e-4, "model.num_layers=1": 5e-5}
    monkeypatch.setattr(ablations, "seconds_per_token", lambda recipes, _: {name: speeds[name] for name in recipes})
    command = [str(corpus.path), "-o", str(tmp_path / "ablations"), "--recipe", str(recipe), "--objectives", "masked"]
    command += ["--minutes", "0.01", "--seeds", "0", "1", "--validation", "8", "--changes", "model.num_layers=1"]
    assert ablations.main(command) == 0
    shown = capsys.readouterr().out
    assert "| model.num_layers=1 |" in shown and shown.count(", ") >= 2 and "| 2.00 |" in shown
    lines = (tmp_path / "ablations.masked.jsonl").read_text()
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [(row["name"], row["seed"]) for row in rows] == [(name, seed) for seed in (0, 1) for name in speeds]
    assert [6000 <= row["num_tokens"] < 7100 for row in rows] == [True, False, True, False]  # a batch has 1,024 tokens
    assert all(row["num_tokens"] >= 12000 for row in rows if row["name"] != ablations.AS_IS)
    assert ablations.main(command) == 0
    assert (tmp_path / "ablations.masked.jsonl").read_text() == lines  # nothing was trained again


@pytest.mark.slow
def test_the_papers_study(corpus, tmp_path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "paper_study.py"
    command = [sys.executable, str(script), str(corpus.path), "-o", str(tmp_path / "study"), "--steps", "6"]
    for more, name, models in (
        (["--seeds", "0"], "results", 6),
        (["--seeds", "0", "--concatenated", "--minutes", "0.01"], "concatenated", 2),
    ):
        for _ in range(2):  # the second time everything is there
            subprocess.run([*command, *more], check=True)
            table = pd.read_csv(tmp_path / "study" / f"{name}.csv")
            assert table["model"].nunique() == models and set(table["split"]) == {"test", "held_out"}
            assert (tmp_path / "study" / f"{name}.md").read_text().count("\n") == 3 + models
            assert (tmp_path / "study" / f"{name}.png").stat().st_size > 10_000
