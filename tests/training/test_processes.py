"""Several processes train as one does: gloo on CPUs."""

import gc
import multiprocessing
import os
import socket
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from protein_lm.attention.kinds.table import attention_options
from protein_lm.checkpoint.directory import load_model, save_model
from protein_lm.config import FineTuningRecipe, Recipe
from protein_lm.corpus.store import TokenStore
from protein_lm.errors import ConfigError, NumericalError
from protein_lm.training.fine_tuning import FineTuning
from protein_lm.training.language_modelling import LanguageModelling
from protein_lm.training.loop import Trainer
from protein_lm.training.processes import last_work, never_free
from protein_lm.training.run_log import read_metrics
from tests.conftest import fresh_model, small_recipe
from tests.training.test_fine_tuning import recipe as fine_tuning_recipe
from tests.training.test_fine_tuning import write_table

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["protein_lm.training.loop", "tests.conftest"])


def train(environment: dict[str, str], recipe: dict[str, Any], store: Path, run: Path, allowed: list[str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    options = {"resume": run.exists(), "allowed_changes": allowed, "initial": environment.get("INITIAL")}
    if "head" in recipe:
        trainer = Trainer(FineTuning(FineTuningRecipe.model_validate(recipe), store), run, **options)
    else:
        trainer = Trainer(LanguageModelling(Recipe.model_validate(recipe), TokenStore.open(store)), run, **options)
    if "NAN_RANK" in environment:  # one process alone sees numbers that are not finite, in step 3
        backward, poisoned = trainer._backward, int(environment["NAN_RANK"])

        def with_nan(*arguments: Any) -> Any:
            loss, correct = backward(*arguments)
            is_bad = trainer.progress.step == 3 and trainer.accelerator.process_index == poisoned
            return loss * float("nan") if is_bad else loss, correct

        trainer._backward = with_nan  # type: ignore[method-assign]
    if "FAILS" in environment:
        with pytest.raises(NumericalError) as fault:
            trainer.fit()
        (run.parent / f"fault-{trainer.accelerator.process_index}.txt").write_text(str(fault.value))
        return
    trainer.fit()
    if "SHARDS" in environment:
        held = [tensor.to_local().numel() for tensor in trainer.model.prepared.parameters()]
        held += [tensor.to_local().numel() for tensor in moments(trainer)]
        (run / f"held-{trainer.accelerator.process_index}.txt").write_text(str(sum(held)))


def moments(trainer: Trainer) -> list[Any]:
    """Momenta, as large as the weights."""
    states = [state for optimizer in trainer.model.optimizers for state in optimizer.optimizer.state.values()]
    return [tensor for state in states for tensor in state.values() if tensor.ndim]


def launch(
    num_processes: int, recipe: Any, store: TokenStore | Path, run: Path, allowed: list[str], **extra: str
) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": "-1", **extra}
    processes = []
    for rank in range(num_processes):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes}
        environment = common | {name: str(value) for name, value in places.items()} if num_processes > 1 else extra
        path = store if isinstance(store, Path) else store.path
        arguments = (environment, recipe.model_dump(mode="json"), path, run, allowed)
        processes.append(SERVER.Process(target=train, args=arguments))
        processes[-1].start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * num_processes


def rows(run: Path) -> list[dict[str, Any]]:
    kept = ("step", "split", "num_tokens", "loss_nats", "num_skipped_steps")
    return [{name: row[name] for name in kept if name in row} for row in read_metrics(run)]


def settings(num_steps: int, **changes: Any) -> Recipe:
    changes = {"checkpoint_every": 25, "validate_every": 25, "learning_rate": 0.003, **changes}
    recipe = small_recipe(num_steps=num_steps, **changes)
    attention = attention_options({"kind": "performer-relu", "num_features": 8})
    sizes = {"width": 16, "feedforward_width": 16, "attention": attention, "num_layers": 1}
    model = recipe.model.model_copy(update=sizes)
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


SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


def assert_same(found: Path, expected: Path, relative: float = 1e-5) -> None:
    assert rows(found) == [
        {**row, "loss_nats": pytest.approx(row["loss_nats"], rel=relative)} for row in rows(expected)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_processes_with_a_shard_each_are_one_with_all(corpus, tmp_path, optimizer) -> None:
    """50 steps; and 1 process to step 20, 2 with half of everything to step 40, 1 again to the end."""
    constant = {"decay_fraction": 0.0, "optimizer": optimizer, "gradient_checkpointing": True, "validate_every": 10}
    launch(1, settings(50, **constant, accumulation=4), corpus, tmp_path / "one", [])
    launch(2, settings(50, **constant, accumulation=2), corpus, tmp_path / "two", [], **SHARDED, SHARDS="yes")
    keys = ["training.num_steps", "training.accumulation"]
    launch(1, settings(20, **constant, accumulation=4), corpus, tmp_path / "both", [])
    launch(2, settings(40, **constant, accumulation=2), corpus, tmp_path / "both", keys, **SHARDED)
    launch(1, settings(50, **constant, accumulation=4), corpus, tmp_path / "both", keys)
    for run in ("two", "both"):
        assert_same(tmp_path / run, tmp_path / "one")
    held = [int((tmp_path / "two" / f"held-{rank}.txt").read_text()) for rank in (0, 1)]
    model = load_model(tmp_path / "two")
    all_of_it = {"adamw": 3, "muon": 2}[optimizer] * model.num_parameters
    assert max(held) < 0.6 * all_of_it


def test_shards_of_a_frozen_model_and_its_adapters(corpus, tmp_path) -> None:
    save_model(fresh_model(**settings(10).model.model_dump()), tmp_path / "base")
    for number, sharding in ((1, {}), (2, SHARDED)):
        recipe = settings(10, lora_rank=2, accumulation=3 - number)
        launch(number, recipe, corpus, tmp_path / f"by-{number}", [], INITIAL=str(tmp_path / "base"), **sharding)
    assert_same(tmp_path / "by-2", tmp_path / "by-1")
    adapters = [load_file(tmp_path / run / "last" / "adapters.safetensors") for run in ("by-1", "by-2")]
    torch.testing.assert_close(adapters[1], adapters[0], rtol=1e-4, atol=1e-6)


def test_shards_of_a_model_with_a_head(tmp_path) -> None:
    save_model(fresh_model(), tmp_path / "base")
    table = write_table(tmp_path / "labels.csv", "regression")
    for number, sharding in ((1, {}), (2, SHARDED)):
        recipe = fine_tuning_recipe(num_steps=10, accumulation=3 - number)
        launch(number, recipe, table, tmp_path / f"by-{number}", [], INITIAL=str(tmp_path / "base"), **sharding)
    heads = [load_file(tmp_path / run / "last" / "head.safetensors") for run in ("by-1", "by-2")]
    torch.testing.assert_close(heads[1], heads[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sharding", [{}, SHARDED], ids=["whole", "shards"])
def test_all_processes_skip_a_step_together(corpus, tmp_path, sharding) -> None:
    launch(2, settings(20), corpus, tmp_path / "run", [], NAN_RANK="1", **sharding)
    assert rows(tmp_path / "run")[0]["num_skipped_steps"] == 1


def test_the_place_of_a_fault_is_found_in_shards(corpus, tmp_path) -> None:
    """A loss that is not finite, in one process, whose weights and gradients are: the search runs through all of them."""
    launch(2, settings(20, max_skipped_steps=1), corpus, tmp_path / "run", [], NAN_RANK="1", FAILS="yes", **SHARDED)
    assert "became NaN" in (tmp_path / "fault-0.txt").read_text()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"FSDP_VERSION": "1"}, "fsdp_version 2 alone"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "not offered with fsdp_offload_params"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "use training.gradient_checkpointing"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "fsdp_cpu_ram_efficient_loading"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "SIZE_BASED_WRAP"),
        ({"FSDP_TRANSFORMER_CLS_TO_WRAP": "Linear"}, "leave it out"),
    ],
)
def test_shards_in_untested_ways_are_refused(corpus, tmp_path, monkeypatch, asked, said) -> None:
    for name, value in {"WORLD_SIZE": "2", **SHARDED, **asked}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        Trainer(LanguageModelling(small_recipe(), corpus), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shards_and_what_needs_whole_weights_are_refused(corpus, tmp_path, monkeypatch) -> None:
    for name, value in {"WORLD_SIZE": "2", **SHARDED}.items():
        monkeypatch.setenv(name, value)
    recipe = small_recipe(attention="oglu", orthogonality=0.1)
    with pytest.raises(ConfigError, match=r"not offered with training\.orthogonality"):
        Trainer(LanguageModelling(recipe, corpus), tmp_path / "run")


def test_processes_without_their_hardware_are_refused(corpus, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(
        ConfigError, match=r"2 process\(es\) cannot train as Accelerate is configured: .*accelerate/cpu.yaml"
    ):
        Trainer(LanguageModelling(small_recipe(), corpus), tmp_path / "run")


def test_what_is_never_freed_outlives_its_last_name() -> None:
    class Connected:
        pass

    connected = Connected()
    alive = weakref.ref(connected)
    never_free(connected)
    del connected
    gc.collect()
    assert alive() is not None


def work_last(folder: Path, fails: bool) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with last_work():
        (folder / f"connected {torch.distributed.is_initialized()}").touch()
        assert not fails
    (folder / "afterwards").touch()


@pytest.mark.parametrize("fails", [False, True])
def test_a_process_ends_behind_its_last_work(tmp_path, fails) -> None:
    process = SERVER.Process(target=work_last, args=(tmp_path, fails))
    process.start()
    process.join(300)
    assert process.exitcode == int(fails)
    assert [path.name for path in tmp_path.iterdir()] == ["connected False"]
