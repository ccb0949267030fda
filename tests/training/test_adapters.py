"""Adapters: the model under them stays as it is, a resumed run is the uninterrupted one, and merging changes no score."""

import shutil

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from protein_lm import alphabet
from protein_lm.checkpoint.config_file import read_facts
from protein_lm.checkpoint.directory import load_model, save_model
from protein_lm.cli import main
from protein_lm.errors import ConfigError, ModelError, NumericalError, ProteinLMError
from protein_lm.inference.likelihood import causal_log_probabilities
from protein_lm.model.adapters import adapter_weights
from protein_lm.training.language_modelling import LanguageModelling
from protein_lm.training.loop import Trainer
from tests.conftest import fresh_model, small_recipe


def recipe(**changes):
    settings = {"lora_rank": 4, "num_steps": 8, "checkpoint_every": 3, "validate_every": 8, "warmup_steps": 1}
    return small_recipe(**settings | changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "model"
    save_model(fresh_model(), path)
    return path


@pytest.fixture(scope="module")
def trained(base, corpus, tmp_path_factory):
    trainer = Trainer(
        LanguageModelling(recipe(), corpus), tmp_path_factory.mktemp("adapters") / "run", initial=str(base)
    )
    trainer.fit()
    return trainer


def scores(model) -> np.ndarray:
    sequences = [alphabet.encode("MKTAYIAKQR"), alphabet.encode("GGACD")]
    found = causal_log_probabilities(model.eval(), sequences, tokens_per_batch=100)
    return np.concatenate([result.log_probabilities for result in found])


def test_only_adapters_are_trained_and_kept(base, trained) -> None:
    folder = trained.run / "best"
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "adapters.safetensors", "checksums.json", "config.json")
    }
    adapters = load_file(folder / "adapters.safetensors")
    assert len(adapters) == 2 * 2 * 4 and adapters["blocks.0.attention.input_projection.lora_A.weight"].shape == (4, 32)
    before, after = load_model(base).state_dict(), load_model(trained.run).state_dict()
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed == {name.replace(".lora_A", "") for name in adapters if ".lora_A" in name}


def test_merging_changes_no_score(base, trained, tmp_path, capsys) -> None:
    unmerged = scores(trained.model.plain)
    assert not np.allclose(unmerged, scores(load_model(base)), atol=1e-3)
    np.testing.assert_allclose(scores(load_model(trained.run / "last")), unmerged, atol=2e-6)
    assert main(["convert", str(trained.run / "last"), "-o", str(tmp_path / "merged"), "--merge"]) == 0
    assert "stands on no other" in capsys.readouterr().out
    assert "base" not in read_facts(tmp_path / "merged")
    np.testing.assert_allclose(scores(load_model(tmp_path / "merged")), unmerged, atol=2e-6)
    assert main(["convert", str(trained.run), "-o", str(tmp_path / "x"), "--merge", "--set", "attention=exact"]) == 2
    assert "--merge changes no kind of attention" in capsys.readouterr().err
    with pytest.raises(ModelError, match="holds adapters or a head, not a model of its own; make one with: protein-lm"):
        Trainer(LanguageModelling(recipe(), trained.task.data), tmp_path / "run", initial=str(trained.run))


def test_a_resumed_run_equals_the_uninterrupted_one(base, corpus, trained, tmp_path) -> None:
    class Stopped(Exception):
        pass

    broken = Trainer(LanguageModelling(recipe(), corpus), tmp_path / "run", initial=str(base))
    step = broken._step

    def stop_at_5(batches):
        if broken.progress.step == 5:
            raise Stopped
        return step(batches)

    broken._step = stop_at_5  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        broken.fit()
    resumed = Trainer(LanguageModelling(recipe(), corpus), tmp_path / "run", resume=True)
    assert resumed.progress.step == 3
    resumed.fit()
    whole, again = (load_file(run / "last/adapters.safetensors") for run in (trained.run, tmp_path / "run"))
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_base_that_moves_changes_or_goes(corpus, tmp_path) -> None:
    home = tmp_path / "home"
    save_model(fresh_model(), home / "base")
    Trainer(LanguageModelling(recipe(num_steps=2), corpus), home / "run", initial=str(home / "base")).fit()
    expected = scores(load_model(home / "run"))
    home = home.rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(scores(load_model(home / "run")), expected)
    shutil.rmtree(home / "base")
    with pytest.raises(ModelError, match=r"was trained on the model .*base, which is gone; put it back there"):
        load_model(home / "run")
    other = fresh_model()
    other.output_bias.data += 1
    save_model(other, home / "base")
    with pytest.raises(ModelError, match=r"base, whose weights are others now \(their checksum was"):
        load_model(home / "run")


def test_adapters_of_attention_alone(base, corpus, tmp_path) -> None:
    trainer = Trainer(
        LanguageModelling(recipe(lora_layers="attention", optimizer="muon"), corpus),
        tmp_path / "run",
        initial=str(base),
    )
    trainer._step(next(trainer._batches()))
    names = {name for name, weight in trainer.model.plain.named_parameters() if weight.requires_grad}
    assert len(names) == 2 * 2 * 2 and all(".attention." in name for name in names)


def test_gradients_that_are_not_finite_are_named(base, corpus, tmp_path) -> None:
    trainer = Trainer(LanguageModelling(recipe(max_skipped_steps=1), corpus), tmp_path / "run", initial=str(base))
    weight = adapter_weights(trainer.model.plain)["blocks.0.attention.input_projection.lora_B.weight"]
    weight.register_hook(lambda gradient: gradient * np.nan)
    with pytest.raises(NumericalError, match=r"the gradient of blocks\.0\.attention\.input_projection\.lora_B"):
        trainer.fit()


def test_mistakes(base, corpus, tmp_path) -> None:
    with pytest.raises(ConfigError, match="trains adapters of an existing model; name it with --init"):
        Trainer(LanguageModelling(recipe(), corpus), tmp_path / "run")
    with pytest.raises(ConfigError, match="lora_rank 32 saves nothing in a model of width 32; lower it"):
        Trainer(LanguageModelling(recipe(lora_rank=32), corpus), tmp_path / "run", initial=str(base))
    with pytest.raises(ValidationError, match="redraw_every 5 changes a model that adapters or a head alone leave"):
        recipe(redraw_every=5)
    assert not (tmp_path / "run").exists()


def test_adapters_that_do_not_fit(trained, tmp_path) -> None:
    shutil.copytree(trained.run / "best", tmp_path / "best")
    config = (tmp_path / "best/config.json").read_text()
    (tmp_path / "best/config.json").write_text(config.replace('"rank": 4', '"rank": 0'))
    (tmp_path / "best/checksums.json").unlink()
    with pytest.raises(ProteinLMError, match="does not fit the model"):
        load_model(tmp_path / "best")
