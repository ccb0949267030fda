"""Sets up a run: claims its folder, builds the model and its optimizers, opens the log, describes it all."""

import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator

from protein_lm.attention.backends.native_linear import is_among_kernels
from protein_lm.attention.feature_maps.performer import FeatureMap
from protein_lm.checkpoint.base_model import Base
from protein_lm.checkpoint.config_file import read_config, read_facts
from protein_lm.checkpoint.directory import LAST, find_model
from protein_lm.checkpoint.sizes import check_room
from protein_lm.checkpoint.weights import load_adapters, load_weights
from protein_lm.config import FineTuningRecipe, Recipe
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError, OutputError
from protein_lm.files.output import claimed
from protein_lm.model.adapters import add_adapters
from protein_lm.model.language_model import ProteinLM
from protein_lm.model.precision import Choice
from protein_lm.model.predictor import Predictor
from protein_lm.native import library
from protein_lm.training.checkpoints import Checkpoints, Saver
from protein_lm.training.optimizer import build_optimizers, restore_optimizers
from protein_lm.training.processes import group_of_rows, never_free, sum_over_processes
from protein_lm.training.resume import StartingPoint, differences
from protein_lm.training.run_log import RunLog
from protein_lm.training.task import Task, TrainedModel
from protein_lm.training.trackers import start_trackers


class RunClaim:
    """Keeps other commands off a run while one of its processes is at work there."""

    def __init__(self, run: Path, accelerator: Accelerator) -> None:
        self._run, self._accelerator = run, accelerator
        self._state: tuple[bool, dict[str, float]] | None = None
        """Whether the run exists, and its checkpoints, at the end of the last claim."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the claim. The main process takes it for all.

        Raises:
            OutputError: another command is at work on the run, or was since this claim was held before.
        """
        fault, refused = None, torch.zeros(1)
        with ExitStack() as stack:
            if self._accelerator.is_main_process:
                try:
                    stack.enter_context(claimed(self._run))
                    if self._state not in (None, self._current()):
                        raise OutputError(f"{self._run}: another command was at work there meanwhile; start again")
                except OutputError as error:
                    fault, refused = error, refused + 1
            if sum_over_processes(self._accelerator, refused):
                raise fault or OutputError(f"{self._run}: the main process could not claim it")
            yield
            if self._accelerator.is_main_process:
                self._state = self._current()

    def _current(self) -> tuple[bool, dict[str, float]]:
        return self._run.exists(), Checkpoints(self._run).steps()


def check_options(run: Path, *, resume: bool, initial: str | None, allowed_changes: Collection[str]) -> None:
    """Raise a ConfigError if options contradict each other."""
    if resume and initial is not None:
        raise ConfigError(f"{run}: a run that is resumed has weights of its own; leave out either --resume or --init")
    if allowed_changes and not resume:
        raise ConfigError(f"{run}: --allow-change is for a run that is resumed; add --resume, or leave it out")


def check_run_directory(run: Path, *, resume: bool) -> None:
    """Raise an OutputError if a new run would overwrite one, or a resumed run does not exist."""
    if resume and not Checkpoints(run).newest_first():
        raise OutputError(f"{run}: nothing to resume, there is no checkpoint in it; start without --resume")
    if not resume and run.exists():
        raise OutputError(f"{run} exists already; add --resume to resume it, or name another run")


def build(
    task: Task, start: StartingPoint, accelerator: Accelerator, precision: Choice, initial: str | None
) -> TrainedModel:
    """Build the model, its head and its optimizers; load their state, or the weights of the initial model.

    Raises:
        ConfigError: the initial model is missing or another one, or the processes cannot share batches.
        ModelError: the initial model or the checkpoint is damaged, or the model that it was trained on has changed.
    """
    recipe = start.recipe
    plain, base = _build_model(task, recipe, start.checkpoint, initial)
    head = task.build_head(start.checkpoint)
    if head is not None:
        for parameter in plain.head_parameters():  # the language model's own head is not used here
            parameter.requires_grad_(False)
    group = group_of_rows(plain, recipe.training.sequence_parallel, accelerator.num_processes)
    if plain.kmer_embedding is not None and accelerator.num_processes == 1 and accelerator.device.type == "cpu":
        plain.kmer_embedding.keep_gradients()
    trained = plain if head is None else Predictor(plain, head)
    prepared, *optimizers = accelerator.prepare(trained, *build_optimizers(trained, recipe.training))
    if accelerator.num_processes > 1:
        never_free(prepared)
        never_free(group)
    if start.checkpoint is not None:
        restore_optimizers(optimizers, start.moments)
    return TrainedModel(plain, head, base, prepared, optimizers, accelerator, precision, group)


def _build_model(
    task: Task, recipe: Recipe | FineTuningRecipe, checkpoint: Path | None, initial: str | None
) -> tuple[ProteinLM, Base | None]:
    """The model with its weights, and the model directory that its frozen weights come from."""
    if task.needs_model and checkpoint is None and initial is None:
        raise ConfigError(f"{task.needs_model}; name it with --init")
    check_room(recipe.model)
    model, base = ProteinLM(recipe.model), None
    model.initialize(torch.Generator().manual_seed(recipe.training.seed))
    model.gradient_checkpointing = recipe.training.gradient_checkpointing
    if checkpoint is not None:
        facts = read_facts(checkpoint).get("base")
        base = None if facts is None else Base.read(checkpoint, facts)
        load_weights(model, checkpoint if base is None else base.path)
    elif initial is not None:
        path = find_model(initial)
        _check_same_model(recipe, path)
        base = Base.of(path, recipe.training) if recipe.keeps_model else None
        load_weights(model, path)
    if recipe.keeps_model:
        model.requires_grad_(False)
    if recipe.training.lora_rank:
        add_adapters(model, recipe.training)
        if checkpoint is not None:
            load_adapters(model, checkpoint)
    return model, base


def _check_same_model(recipe: Recipe | FineTuningRecipe, initial: Path) -> None:
    old = read_config(initial).model_dump(mode="json")
    new = recipe.model.model_dump(mode="json") | {"dropout": old["dropout"]}  # dropout has no weights
    if old != new:
        changed = ", ".join(differences({"model": old}, {"model": new}).values())
        raise ConfigError(f"{initial}: is another model than the recipe's: {changed}; change the recipe")


def open_log(run: Path, start: StartingPoint, saver: Saver, accelerator: Accelerator) -> RunLog:
    """Make or tidy the run's folder, and start the trackers."""
    recipe, step, trackers = start.recipe, start.progress.step, []
    first = saver.tensors(LAST) if not step else {}
    if accelerator.is_main_process:
        is_new = not run.exists()
        saver.prepare_folder(first, start.damaged)
        try:
            trackers = start_trackers(recipe, run, step=step)
        except ConfigError:
            if is_new:
                shutil.rmtree(run)  # the same command may be given again
            raise
    accelerator.wait_for_everyone()
    is_main, num_steps = accelerator.is_main_process, recipe.training.num_steps
    return RunLog(run, step=step, num_steps=num_steps, active=is_main, trackers=trackers)


def description(task: Task, start: StartingPoint, model: TrainedModel) -> list[str]:
    """Lines for the log about the run that begins."""
    config, accelerator = start.recipe.model, model.accelerator
    num_weights = f"{model.plain.num_parameters:,} weights"
    if model.base is not None:
        num_trained = sum(weight.numel() for weight in model.prepared.parameters() if weight.requires_grad)
        num_weights += f" ({num_trained:,} of them trained)"
    elif of_kernels := model.plain.num_kernel_parameters:
        num_weights += f" ({of_kernels:,} of them in the attention kernels)"
    lines = [
        *start.notes,
        model.precision.reason,
        f"{config.objective.value} {config.attention_name}, {num_weights}, "
        f"{task.num_training_sequences:,} training sequences, {accelerator.num_processes} process(es) on "
        f"{accelerator.device.type}, from step {start.progress.step} to {start.recipe.training.num_steps}",
        _advice(start.recipe, model),
    ]
    num_valid = task.data.indices(Split.VALID).size
    if task.num_validation_sequences < num_valid:
        lines.append(
            f"validation uses {task.num_validation_sequences:,} of {num_valid:,} sequences, "
            f"evenly spread over those of {task.max_residues:,} residues or less"
        )
    return [line for line in (*lines, *task.description()) if line]


def _advice(recipe: Recipe | FineTuningRecipe, model: TrainedModel) -> str | None:
    """Advice to build kernels that would make this training faster, where they are missing."""
    if model.accelerator.device.type != "cpu" or recipe.training.sequence_parallel > 1:
        return None
    width = recipe.model.width // recipe.model.num_heads
    maps = (module for module in model.plain.modules() if isinstance(module, FeatureMap))
    return library.advice() if any(is_among_kernels(each, width) for each in maps) else None
