"""Several processes train as one does: gloo on CPUs."""

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from protein_lm.config import Recipe
from protein_lm.data.store import TokenStore
from protein_lm.errors import ConfigError
from protein_lm.training.run_log import read_metrics
from protein_lm.training.trainer import Trainer
from tests.conftest import small_recipe

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["protein_lm.training.trainer", "tests.conftest"])


def train(environment: dict[str, str], recipe: dict[str, Any], store: Path, run: Path, allowed: list[str]) -> None:
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    trainer = Trainer(
        Recipe.model_validate(recipe), TokenStore.open(store), run, resume=run.exists(), allowed_changes=allowed
    )
    if "NAN_RANK" in environment:  # one process alone sees numbers that are not finite, in step 3
        backward, poisoned = trainer._backward, int(environment["NAN_RANK"])

        def with_nan(*arguments: Any) -> Any:
            loss, correct = backward(*arguments)
            is_bad = trainer.progress.step == 3 and trainer.accelerator.process_index == poisoned
            return loss * float("nan") if is_bad else loss, correct

        trainer._backward = with_nan  # type: ignore[method-assign]
    trainer.fit()


def launch(num_processes: int, recipe: Recipe, store: TokenStore, run: Path, allowed: list[str], **extra: str) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": "-1", **extra}
    processes = []
    for rank in range(num_processes):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
        environment = common | {name: str(value) for name, value in places.items()} if num_processes > 1 else {}
        arguments = (environment, recipe.model_dump(mode="json"), store.path, run, allowed)
        processes.append(SERVER.Process(target=train, args=arguments))
        processes[-1].start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * num_processes


def rows(run: Path) -> list[dict[str, Any]]:
    kept = ("step", "split", "num_tokens", "loss_nats", "num_skipped_steps")
    return [{name: row[name] for name in kept if name in row} for row in read_metrics(run)]


def settings(num_steps: int, **changes: Any) -> Recipe:
    recipe = small_recipe(num_steps=num_steps, checkpoint_every=25, validate_every=25, learning_rate=0.003, **changes)
    model = recipe.model.model_copy(
        update={"width": 16, "feedforward_width": 16, "num_random_features": 8, "num_layers": 1}
    )
    return recipe.model_copy(update={"model": model, "data": recipe.data.model_copy(update={"tokens_per_batch": 256})})


@pytest.mark.slow
def test_two_processes_are_one_with_batches_of_twice_the_size(corpus, tmp_path) -> None:
    """50 steps: 1 process that accumulates, 2 processes, and 2 processes that take over from 1 after 40 steps."""
    launch(1, settings(50, accumulation=2), corpus, tmp_path / "one", [])
    launch(2, settings(50), corpus, tmp_path / "two", [])
    keys = ["training.num_steps", "training.accumulation"]
    constant = {"decay_fraction": 0.0}  # a schedule that does not know the number of steps
    whole = settings(50, **constant, accumulation=2)
    launch(1, whole, corpus, tmp_path / "whole", [])
    first = whole.model_copy(update={"training": whole.training.model_copy(update={"num_steps": 40})})
    launch(1, first, corpus, tmp_path / "both", [])
    launch(2, settings(50, **constant), corpus, tmp_path / "both", keys)
    for found, expected in (("two", "one"), ("both", "whole")):
        found_rows = [row for row in rows(tmp_path / found) if (row["step"], row["split"]) != (40, "valid")]
        assert found_rows == [
            {**row, "loss_nats": pytest.approx(row["loss_nats"], rel=1e-5)} for row in rows(tmp_path / expected)
        ]


def test_all_processes_skip_a_step_together(corpus, tmp_path) -> None:
    launch(2, settings(20), corpus, tmp_path / "run", [], NAN_RANK="1")
    assert rows(tmp_path / "run")[0]["num_skipped_steps"] == 1


def test_processes_without_their_hardware_are_refused(corpus, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(
        ConfigError, match=r"2 process\(es\) cannot train as Accelerate is configured: .*accelerate/cpu.yaml"
    ):
        Trainer(small_recipe(), corpus, tmp_path / "run")
