"""Training: the loss falls, accumulation is exact, and a resumed run is the uninterrupted one."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from protein_lm.analysis.evaluation import evaluate
from protein_lm.batches.plan import PlanPosition
from protein_lm.checkpoint.directory import load_model, save_model
from protein_lm.checkpoint.training_state import read_training_state
from protein_lm.config import Recipe
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError, NumericalError, OutputError
from protein_lm.files.output import claimed
from protein_lm.model.conversion import with_attention
from protein_lm.native import build, library
from protein_lm.training.language_modelling import LanguageModelling
from protein_lm.training.loop import Trainer
from protein_lm.training.run_log import read_metrics
from tests.conftest import KINDS, small_recipe

FLOOR = math.exp(-(7 / 8 + 1 / 160) * math.log(7 / 8 + 1 / 160) - 19 / 160 * math.log(1 / 160))
"""Perplexity of the grammar itself: nobody can do better on the residues after the first."""


@pytest.mark.parametrize("attention", KINDS)
def test_a_causal_model_learns_the_grammar(corpus, tmp_path, attention) -> None:
    Trainer(LanguageModelling(small_recipe(attention=attention, num_steps=100), corpus), tmp_path / "run").fit()
    table = evaluate(load_model(tmp_path / "run"), corpus, splits=[Split.TEST]).iloc[0]
    assert FLOOR < table["perplexity"] < 4.5 < table["unigram_perplexity"]


@pytest.mark.parametrize("attention", ["exact", "performer-relu", "performer-softmax", "oglu", "linformer"])
def test_a_masked_model_learns_the_grammar(corpus, tmp_path, attention) -> None:
    recipe = small_recipe(objective="masked", attention=attention, num_steps=300, validate_every=300)
    Trainer(LanguageModelling(recipe, corpus), tmp_path / "run").fit()
    table = evaluate(load_model(tmp_path / "run"), corpus, splits=[Split.TEST]).iloc[0]
    assert table["perplexity"] < 6 < table["unigram_perplexity"]


def weights(run):
    return load_model(run / "last").state_dict()


@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon", "redraw_every": 7, "accumulation": 2}])
@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_a_resumed_run_equals_the_uninterrupted_one(corpus, tmp_path, objective, changes) -> None:
    recipe = small_recipe(objective=objective, num_steps=24, checkpoint_every=10, validate_every=6, **changes)
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dropout": 0.1})})
    Trainer(LanguageModelling(recipe, corpus), tmp_path / "whole").fit()

    class Stopped(Exception):
        pass

    broken = Trainer(LanguageModelling(recipe, corpus), tmp_path / "broken")
    step = broken._step

    def stop_at_17(batches):
        if broken.progress.step == 17:
            raise Stopped
        return step(batches)

    broken._step = stop_at_17  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        broken.fit()
    resumed = Trainer(LanguageModelling(recipe, corpus), tmp_path / "broken", resume=True)
    assert resumed.progress.step == 10
    resumed.fit()
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    kept, rows = (
        [row | {"seconds": 0} for row in read_metrics(tmp_path / name) if row["split"] == "valid"]
        for name in ("whole", "broken")
    )
    assert rows == kept


def test_accumulated_batches_equal_one_large_batch(corpus, tmp_path) -> None:
    """Every predicted token of a step counts the same, however the step is cut."""
    recipe = small_recipe(num_steps=1, warmup_steps=0, learning_rate=1e-3)
    gradients = []
    for name, split in (("one", False), ("two", True)):
        trainer = Trainer(LanguageModelling(recipe, corpus), tmp_path / name)
        planned = next(iter(trainer.task.batches.planned(PlanPosition())))
        halves = planned.pieces[:3], planned.pieces[3:]
        parts = [replace(planned, pieces=half) for half in halves] if split else [planned]
        for optimizer in trainer.model.optimizers:
            optimizer.step = lambda *_, **__: None
            optimizer.zero_grad = lambda *_, **__: None
        trainer._step([trainer.task.batches.batch(part) for part in parts])
        gradients.append([parameter.grad.clone() for parameter in trainer.model.plain.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_what_a_run_leaves(runs) -> None:
    run = runs["causal"]
    assert {path.name for path in run.iterdir()} == {"best", "last", "step-30", "metrics.jsonl", "recipe.yaml"}
    metrics = read_metrics(run)
    assert [row["step"] for row in metrics if row["split"] == "valid"] == [30, 60]
    assert [row["step"] for row in metrics if row["split"] == "train"] == [20, 40, 60]
    state, _ = read_training_state(run / "last")
    assert state["progress"]["step"] == 60
    assert state["progress"]["num_tokens"] == metrics[-1]["num_tokens"]


def test_runs_are_never_overwritten(runs, corpus, tmp_path) -> None:
    with pytest.raises(OutputError, match="exists already; add --resume to resume it"):
        Trainer(LanguageModelling(small_recipe(), corpus), runs["causal"])
    with pytest.raises(OutputError, match="nothing to resume"):
        Trainer(LanguageModelling(small_recipe(), corpus), tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_has_one_command_at_a_time(corpus, tmp_path, resume) -> None:
    """Two that begin at once; one that begins while another is at work; one that finds the run changed meanwhile."""
    run, recipe = tmp_path / "run", small_recipe(num_steps=2, warmup_steps=0, num_validation_sequences=2)
    if resume:
        Trainer(LanguageModelling(recipe, corpus), run).fit()
        recipe = small_recipe(num_steps=3, warmup_steps=0, num_validation_sequences=2)
    how = {"resume": resume, "allowed_changes": ["training.num_steps"] if resume else ()}
    late, second = (
        Trainer(LanguageModelling(recipe, corpus), run, **how),
        Trainer(LanguageModelling(recipe, corpus), run, **how),
    )
    before = contents(run)
    with claimed(run):
        with pytest.raises(OutputError, match="run: another command is at work there; wait for it or name another"):
            second.fit()
        with pytest.raises(OutputError, match="another command is at work there"):
            Trainer(LanguageModelling(recipe, corpus), run, **how)
        assert contents(run) == before
    second.fit()
    before = contents(run)
    with pytest.raises(OutputError, match="run: another command was at work there meanwhile; start again"):
        late.fit()
    assert contents(run) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_resuming_with_another_recipe_is_refused(runs, corpus) -> None:
    with pytest.raises(ConfigError, match=r"resumed with another recipe: training.learning_rate: 0.01 -> 0.02"):
        Trainer(LanguageModelling(small_recipe(learning_rate=0.02), corpus), runs["causal"], resume=True)


@pytest.mark.parametrize(
    ("changes", "allowed", "message"),
    [
        (
            {"seed": 3},
            ["training.seed"],
            r"training.seed: 0 -> 3; this cannot change within a run: start a new one, with",
        ),
        ({"num_steps": 90}, ["training.num_step"], "--allow-change training.num_step: no key of a recipe"),
        ({"num_steps": 90}, [], "training.num_steps: 60 -> 90; set it back, or add --allow-change training.num_steps"),
    ],
)
def test_changes_that_are_refused(runs, corpus, changes, allowed, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(
            LanguageModelling(small_recipe(**changes), corpus), runs["causal"], resume=True, allowed_changes=allowed
        )


def test_changes_that_are_allowed(runs, corpus) -> None:
    harmless = small_recipe(validate_every=7, checkpoint_every=9, keep_checkpoints=1, max_skipped_steps=1)
    assert Trainer(LanguageModelling(harmless, corpus), runs["causal"], resume=True).progress.step == 60
    longer = small_recipe(num_steps=90)
    keys = ["training.num_steps"]
    assert (
        Trainer(LanguageModelling(longer, corpus), runs["causal"], resume=True, allowed_changes=keys).progress.step
        == 60
    )


def test_a_run_goes_on_with_its_own_corpus(runs, tmp_path) -> None:
    from protein_lm.corpus.prepare import prepare
    from protein_lm.corpus.store import TokenStore
    from tests.conftest import grammar, write_fasta

    prepare([write_fasta(tmp_path / "a.fasta", grammar(50))], tmp_path / "store", valid_fraction=0.2)
    with pytest.raises(
        ConfigError, match=r"resumed with another corpus: tokens\.npy of .*store is not that of the run"
    ):
        Trainer(LanguageModelling(small_recipe(), TokenStore.open(tmp_path / "store")), runs["causal"], resume=True)


@pytest.mark.parametrize("attention", ["performer-softmax", "exact", "bigbird"])
def test_checkpointed_gradients_are_the_same(corpus, tmp_path, attention) -> None:
    found = []
    for setting in (False, True):
        recipe = small_recipe(attention=attention, num_steps=6, gradient_checkpointing=setting)
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dropout": 0.1})})
        run = tmp_path / str(setting)
        Trainer(LanguageModelling(recipe, corpus), run).fit()
        found.append(weights(run))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_a_corpus_without_validation_is_refused(tmp_path) -> None:
    from protein_lm.corpus.prepare import prepare
    from protein_lm.corpus.store import TokenStore
    from tests.conftest import grammar, write_fasta

    prepare([write_fasta(tmp_path / "a.fasta", grammar(20))], tmp_path / "store", valid_fraction=0.0)
    with pytest.raises(ConfigError, match="the split valid has no sequence of 62 residues or less"):
        Trainer(LanguageModelling(small_recipe(), TokenStore.open(tmp_path / "store")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_stops_and_names_the_place(corpus, tmp_path) -> None:
    trainer = Trainer(
        LanguageModelling(small_recipe(num_steps=9, warmup_steps=0, max_skipped_steps=3), corpus), tmp_path / "run"
    )
    with torch.no_grad():
        trainer.model.plain.blocks[1].attention.input_projection.weight[0] = 3e38
        trainer.model.plain.blocks[1].attention.input_projection.bias[0] = 3e38
    before = trainer.model.plain.blocks[0].feedforward.input_projection.weight.clone()
    with pytest.raises(
        NumericalError,
        match=r"run, step 3: the query of attention layer 2 of 2 became NaN or infinite, so none of the last 3 steps was "
        r"taken; the last checkpoint is that of step 0, .*last: lower",
    ):
        trainer.fit()
    assert torch.equal(trainer.model.plain.blocks[0].feedforward.input_projection.weight, before)


def test_steps_without_finite_gradients_are_skipped_and_counted(corpus, tmp_path, capsys) -> None:
    """Steps 3, 4 and 8 give NaN: the weights stay as they are, and the run goes on. Others are as without them."""
    trainer = Trainer(LanguageModelling(small_recipe(num_steps=40, max_skipped_steps=3), corpus), tmp_path / "run")
    forward, steps, bias = trainer._backward, trainer._step, trainer.model.plain.output_bias

    def backward(*arguments):
        result = forward(*arguments)
        if trainer.progress.step in (3, 4, 8):
            bias.grad[0] = math.nan
        return result

    def step(batches):
        before = [parameter.detach().clone() for parameter in trainer.model.plain.parameters()]
        sums, number = steps(batches), trainer.progress.step
        same = [torch.equal(a, b) for a, b in zip(before, trainer.model.plain.parameters(), strict=True)]
        assert all(same) is (number in (3, 4, 8)), number
        return sums

    trainer._backward, trainer._step = backward, step  # type: ignore[method-assign]
    progress = trainer.fit()
    assert progress.num_skipped_steps == 3 and progress.num_skipped_in_a_row == 0
    rows = [row for row in read_metrics(tmp_path / "run") if row["split"] == "train"]
    assert [row["num_skipped_steps"] for row in rows] == [3, 3]
    assert all(math.isfinite(row["loss_nats"]) for row in rows)


def test_a_gradient_that_overflows_is_named() -> None:
    from protein_lm.alphabet import encode
    from protein_lm.batches.packed_batches import causal_targets, pack
    from protein_lm.model.diagnosis import last_non_finite_gradient
    from tests.conftest import fresh_model

    model = fresh_model()
    tokens, packing = pack([encode("MKTAYIAKQR")])
    targets = causal_targets(tokens, packing)
    assert last_non_finite_gradient(model, tokens, targets, packing) == "nothing"
    model.blocks[1].attention.output_projection.register_full_backward_hook(lambda _, i, o: (i[0] * math.inf,))
    assert last_non_finite_gradient(model, tokens, targets, packing).startswith("the gradient of blocks.1.attention.")


def test_a_converted_model_fine_tunes_on(corpus, runs, tmp_path) -> None:
    """Exact attention opens as a Performer with the same weights, is worse at first, and recovers in a few steps."""
    Trainer(LanguageModelling(small_recipe(attention="exact", num_steps=100), corpus), tmp_path / "exact").fit()
    softmax = {"kind": "performer-softmax", "num_features": 32}
    converted = with_attention(load_model(tmp_path / "exact"), attention=softmax)
    save_model(converted, tmp_path / "start")
    recipe = small_recipe(attention="performer-softmax", num_steps=40, learning_rate=0.003, validate_every=40)
    Trainer(LanguageModelling(recipe, corpus), tmp_path / "tuned", initial=str(tmp_path / "start")).fit()
    Trainer(LanguageModelling(recipe, corpus), tmp_path / "fresh").fit()
    start, tuned, fresh = (
        evaluate(load_model(tmp_path / name), corpus, splits=[Split.TEST]).iloc[0]["perplexity"]
        for name in ("start", "tuned", "fresh")
    )
    assert tuned < start and tuned < fresh
    with pytest.raises(
        ConfigError, match=r"is another model than the recipe's: model\.attention: .*performer-softmax.* -> "
    ):
        Trainer(LanguageModelling(small_recipe(), corpus), tmp_path / "other", initial=str(tmp_path / "start"))
    with pytest.raises(ConfigError, match="leave out either --resume or --init"):
        Trainer(LanguageModelling(recipe, corpus), tmp_path / "tuned", resume=True, initial=str(tmp_path / "start"))


def test_the_penalty_keeps_weights_orthogonal(corpus, tmp_path, capsys) -> None:
    found = []
    for strength in (0.0, 1.0):
        run = tmp_path / f"run{strength}"
        Trainer(
            LanguageModelling(small_recipe(attention="oglu", num_steps=30, orthogonality=strength), corpus), run
        ).fit()
        found.append(float(load_model(run / "last").orthogonality().detach()))
    assert found[1] < 0.1 * found[0]
    # 2 layers × 2 heads × (16 × 16 of W + 16 × 16 of G)
    assert "(2,048 of them in the attention kernels)" in capsys.readouterr().err


def test_batches_that_cannot_be_split_are_refused(corpus, tmp_path) -> None:
    with pytest.raises(ConfigError, match="sequence_parallel 2: layer 1 has exact attention, which needs whole rows"):
        Trainer(LanguageModelling(small_recipe(attention="exact", sequence_parallel=2), corpus), tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"sequence_parallel 2 does not divide the 1 process\(es\) of this run; start 2"
    ):
        Trainer(LanguageModelling(small_recipe(sequence_parallel=2), corpus), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_two_pairs_of_processes_train_as_one_process_with_two_batches(corpus, tmp_path, objective) -> None:
    changes = {"num_steps": 40, "validate_every": 20, "checkpoint_every": 40}
    small = small_recipe(objective=objective, accumulation=2, **changes).model_dump(mode="json")
    small["model"] |= {"kmer_sizes": [3], "kmer_buckets": 64, "convolution_taps": 4}
    Trainer(LanguageModelling(Recipe.model_validate(small), corpus), tmp_path / "one").fit()
    small["training"] |= {"accumulation": 1, "sequence_parallel": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4"]
    train = ["-m", "protein_lm", "train", str(tmp_path / "recipe.yaml"), "--data", str(corpus.path)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, *train, "-o", str(tmp_path / "four")], env=environment, check=True, timeout=600)
    for one, four in zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "four"), strict=True):
        assert (one["step"], one["split"], one["num_tokens"]) == (four["step"], four["split"], four["num_tokens"])
        assert four["loss_nats"] == pytest.approx(one["loss_nats"], rel=1e-3)
    expected, together = weights(tmp_path / "one"), weights(tmp_path / "four")
    for name, weight in expected.items():
        assert (together[name] - weight).abs().max() <= 0.02 * weight.abs().max(), name


def test_where_kernels_are_missing_it_is_said_once(corpus, tmp_path, capsys, monkeypatch) -> None:
    command = "protein-lm kernels build makes linear attention two to three times as fast"
    monkeypatch.setenv(build.FOLDER_VARIABLE, str(tmp_path))
    said = {}
    for attention, path in (("performer-relu", ""), ("exact", ""), ("cosformer", ""), ("performer-relu", library.OFF)):
        monkeypatch.setenv(library.VARIABLE, path)
        library.forget()
        recipe = small_recipe(attention=attention, num_steps=1, warmup_steps=0)
        Trainer(LanguageModelling(recipe, corpus), tmp_path / f"{attention}{path}").fit()
        said[attention, path] = capsys.readouterr().err.count(command)
    library.forget()
    assert list(said.values()) == [1, 0, 0, 0]
