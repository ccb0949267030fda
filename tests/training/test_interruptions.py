"""Runs that are killed, stopped by signals or by a full disk, and go on: nothing is lost and nothing changes.

The runs live in processes forked off a server that has imported everything, so that one starts in a moment.
"""

import errno
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from protein_lm.attention.kinds.table import attention_options
from protein_lm.checkpoint.directory import load_model
from protein_lm.config import Recipe
from protein_lm.corpus.store import TokenStore
from protein_lm.errors import ModelError, OutputError
from protein_lm.training.language_modelling import LanguageModelling
from protein_lm.training.loop import Trainer
from protein_lm.training.run_log import read_metrics
from tests.conftest import small_recipe

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["protein_lm.training.loop", "tests.conftest"])
FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "shutil.rmtree"}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums come in another order with another number of threads: runs in this process and in others are to be compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(recipe: dict[str, Any], store: Path, run: Path, resume: bool = False, kill_at: int = 0) -> None:
    """Train in this process; with `kill_at`, die right before the operation on files of that number."""
    torch.set_num_threads(1)
    operations = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and str(run.parent) in str(arguments[0]) and next(operations) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    if kill_at:
        sys.addaudithook(hook)
    Trainer(LanguageModelling(Recipe.model_validate(recipe), TokenStore.open(store)), run, resume=resume).fit()


def start(recipe: Recipe, store: TokenStore, run: Path, **how: Any) -> BaseProcess:
    """A process that trains, and goes on where there is something to go on from."""
    arguments = (recipe.model_dump(mode="json"), store.path, run, run.exists())
    process = SERVER.Process(target=train, args=arguments, kwargs=how)
    process.start()
    return process


def finish(recipe: Recipe, store: TokenStore, run: Path) -> None:
    process = start(recipe, store, run)
    process.join(120)
    assert process.exitcode == 0


def exact_rows(run: Path) -> list[dict[str, Any]]:
    of_the_machine = ("tokens_per_second", "seconds", "peak_memory_bytes")
    return [{k: v for k, v in row.items() if k not in of_the_machine} for row in read_metrics(run)]


def assert_same(run: Path, expected: Path) -> None:
    """Weights, metrics and places in the data are equal, bit by bit; nothing else lies around."""
    assert exact_rows(run) == exact_rows(expected)
    for name in ("last", "best"):
        found, wanted = (load_model(folder / name).state_dict() for folder in (run, expected))
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    found, wanted = (json.loads((folder / "last/training_state.json").read_text()) for folder in (run, expected))
    for state in (found, wanted):
        del state["progress"]["seconds"]
    assert found == wanted
    assert {path.name for path in run.iterdir()} == {path.name for path in expected.iterdir()}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    recipe = small_recipe(
        num_steps=12, checkpoint_every=4, validate_every=6, num_validation_sequences=8, redraw_every=5, optimizer="muon"
    )
    attention = attention_options({"kind": "performer-relu", "num_features": 8})
    sizes = {"width": 16, "feedforward_width": 16, "attention": attention, "num_layers": 1, "dropout": 0.1}
    data = recipe.data.model_copy(update={"tokens_per_batch": 256})
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=sizes), "data": data})


@pytest.fixture(scope="module")
def whole(recipe: Recipe, corpus: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(recipe, corpus, run)
    return run


@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments(recipe, corpus, whole, tmp_path, num_kills) -> None:
    """Kill -9 again and again: the run ends as if nothing had happened."""
    begin = time.monotonic()
    finish(recipe, corpus, tmp_path / "timed")
    seconds = time.monotonic() - begin
    generator, run, killed = random.Random(0), tmp_path / "run", 0
    for number in itertools.count():
        if killed == num_kills:
            break
        if run.exists() and read_metrics_step(run) == recipe.training.num_steps:
            run = tmp_path / f"run{number}"  # it got to its end between kills: begin another one
        process = start(recipe, corpus, run)
        process.join(generator.uniform(0.1, 1.0) * seconds)
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    for run in tmp_path.glob("run*"):
        finish(recipe, corpus, run)
        assert_same(run, whole)


def read_metrics_step(run: Path) -> int:
    return json.loads((run / "last/config.json").read_text())["training"]["step"] if (run / "last").exists() else 0


@pytest.mark.parametrize("first", [pytest.param(1, id="all", marks=pytest.mark.slow), pytest.param(61, id="61")])
def test_kills_before_operations_on_files(recipe, corpus, whole, tmp_path, first) -> None:
    """Killed right before any operation on files, inside saves above all, a run goes on and ends the same."""
    for kill_at in itertools.count(first):
        run = tmp_path / str(kill_at) / "run"
        process = start(recipe, corpus, run, kill_at=kill_at)
        process.join()
        finish(recipe, corpus, run)
        assert_same(run, whole)
        if process.exitcode == 0 or first > 1:
            break


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_after_its_step(recipe, corpus, tmp_path, number, capsys) -> None:
    long = recipe.model_copy(update={"training": recipe.training.model_copy(update={"checkpoint_every": 1000})})
    Trainer(LanguageModelling(long, corpus), tmp_path / "whole").fit()
    trainer = Trainer(LanguageModelling(long, corpus), tmp_path / "run")
    step, before = trainer._backward, signal.getsignal(number)

    def signal_at_6(*arguments: Any) -> Any:
        if trainer.progress.step == 6:
            os.kill(os.getpid(), number)
        return step(*arguments)

    trainer._backward = signal_at_6  # type: ignore[method-assign]
    assert trainer.fit().step == 7
    assert signal.getsignal(number) == before
    resumed = Trainer(LanguageModelling(long, corpus), tmp_path / "run", resume=True)
    assert resumed.progress.step == 7
    resumed.fit()
    assert exact_rows(tmp_path / "run") == exact_rows(tmp_path / "whole")
    found, wanted = (load_model(tmp_path / name / "last").state_dict() for name in ("run", "whole"))
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())


def test_a_second_signal_ends_at_once(recipe, corpus, tmp_path) -> None:
    endless = recipe.model_copy(update={"training": recipe.training.model_copy(update={"num_steps": 10**6})})
    process = start(endless, corpus, tmp_path / "run", kill_at=0)
    while not (tmp_path / "run/best").exists():
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)  # both arrive before the step is over
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode in (-signal.SIGINT, -signal.SIGTERM)


def test_a_full_disk_keeps_the_run_alive(recipe, corpus, whole, tmp_path, monkeypatch, capsys) -> None:
    from protein_lm.training import checkpoints as module

    run, full = tmp_path / "run", [True]
    write = module.write_training_state

    def write_unless_full(folder: Path, *arguments: Any) -> None:
        if full[0] and run.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, *arguments)

    monkeypatch.setattr(module, "write_training_state", write_unless_full)
    trainer = Trainer(LanguageModelling(recipe, corpus), run)
    validate = trainer._validate

    def free_space_at_6(log: Any) -> float:
        full[0] = trainer.progress.step < 6
        return validate(log)

    trainer._validate = free_space_at_6  # type: ignore[method-assign]
    trainer.fit()
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if "disk is full" in line]
    assert len(said) == 1 and said[0] == (
        f"step 4: cannot write {run}/step-4: the disk is full; free some space or write elsewhere; the run goes on, and last "
        "stays as it was"
    )
    assert exact_rows(run) == exact_rows(whole)

    full[0] = True
    finished = Trainer(LanguageModelling(recipe, corpus), tmp_path / "other")
    run = tmp_path / "other"
    finished._validate = validate  # type: ignore[method-assign]
    with pytest.raises(OutputError, match="the disk is full"):
        finished.fit()  # the last checkpoint must be written
    assert json.loads((run / "last/training_state.json").read_text())["progress"]["step"] == 0
    full[0] = False
    Trainer(LanguageModelling(recipe, corpus), run, resume=True).fit()
    assert exact_rows(run) == exact_rows(whole)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", "flipped"),
        ("training_state.safetensors", "cut"),
        ("training_state.json", "cut"),
        ("config.json", "gone"),
        ("checksums.json", "gone"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(recipe, corpus, whole, tmp_path, capsys, name, damage) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    path = run / "last" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[:-7])
    Trainer(LanguageModelling(recipe, corpus), run, resume=True).fit()
    said = capsys.readouterr().err.splitlines()[0]
    assert str(run / "last") in said and said.endswith("; resuming from the checkpoint of step 8")
    assert exact_rows(run) == exact_rows(whole)
    assert (run / "damaged-1").is_dir() and load_model(run / "last")
    for checkpoint in (run / "last", run / "step-8"):
        (checkpoint / "checksums.json").write_text("[")
    with pytest.raises(
        ModelError, match=r"no checkpoint is whole: .*last/checksums\.json: damaged .*; start a new run"
    ):
        Trainer(LanguageModelling(recipe, corpus), run, resume=True)


def test_the_command_line_says_how_to_resume(recipe, corpus, tmp_path, capsys, monkeypatch) -> None:
    import yaml

    from protein_lm.cli import main

    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    backward = Trainer._backward

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        if self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(self, *arguments)

    monkeypatch.setattr(Trainer, "_backward", interrupted)
    arguments = ["train", str(path), "--data", str(corpus.path), "-o", str(run)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{run}: stopped at step 3 of 12; resume it with the same command and --resume\n"
    change = ["--set", "training.learning_rate=0.001", "--set", "training.checkpoint_every=5"]
    assert main([*arguments, "--resume", *change]) == 2
    assert capsys.readouterr().err == (
        f"protein-lm: error: {run}: resumed with another recipe: training.learning_rate: 0.01 -> 0.001; set it back, or add "
        "--allow-change training.learning_rate\n"
    )
    assert main([*arguments, "--resume", *change, "--allow-change", "training.learning_rate"]) == 0
    said = capsys.readouterr().err
    assert "changed from step 3 on: training.learning_rate: 0.01 -> 0.001, training.checkpoint_every: 4 -> 5" in said
    state = json.loads((run / "last/training_state.json").read_text())
    assert state["changes"][0]["step"] == 3 and "learning_rate: 0.001" in (run / "recipe.yaml").read_text()
