"""The benchmarks that compare all kinds: the task is what it says, jobs are complete, tables are right."""

import json
from random import Random

import pytest

from benchmarks import kinds, listops
from protein_lm.attention.kinds.table import ATTENTION_KINDS


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (7, 7),
        (["MAX", 2, 9, ["MIN", 4, 7], 0], 9),
        (["MED", 1, 4, 8], 4),
        (["MED", 1, 4, 8, 9], 6),
        (["MED", 1, 2], 1),
        (["SM", 5, 6, ["SM", 9, 8]], 8),
    ],
)
def test_expressions_have_their_value(tree, expected) -> None:
    assert listops.value(tree) == expected


def test_examples_are_different_of_the_lengths_asked_for_and_seeded() -> None:
    tokens, mask, targets = listops.examples(200, lengths=(10, 40), seed=1)
    lengths = mask.sum(1)
    assert (lengths >= 10).all() and (lengths <= 40).all() and len({tuple(row) for row in tokens.tolist()}) == 200
    assert set(targets.tolist()) <= set(range(10)) and len(set(targets.tolist())) > 5
    again = listops.examples(200, lengths=(10, 40), seed=1)
    assert (again[0] == tokens).all() and (again[2] == targets).all()
    assert not (listops.examples(200, lengths=(10, 40), seed=2)[0] == tokens).all()
    text = [listops.TOKENS[number] for number in tokens[0][mask[0]].tolist()]
    assert text.count("]") == sum(token.startswith("[") for token in text) and text[-1] == "]"


def test_a_written_expression_can_be_read_back() -> None:
    generator = Random(0)

    def read(tokens: list[str]) -> object:
        token = tokens.pop(0)
        if token.isdigit():
            return int(token)
        tree: list[object] = [token[1:]]
        while tokens[0] != "]":
            tree.append(read(tokens))
        tokens.pop(0)
        return tree

    for _ in range(50):
        tree = listops.expression(generator, max_depth=5, max_arguments=4, max_length=1000)
        assert read(listops.write(tree)) == tree
    assert listops.expression(generator, max_depth=5, max_arguments=4, max_length=3) is None


@pytest.mark.parametrize("kind", listops.KINDS)
def test_every_kind_runs_on_listops(kind) -> None:
    tokens, mask, targets = listops.examples(60, lengths=(5, 30), seed=0)
    data = {"train": (tokens, mask, targets), "test": (tokens, mask, targets)}
    row = listops.train(kind, data, steps=3, batch=8, seed=0)
    assert 0 <= row["accuracy"] <= 1 and row["seconds"] > 0


def test_the_table_of_listops() -> None:
    rows = [{"kind": "oglu", "accuracy": accuracy, "seconds": 2.0} for accuracy in (0.2, 0.3, 0.4)]
    assert listops.table(rows, "header").splitlines()[-1] == "| oglu | 30.0 ± 10.0 | 2 | 18.45 |"


def test_jobs_are_every_kind_in_every_form() -> None:
    options = kinds._parser().parse_args(["store", "--steps", "7"])
    jobs = [job["recipe"] for job in kinds._jobs(options)]
    assert len(jobs) == 2 * len(ATTENTION_KINDS) - 2
    for job in jobs:
        assert kinds.recipe(**job).training.num_steps == 7
    with pytest.raises(SystemExit, match="magic is no kind; known ones: aoglu-3, bigbird"):
        kinds._jobs(kinds._parser().parse_args(["store", "--kinds", "magic"]))


def test_a_run_is_measured_once(corpus, tmp_path, monkeypatch) -> None:
    arguments = [str(corpus.path), "-o", str(tmp_path / "kinds.json"), "--kinds", "elu", "linformer", "--steps", "3"]
    options = kinds._parser().parse_args([*arguments, "--tokens", "300", "--width", "16", "--layers", "1"])
    results = kinds.run(options)
    assert [row["job"]["recipe"]["objective"] for row in results] == ["masked", "masked", "causal"]
    assert all(row["perplexity"] > 1 and row["tokens_per_second"] > 0 for row in results)
    assert "linformer" in kinds.table(results) and "failed" not in json.dumps(results)
    kinds.draw(results, tmp_path / "kinds.png")
    assert (tmp_path / "kinds.png").stat().st_size > 1000
    monkeypatch.setattr(kinds.subprocess, "run", lambda *_, **__: pytest.fail("measured again"))
    assert kinds.run(options) == results
