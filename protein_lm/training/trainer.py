"""The training loop, the only one: one CPU or many processes, through Accelerate.

Everything random is a pure function of (seed, step) or (seed, epoch, sequence), so a checkpoint needs no random states:
a run that goes on from one is the run that was never interrupted. What processes decide (to skip a step, to stop) follows
from sums over all of them, so that they always decide the same.
"""

import math
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin, gather_object
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from protein_lm import __version__
from protein_lm.attention.backends.native_linear import is_among_kernels
from protein_lm.attention.feature_maps.performer import FeatureMap
from protein_lm.attention.parallel import Group, own_span
from protein_lm.batches.batches import IGNORED, Batch, TrainingBatches
from protein_lm.checkpoint.base_model import Base
from protein_lm.checkpoint.checksums import check_files, write_checksums
from protein_lm.checkpoint.config_file import read_config, read_facts
from protein_lm.checkpoint.directory import BEST, LAST, find_model, write_model
from protein_lm.checkpoint.training_state import STATE_TENSORS, read_training_state, write_training_state
from protein_lm.checkpoint.weights import load_adapters, load_weights, model_tensors
from protein_lm.choices import Precision, TrainingLongPolicy
from protein_lm.config import FineTuningRecipe, Recipe, parse
from protein_lm.corpus.corpus import Corpus
from protein_lm.corpus.split import Split
from protein_lm.errors import ConfigError, ModelError, NumericalError, OutputError
from protein_lm.files.output import claimed, new_directory, new_file
from protein_lm.inference.likelihood import ResidueLogProbabilities, evaluation_log_probabilities
from protein_lm.inference.unigram import unigram_log_probabilities, unigram_results
from protein_lm.model.adapters import add_adapters
from protein_lm.model.diagnosis import ALL_FINITE, first_non_finite, last_non_finite_gradient
from protein_lm.model.language_model import ProteinLM
from protein_lm.model.predictor import PredictionHead, Predictor
from protein_lm.model.sizes import check_room
from protein_lm.native import library
from protein_lm.native.memory import reuse_freed_memory
from protein_lm.training.changes import check_changes, differences
from protein_lm.training.checkpoints import Checkpoints
from protein_lm.training.optimizer import build_optimizers, learning_rate_factor, optimizer_tensors, restore_optimizers
from protein_lm.training.processes import common_precision, group_of_rows, start_accelerator
from protein_lm.training.progress import Progress, Speed, peak_memory_bytes, perplexity
from protein_lm.training.run_log import RECIPE, RunLog
from protein_lm.training.sharded import is_sharded, whole, whole_on_cpu, whole_weights
from protein_lm.training.stop import StopRequest
from protein_lm.training.trackers import check_trackers, start_trackers

Tensors = Mapping[str, Mapping[str, Tensor]]
"""What the files of a checkpoint hold, by file and name."""
_DONE_TO_LONG = {
    TrainingLongPolicy.CROP: "cropped at a random place",
    TrainingLongPolicy.WINDOW: "cut into windows",
    TrainingLongPolicy.DROP: "left out",
}
LOG_EVERY = 20
"""Steps between rows of training metrics; each row is the mean over these steps."""
UNIGRAM_SEQUENCES = 20_000
"""Training sequences that the unigram baseline of the log counts residues in: enough for its perplexity to three digits."""


class Trainer:
    """Trains the model of a recipe on a prepared corpus into a run directory."""

    _loss_name = "loss_nats"

    def __init__(
        self,
        recipe: Recipe | FineTuningRecipe,
        store: Corpus,
        run: Path,
        *,
        resume: bool = False,
        initial: str | None = None,
        allowed_changes: Collection[str] = (),
    ) -> None:
        """Set up model, optimizers and data.

        Args:
            recipe: model, data and training.
            store: the prepared corpus.
            run: directory to make, or to go on with.
            resume: whether to start from the run's last checkpoint.
            initial: model or run directory whose weights a new run starts from; its model is that of the recipe.
            allowed_changes: keys as `section.key` in which the recipe of a resumed run may differ.

        Raises:
            OutputError: the run exists and `resume` is False, or it does not exist and `resume` is True; or another command
                is at work on it.
            ConfigError: the recipe does not fit the corpus, the run, the initial model or the number of processes; it asks
                for adapters without an initial model; or a tracker is not installed.
            ModelError: no checkpoint to go on from is whole, or the initial model is damaged, or what it stands on has
                changed.
        """
        if resume and initial is not None:
            raise ConfigError(
                f"{run}: a run that is resumed has weights of its own; leave out either --resume or --init"
            )
        if allowed_changes and not resume:
            raise ConfigError(f"{run}: --allow-change is for a run that is resumed; add --resume, or leave it out")
        check_trackers(recipe.training.trackers)
        self.recipe, self.store, self.run = recipe, store, run
        self.batches = self._batches()
        self.validation = self._validation_sequences()
        self.progress = Progress()
        self.checkpoints = Checkpoints(run)
        self._last_saved = 0
        self._found: tuple[bool, dict[str, float]] | None = None
        """Whether the run was there, and its checkpoints, when it was looked at."""
        self._changes: list[dict[str, Any]] = []
        self._notes: list[str] = []
        self._damaged: list[Path] = []
        self.accelerator = start_accelerator(recipe.training)
        with self._claimed():
            self._check_run_directory(resume)
            self.accelerator.wait_for_everyone()  # before the main process makes the folder that the others look for
            checkpoint, moments = self._restore(allowed_changes) if resume else (None, {})
        self._precision = common_precision(self.recipe.training.precision, self.accelerator)
        self._settle(precision=self._precision.precision)
        self.stop = StopRequest(grace_seconds=1.0 if self.accelerator.num_processes > 1 else 0.0)
        model, self.base = self._build_model(checkpoint, initial)
        self.head = self._build_head(checkpoint)
        self.group = self._group_of_rows(model)
        trained = model if self.head is None else Predictor(model, self.head)
        self.model, *self.optimizers = self.accelerator.prepare(
            trained, *build_optimizers(trained, self.recipe.training)
        )
        if resume:
            restore_optimizers(self.optimizers, moments)
        self.plain_model = model
        self.is_sharded = is_sharded(self.model)
        """Whether each process holds a shard of the weights alone."""

    def _batches(self) -> Any:
        recipe = self.recipe
        assert isinstance(recipe, Recipe)
        return TrainingBatches(
            self.store,
            recipe.data,
            objective=recipe.model.objective,
            max_length=recipe.model.max_length,
            seed=recipe.training.seed,
        )

    def _settle(self, precision: Precision) -> None:
        """Put into the recipe what was left to the machine."""
        training = self.recipe.training.model_copy(update={"precision": precision})
        self.recipe = self.recipe.model_copy(update={"training": training})

    def _build_model(self, checkpoint: Path | None, initial: str | None) -> tuple[ProteinLM, Base | None]:
        """The model to train, its weights loaded, and the model directory that it stands on where that is frozen."""
        recipe = self.recipe
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
            self._check_same_model(path)
            base = Base.of(path, recipe.training) if recipe.keeps_model else None
            load_weights(model, path)
        elif recipe.keeps_model:
            raise ConfigError("training.lora_rank trains adapters of an existing model; name it with --init")
        if recipe.keeps_model:
            model.requires_grad_(False)
        if recipe.training.lora_rank:
            add_adapters(model, recipe.training)
            if checkpoint is not None:
                load_adapters(model, checkpoint)
        return model, base

    def _build_head(self, checkpoint: Path | None) -> PredictionHead | None:
        """What is trained on top of the model: nothing, for a language model."""
        return None

    def fit(self) -> Progress:
        """Train to the recipe's last step, or to where a signal asks to stop; write metrics, checkpoints, the best model.

        Raises:
            NumericalError: the loss or gradient of `training.max_skipped_steps` steps in a row was not finite.
            OutputError: the last checkpoint cannot be written, what was there before is as it was; or another command is at
                work on the run, or was since this trainer was made.
        """
        reuse_freed_memory()
        with self._claimed(), self._open_log() as log, self.stop:
            self._describe(log)
            began, speed = time.perf_counter() - self.progress.seconds, Speed()
            for batches in self._steps():
                num_tokens, asked_to_stop = self._step(batches)
                speed.num_tokens += num_tokens
                self.progress.step += 1
                self.progress.seconds = time.perf_counter() - began
                log.advance(self.progress.step, self._facts(speed))
                if self.progress.step % LOG_EVERY == 0 or self.progress.step == self.recipe.training.num_steps:
                    self._log(log, speed)
                    speed = Speed()
                with speed.paused():
                    self._after_step(log, asked_to_stop=asked_to_stop)
                if asked_to_stop:
                    break
        return self.progress

    def _open_log(self) -> RunLog:
        """Make or tidy the run's folder, and start the trackers."""
        trackers, step = [], self.progress.step
        first = self._tensors(LAST) if not step else {}
        if main := self.accelerator.is_main_process:
            is_new = not self.run.exists()
            self._prepare_folder(first)
            try:
                trackers = start_trackers(self.recipe, self.run, step=step)
            except ConfigError:
                if is_new:
                    shutil.rmtree(self.run)  # the same command may be given again
                raise
        self.accelerator.wait_for_everyone()
        return RunLog(self.run, step=step, num_steps=self.recipe.training.num_steps, active=main, trackers=trackers)

    def _prepare_folder(self, first: Tensors) -> None:
        """A new run begins with a checkpoint of its first step; the folder of one that goes on is tidied up."""
        recipe = yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False)
        if not self.run.exists():
            with new_directory(self.run, is_claimed=True) as folder:
                (folder / RECIPE).write_text(recipe, encoding="utf-8")
                (folder / LAST).mkdir()
                self._write_checkpoint(folder / LAST, first)
            return
        self.checkpoints.tidy(self._damaged, keep=self.recipe.training.keep_checkpoints)
        if (self.run / RECIPE).read_text(encoding="utf-8") != recipe:
            with new_file(self.run / RECIPE, replace=True) as partial:
                partial.write_text(recipe, encoding="utf-8")

    def _after_step(self, log: RunLog, *, asked_to_stop: bool) -> None:
        """Validate and save what is due."""
        config, step = self.recipe.training, self.progress.step
        at_end = step == config.num_steps
        if step % config.validate_every == 0 or at_end:
            loss, best = self._validate(log), self.progress.best_loss
            if loss < best:
                self.progress.best_loss = loss
                if not self._save(BEST, log, must=at_end):
                    self.progress.best_loss = best
        if step % config.checkpoint_every == 0 or at_end or asked_to_stop:
            self._save(LAST, log, must=at_end or asked_to_stop)

    def _steps(self) -> Iterator[list[Batch]]:
        """The batches of this process for each remaining step."""
        progress, config = self.progress, self.recipe.training
        together = config.sequence_parallel
        num_groups, own = self.accelerator.num_processes // together, self.accelerator.process_index // together
        plan = self.batches.plan.batches(progress.place)
        while progress.step < config.num_steps:
            planned = [next(plan) for _ in range(config.accumulation * num_groups)]
            progress.place = planned[-1].next_place
            yield [self.batches.batch(each) for each in planned[own::num_groups]]

    def _step(self, batches: list[Batch]) -> tuple[int, bool]:
        """One optimizer step of all processes; returns their tokens, and whether one of them was asked to stop."""
        config, step = self.recipe.training, self.progress.step
        device = self.accelerator.device
        # Dropout's random state is a function of (seed, step, process), so nothing of it need be saved.
        torch.manual_seed((config.seed * 1_000_003 + step) * 4_099 + self.accelerator.process_index)
        if config.redraw_every and step and step % config.redraw_every == 0:
            self.plain_model.redraw_features(torch.Generator().manual_seed(config.seed * 1_000_003 + step))
        self._set_learning_rate(learning_rate_factor(step, config))
        self.model.train()
        counts = torch.tensor([self._count(batch) for batch in batches], dtype=torch.float64).sum(0)
        all_predicted = int(self._sum_over_processes(counts[:1]))
        sums = torch.zeros(5, dtype=torch.float64)
        for number, batch in enumerate((batch.to(device) for batch in batches), 1):
            # Processes that hold whole models exchange gradients once, with the last batch.
            waits = number < len(batches) and not self.is_sharded
            with self.accelerator.no_sync(self.model) if waits else nullcontext():
                loss, correct = self._backward(batch, all_predicted, len(batches))
            sums[:2] += torch.stack([loss, correct]).double().cpu()
        sums[2:4] = counts
        sums[4] = self.stop.signal is not None
        loss, correct, predicted, num_tokens, num_asked = self._sum_over_processes(sums).tolist()
        norm = float(
            whole(cast(Tensor, self.accelerator.clip_grad_norm_(self.model.parameters(), config.gradient_clip)))
        )
        self.progress.count(loss=loss, correct=correct, predicted=predicted, tokens=int(num_tokens), norm=norm)
        if self.progress.num_skipped_in_a_row >= config.max_skipped_steps:
            self._refuse_to_go_on(batches)
        for optimizer in self.optimizers:
            if not self.progress.num_skipped_in_a_row:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return int(num_tokens), bool(num_asked)

    def _count(self, batch: Any) -> tuple[int, int]:
        """How many tokens of a batch this process predicts, and how many it computes."""
        targets = self._own(batch.targets)
        return int((targets != IGNORED).sum()), targets.numel()

    def _backward(self, batch: Any, all_predicted: int, num_batches: int) -> tuple[Tensor, Tensor]:
        """Add a batch's gradient; its loss in nats and how many tokens were predicted right."""
        loss, correct = self._loss(batch)
        # Gradients are averaged over processes: weight so that every predicted token of the step counts the same.
        weighted = loss * (self.accelerator.num_processes / all_predicted)
        if penalty := self.recipe.training.orthogonality:
            weighted = weighted + penalty / num_batches * self.plain_model.orthogonality()
        self.accelerator.backward(weighted)
        return loss.detach(), correct

    def _loss(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Sum of the losses of what a batch predicts, and how much of it is right."""
        selected = batch.targets != IGNORED
        targets = self._own(batch.targets)[self._own(selected)]
        with self._autocast():
            logits = self.model(batch.tokens, packing=batch.packing, selected=selected, group=self.group)
        loss = functional.cross_entropy(logits.float(), targets, reduction="sum")
        return loss, (logits.detach().argmax(-1) == targets).sum()

    def _own(self, row: Tensor) -> Tensor:
        """The part of a batch's row (1, L) that this process computes."""
        return row if self.group is None else row[:, own_span(row.shape[1], self.group)]

    def _refuse_to_go_on(self, batches: list[Any]) -> NoReturn:
        """Say where the numbers of this step stopped being finite; the weights are still those before it."""
        places = set()
        for batch in (batch.to(self.accelerator.device) for batch in batches):
            with self._autocast(), self._whole_weights():
                places.add(self._place_of_fault(batch))
        place = min(set(gather_object(sorted(places))) - {ALL_FINITE}, default="the gradient")
        taken = (
            "the step was not taken"
            if (number := self.progress.num_skipped_in_a_row) == 1
            else (f"none of the last {number} steps was taken")
        )
        raise NumericalError(
            f"{self.run}, step {self.progress.step + 1}: {place} became NaN or infinite, so {taken}; the last checkpoint is "
            f"that of step {self._last_saved}, {self.run / LAST}: lower training.learning_rate or training.gradient_clip and "
            "go on with --resume and --allow-change, or set model.qk_norm=true and start a new run"
        )

    def _place_of_fault(self, batch: Any) -> str:
        """Where the numbers of a batch stop being finite, or that they do not."""
        place = first_non_finite(self.plain_model, batch.tokens, packing=batch.packing)
        if place == ALL_FINITE:
            place = last_non_finite_gradient(self.plain_model, batch.tokens, batch.targets, batch.packing)
        return place

    def _autocast(self) -> AbstractContextManager[None]:
        """Within, matrix products have the type of the run."""
        # Copies of weights would be kept that FSDP has let go.
        return self._precision.context(self.accelerator.device.type, keeps_copies=not self.is_sharded)

    def _whole_weights(self) -> AbstractContextManager[None]:
        """Within, this process has all weights, and may use the model on its own."""
        if not self.is_sharded:
            return nullcontext()
        plugin = cast(FullyShardedDataParallelPlugin, self.accelerator.state.fsdp_plugin)
        return whole_weights(self.model, reshard_after_forward=cast(bool, plugin.reshard_after_forward))

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        """Sums of values on the CPU; a single process never sends them to its device, which may lack float64."""
        if self.accelerator.num_processes == 1:
            return values
        return cast(Tensor, self.accelerator.reduce(values.to(self.accelerator.device), reduction="sum")).cpu()

    def _group_of_rows(self, model: ProteinLM) -> Group | None:
        """The processes that hold a batch together with this one, if there are others."""
        return group_of_rows(model, self.recipe.training.sequence_parallel, self.accelerator.num_processes)

    def _set_learning_rate(self, factor: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.training.learning_rate * factor

    def _validation_sequences(self) -> list[Any]:
        longest = self.batches.plan.max_residues
        indices = self.store.indices(Split.VALID)
        indices = indices[self.store.lengths_of(indices) <= longest]
        if not indices.size:
            raise ConfigError(
                f"{self.store.path}: the split valid has no sequence of {longest} residues or less; prepare the "
                "corpus with a larger --valid-fraction"
            )
        number = min(self.recipe.training.num_validation_sequences, indices.size)
        chosen = indices[np.arange(number) * indices.size // number]
        return [self.store.residues(i) for i in chosen.tolist()]

    @cached_property
    def _unigram(self) -> NDArray[np.float64]:
        """Log-frequencies (V,) of the baseline."""
        return unigram_log_probabilities(self.store, max_sequences=UNIGRAM_SEQUENCES)

    def _validate(self, log: RunLog) -> float:
        """Mean loss in nats over the validation residues, shared out over the processes."""
        self.model.eval()
        mine = self.validation[self.accelerator.process_index :: self.accelerator.num_processes]
        with self._autocast(), self._whole_weights():
            results = evaluation_log_probabilities(
                self.plain_model, mine, tokens_per_batch=self.recipe.data.tokens_per_batch
            )
        unigram = unigram_results(self._unigram, mine, is_causal=self.plain_model.is_causal)
        loss, accuracy = self._mean_over_residues(results)
        unigram_loss, unigram_accuracy = self._mean_over_residues(unigram)
        log.row(
            step=self.progress.step,
            split="valid",
            epoch=self.progress.epoch,
            num_tokens=self.progress.num_tokens,
            seconds=self.progress.seconds,
            loss_nats=loss,
            perplexity=perplexity(loss),
            accuracy=accuracy,
            unigram_perplexity=perplexity(unigram_loss),
            unigram_accuracy=unigram_accuracy,
        )
        return loss

    def _mean_over_residues(self, results: list[ResidueLogProbabilities]) -> tuple[float, float]:
        """Loss in nats and accuracy, over the residues of all processes."""
        sums = torch.zeros(3, dtype=torch.float64)
        for result in results:
            sums += torch.tensor([-result.log_probabilities.sum(), result.correct.sum(), result.correct.size])
        loss, correct, count = self._sum_over_processes(sums).tolist()
        return loss / count, correct / count

    def _facts(self, speed: Speed) -> dict[str, float]:
        """Of the steps since the last row; without means if all of them were skipped."""
        progress = self.progress
        return {
            **progress.means(),
            "tokens_per_second": speed.tokens_per_second,
            "num_skipped_steps": progress.num_skipped_steps,
        }

    def _log(self, log: RunLog, speed: Speed) -> None:
        progress = self.progress
        if progress.steps_since_row:
            log.row(
                step=progress.step,
                split="train",
                epoch=progress.epoch,
                num_tokens=progress.num_tokens,
                seconds=progress.seconds,
                learning_rate=self.optimizers[0].param_groups[0]["lr"],
                **self._facts(speed),
                peak_memory_bytes=peak_memory_bytes(self.accelerator.device),
            )
        progress.begin_row()

    def _describe(self, log: RunLog) -> None:
        for note in self._notes:
            log.line(note)
        if self._precision.reason:
            log.line(self._precision.reason)
        model, batches = self.recipe.model, self.batches
        num_weights = f"{self.plain_model.num_parameters:,} weights"
        if self.base is not None:
            num_trained = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
            num_weights += f" ({num_trained:,} of them trained)"
        elif of_kernels := self.plain_model.num_kernel_parameters:
            num_weights += f" ({of_kernels:,} of them in the attention kernels)"
        log.line(
            f"{model.objective.value} {model.attention_name}, {num_weights}, "
            f"{batches.plan.num_sequences:,} training sequences, {self.accelerator.num_processes} process(es) on "
            f"{self.accelerator.device.type}, from step {self.progress.step} to {self.recipe.training.num_steps}"
        )
        num_valid = self.store.indices(Split.VALID).size
        if advice := self._advice():
            log.line(advice)
        if len(self.validation) < num_valid:
            log.line(
                f"validation uses {len(self.validation):,} of {num_valid:,} sequences, "
                f"evenly spread over those of {batches.plan.max_residues:,} residues or less"
            )
        if batches.plan.concatenates:
            log.line(f"sequences are concatenated and cut into windows of {model.max_length:,} tokens")
        elif (number := batches.plan.num_too_long) and isinstance(self.recipe, Recipe):
            done = _DONE_TO_LONG[self.recipe.data.long_sequences]
            log.line(f"{number:,} sequences of over {batches.plan.max_residues:,} residues are {done}")

    def _advice(self) -> str | None:
        """What would make this training faster: kernels that are not built, where its attention has some."""
        if self.accelerator.device.type != "cpu" or self.recipe.training.sequence_parallel > 1:
            return None
        width = self.recipe.model.width // self.recipe.model.num_heads
        maps = (module for module in self.plain_model.modules() if isinstance(module, FeatureMap))
        return library.advice() if any(is_among_kernels(each, width) for each in maps) else None

    def _save(self, name: str, log: RunLog, *, must: bool) -> bool:
        """Write the model, and for `last` the training state, into the run; whether that went well.

        Raises:
            OutputError: it did not, and `must` is True.
        """
        failed, tensors = torch.zeros(1), self._tensors(name)
        if self.accelerator.is_main_process:
            try:
                if name == LAST:
                    keep = self.recipe.training.keep_checkpoints
                    self.checkpoints.write(
                        self.progress.step, lambda folder: self._write_checkpoint(folder, tensors), keep=keep
                    )
                else:
                    with new_directory(self.run / name, replace=True) as folder:
                        self._write_model(folder, tensors)
                        write_checksums(folder)
            except OutputError as error:
                if must:
                    raise
                failed += 1
                log.line(f"step {self.progress.step}: {error}; the run goes on, and {name} stays as it was")
        saved = not self._sum_over_processes(failed)
        if saved and name == LAST:
            self._last_saved = self.progress.step
        return saved

    def _tensors(self, name: str) -> Tensors:
        """What `best` or `last` is to hold, by file and name; where weights are sharded all processes must ask for it."""
        files = model_tensors(self.plain_model, base=self.base, head=self.head)
        if name == LAST:
            files[STATE_TENSORS] = optimizer_tensors(self.optimizers)
        if not self.is_sharded:
            return files
        keep = self.accelerator.is_main_process
        return {file: whole_on_cpu(tensors, keep=keep) for file, tensors in files.items()}

    def _write_checkpoint(self, folder: Path, tensors: Tensors) -> None:
        weights = {file: content for file, content in tensors.items() if file != STATE_TENSORS}
        self._write_model(folder, weights)
        state = {
            "progress": asdict(self.progress),
            "recipe": self.recipe.model_dump(mode="json"),
            "changes": self._changes,
            "corpus": self.store.identity,
            "protein_lm_version": __version__,
        }
        write_training_state(folder, state, tensors[STATE_TENSORS])
        write_checksums(folder)

    def _write_model(self, folder: Path, tensors: Tensors) -> None:
        best = self.progress.best_loss
        facts = {
            "step": self.progress.step,
            "num_tokens": self.progress.num_tokens,
            f"best_validation_{self._loss_name}": None if math.isinf(best) else best,
            "corpus": {source["name"]: source["sha256"] for source in self.store.sources},
        }
        write_model(self.plain_model, folder, facts=facts, base=self.base, head=self.head, tensors=tensors)

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Keep other commands off the run; what the main process finds holds for all.

        Raises:
            OutputError: another command is at work there, or was since the last time.
        """
        fault, refused = None, torch.zeros(1)
        with ExitStack() as stack:
            if self.accelerator.is_main_process:
                try:
                    stack.enter_context(claimed(self.run))
                    found = self.run.exists(), self.checkpoints.steps()
                    if self._found not in (None, found):
                        raise OutputError(f"{self.run}: another command was at work there meanwhile; start again")
                    self._found = found
                except OutputError as error:
                    fault, refused = error, refused + 1
            if self._sum_over_processes(refused):
                raise fault or OutputError(f"{self.run}: the main process could not claim it")
            yield
            self._found = None if self._found is None else (self.run.exists(), self.checkpoints.steps())

    def _check_run_directory(self, resume: bool) -> None:
        if resume and not self.checkpoints.newest_first():
            raise OutputError(f"{self.run}: nothing to resume, there is no checkpoint in it; start without --resume")
        if not resume and self.run.exists():
            raise OutputError(f"{self.run} exists already; add --resume to go on with it, or name another run")

    def _restore(self, allowed: Collection[str]) -> tuple[Path, dict[str, Tensor]]:
        """Take up the newest checkpoint that is whole; its folder and the optimizers' moments."""
        faults = []
        for checkpoint in self.checkpoints.newest_first():
            try:
                check_files(checkpoint)
                state, tensors = read_training_state(checkpoint)
                self.progress = Progress.of(state)
                corpus, version, recorded = (dict(state["corpus"]), str(state["protein_lm_version"]), state["recipe"])
                self._changes = list(state["changes"])
            except (ModelError, KeyError, TypeError, ValueError) as error:
                fault = f"{checkpoint}: damaged training state ({error})"
                faults.append(str(error) if isinstance(error, ModelError) else fault)
                self._damaged.append(checkpoint)
                continue
            break
        else:
            raise ModelError(f"{self.run}: no checkpoint is whole: {'; '.join(faults)}; start a new run")
        self._last_saved = self.progress.step
        self._notes += [f"{fault}; going on from the checkpoint of step {self.progress.step}" for fault in faults]
        if different := [name for name, value in self.store.identity.items() if corpus.get(name) != value]:
            raise ConfigError(
                f"{self.run}: resumed with another corpus: {different[0]} of {self.store.path} is not that of the run so "
                f"far; name the corpus that it began with, or start a new run, with --init {self.run}"
            )
        old = parse(type(self.recipe), recorded, str(checkpoint))
        if self.recipe.training.precision is Precision.AUTO:
            self._settle(old.training.precision)
        changes = check_changes(old, self.recipe, allowed=allowed, run=self.run)
        if changes:
            self._changes.append({"step": self.progress.step, "changes": changes})
            self._notes.append(f"changed from step {self.progress.step} on: {', '.join(changes)}")
        if version != __version__:
            self._notes.append(f"the checkpoint was written by protein_lm {version}, this is {__version__}")
        return checkpoint, tensors

    def _check_same_model(self, initial: Path) -> None:
        old = read_config(initial).model_dump(mode="json")
        new = self.recipe.model.model_dump(mode="json") | {"dropout": old["dropout"]}  # dropout has no weights
        if old != new:
            changed = ", ".join(differences({"model": old}, {"model": new}).values())
            raise ConfigError(f"{initial}: is another model than the recipe's: {changed}; change the recipe")
