"""The training loop, the only one: on one CPU or on many processes, through Accelerate.

Everything random is a pure function of (seed, step) or of (seed, epoch, sequence). A checkpoint therefore needs no random
states, and a resumed run equals one that was never interrupted. Processes decide by sums over all of them whether to skip a
step or to stop, so that they always decide the same.
"""

import time
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor

from protein_lm.checkpoint.directory import BEST, LAST
from protein_lm.errors import NumericalError
from protein_lm.model.diagnosis import ALL_FINITE
from protein_lm.native.freed_memory import reuse_freed_memory
from protein_lm.training import setup
from protein_lm.training.checkpoints import Saver
from protein_lm.training.interruption import StopRequest
from protein_lm.training.processes import common_precision, start_accelerator, whole
from protein_lm.training.progress import Progress, Speed, peak_memory_bytes
from protein_lm.training.resume import StartingPoint, restore, with_precision
from protein_lm.training.run_log import RunLog
from protein_lm.training.schedule import set_learning_rate
from protein_lm.training.task import Task
from protein_lm.training.trackers import check_trackers

LOG_EVERY = 20
"""Steps between rows of training metrics; each row is the mean over these steps."""


class Trainer:
    """Trains a model for a task into a run directory.

    >>> trainer = Trainer(LanguageModelling(recipe, corpus), Path("run"))  # doctest: +SKIP
    >>> trainer.fit()  # doctest: +SKIP
    """

    def __init__(
        self,
        task: Task,
        run: Path,
        *,
        resume: bool = False,
        initial: str | None = None,
        allowed_changes: Collection[str] = (),
    ) -> None:
        """Set up model and optimizers, or restore them.

        Args:
            task: recipe, data and loss.
            run: directory to make, or to resume.
            resume: whether to start from the run's newest checkpoint.
            initial: model or run directory whose weights a new run starts from; its model is that of the recipe.
            allowed_changes: keys as `section.key` in which the recipe of a resumed run may differ.

        Raises:
            OutputError: the run exists and `resume` is False, or it does not exist and `resume` is True. Or another command
                is at work on it.
            ConfigError: the recipe does not fit the run, the initial model or the number of processes. It needs an initial
                model, or a tracker that is not installed.
            ModelError: no checkpoint is whole, or the initial model is damaged, or the model that it was trained on has
                changed.
        """
        setup.check_options(run, resume=resume, initial=initial, allowed_changes=allowed_changes)
        check_trackers(task.recipe.training.trackers)
        self.task, self.run = task, run
        self.accelerator = start_accelerator(task.recipe.training)
        self._claim = setup.RunClaim(run, self.accelerator)
        with self._claim.held():
            setup.check_run_directory(run, resume=resume)
            self.accelerator.wait_for_everyone()  # before the main process makes the folder that the others look for
            start = restore(run, task, allowed=allowed_changes) if resume else StartingPoint(task.recipe)
        precision = common_precision(start.recipe.training.precision, self.accelerator)
        self._start = replace(start, recipe=with_precision(start.recipe, precision.precision))
        self.recipe, self.progress = self._start.recipe, start.progress
        self.model = setup.build(task, self._start, self.accelerator, precision, initial)
        self._saver = Saver(run, task, self.recipe, self.model, self.progress, start.changes)
        self._stop = StopRequest(grace_seconds=1.0 if self.accelerator.num_processes > 1 else 0.0)

    def fit(self) -> Progress:
        """Train to the recipe's last step, or until a signal such as Ctrl-C; write metrics, checkpoints, the best model.

        Raises:
            NumericalError: the loss or gradient of `training.max_skipped_steps` steps in a row was not finite.
            OutputError: the last checkpoint cannot be written; earlier ones are unchanged. Or another command is at work on
                the run, or was since this trainer was made.
        """
        reuse_freed_memory()
        with (
            self._claim.held(),
            setup.open_log(self.run, self._start, self._saver, self.accelerator) as log,
            self._stop,
        ):
            for line in setup.description(self.task, self._start, self.model):
                log.line(line)
            began, speed = time.perf_counter() - self.progress.seconds, Speed()
            for batches in self._batches():
                num_tokens, asked_to_stop = self._step(batches)
                speed.num_tokens += num_tokens
                self.progress.step += 1
                self.progress.seconds = time.perf_counter() - began
                log.advance(self.progress.step, self._training_facts(speed))
                if self.progress.step % LOG_EVERY == 0 or self.progress.step == self.recipe.training.num_steps:
                    self._log_training(log, speed)
                    speed = Speed()
                with speed.paused():
                    self._after_step(log, asked_to_stop=asked_to_stop)
                if asked_to_stop:
                    break
        return self.progress

    def _batches(self) -> Iterator[list[Any]]:
        """The batches of this process for each remaining step."""
        progress, config = self.progress, self.recipe.training
        together = config.sequence_parallel
        num_groups, own = self.accelerator.num_processes // together, self.accelerator.process_index // together
        plan = self.task.batches.planned(progress.position)
        while progress.step < config.num_steps:
            planned = [next(plan) for _ in range(config.accumulation * num_groups)]
            progress.position = planned[-1].next_position
            yield [self.task.batches.batch(each) for each in planned[own::num_groups]]

    def _step(self, batches: list[Any]) -> tuple[int, bool]:
        """One optimizer step of all processes; returns their tokens, and whether one of them was asked to stop."""
        config, step, model = self.recipe.training, self.progress.step, self.model
        # Dropout's random state is a function of (seed, step, process), so nothing of it need be saved.
        torch.manual_seed((config.seed * 1_000_003 + step) * 4_099 + self.accelerator.process_index)
        if config.redraw_every and step and step % config.redraw_every == 0:
            model.plain.redraw_features(torch.Generator().manual_seed(config.seed * 1_000_003 + step))
        set_learning_rate(model.optimizers, step, config)
        model.prepared.train()
        counts = torch.tensor([self.task.count(model, batch) for batch in batches], dtype=torch.float64).sum(0)
        all_predicted = int(model.total(counts[:1]))
        sums = torch.zeros(5, dtype=torch.float64)
        for number, batch in enumerate((batch.to(self.accelerator.device) for batch in batches), 1):
            # Processes that hold whole models exchange gradients once, with the last batch.
            waits = number < len(batches) and not model.is_sharded
            with self.accelerator.no_sync(model.prepared) if waits else nullcontext():
                loss, correct = self._backward(batch, all_predicted, len(batches))
            sums[:2] += torch.stack([loss, correct]).double().cpu()
        sums[2:4] = counts
        sums[4] = self._stop.signal is not None
        loss, correct, predicted, num_tokens, num_asked = model.total(sums).tolist()
        norm = self.accelerator.clip_grad_norm_(model.prepared.parameters(), config.gradient_clip)
        norm = float(whole(cast(Tensor, norm)))
        self.progress.count(loss=loss, correct=correct, predicted=predicted, tokens=int(num_tokens), norm=norm)
        if self.progress.num_skipped_in_a_row >= config.max_skipped_steps:
            self._give_up(batches)
        is_skipped = self.progress.num_skipped_in_a_row > 0
        for optimizer in model.optimizers:
            if not is_skipped:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if is_skipped and model.plain.kmer_embedding is not None:
            model.plain.kmer_embedding.forget_gradients()
        return int(num_tokens), bool(num_asked)

    def _backward(self, batch: Any, all_predicted: int, num_batches: int) -> tuple[Tensor, Tensor]:
        """Add a batch's gradient; return its loss, and how many targets were predicted right."""
        loss, correct = self.task.loss(self.model, batch)
        # Gradients are averaged over processes: weight so that every target of the step counts the same.
        weighted = loss * (self.accelerator.num_processes / all_predicted)
        if penalty := self.recipe.training.orthogonality:
            weighted = weighted + penalty / num_batches * self.model.plain.orthogonality()
        self.accelerator.backward(weighted)
        return loss.detach(), correct

    def _after_step(self, log: RunLog, *, asked_to_stop: bool) -> None:
        """Validate and save when it is time."""
        config, step = self.recipe.training, self.progress.step
        at_end = step == config.num_steps
        if step % config.validate_every == 0 or at_end:
            loss, best = self._validate(log), self.progress.best_loss
            if loss < best:
                self.progress.best_loss = loss
                if not self._saver.save(BEST, log, must=at_end):
                    self.progress.best_loss = best
        if step % config.checkpoint_every == 0 or at_end or asked_to_stop:
            self._saver.save(LAST, log, must=at_end or asked_to_stop)

    def _validate(self, log: RunLog) -> float:
        """Log the measures on the validation sequences; return the loss."""
        self.model.prepared.eval()
        measures = self.task.validate(self.model)
        log.row(step=self.progress.step, split="valid", **self._counts(), **measures)
        return cast(float, measures[self.task.loss_name])

    def _log_training(self, log: RunLog, speed: Speed) -> None:
        if self.progress.steps_since_row:
            log.row(
                step=self.progress.step,
                split="train",
                **self._counts(),
                learning_rate=self.model.optimizers[0].param_groups[0]["lr"],
                **self._training_facts(speed),
                peak_memory_bytes=peak_memory_bytes(self.accelerator.device),
            )
        self.progress.begin_row()

    def _counts(self) -> dict[str, float]:
        """How far the run has come."""
        return {name: getattr(self.progress, name) for name in ("epoch", "num_tokens", "seconds")}

    def _training_facts(self, speed: Speed) -> dict[str, float]:
        """Measures of the steps since the last row, or none if all of them were skipped; the speed."""
        facts = {}
        if (means := self.progress.means()) is not None:
            loss, accuracy, norm = means
            facts = {**self.task.measures(loss, accuracy), "gradient_norm": norm}
        skipped = self.progress.num_skipped_steps
        return {**facts, "tokens_per_second": speed.tokens_per_second, "num_skipped_steps": skipped}

    def _give_up(self, batches: list[Any]) -> NoReturn:
        """Say where the numbers of this step stopped being finite; the weights are still those before it."""
        faults = set()
        for batch in (batch.to(self.accelerator.device) for batch in batches):
            with self.model.autocast(), self.model.whole_weights():
                faults.add(self.task.locate_fault(self.model, batch))
        fault = min(set(gather_object(sorted(faults))) - {ALL_FINITE}, default="the gradient")
        number = self.progress.num_skipped_in_a_row
        result = "the step was not taken" if number == 1 else f"none of the last {number} steps was taken"
        raise NumericalError(
            f"{self.run}, step {self.progress.step + 1}: {fault} became NaN or infinite, so {result}; the last checkpoint is "
            f"that of step {self._saver.last_saved}, {self.run / LAST}: lower training.learning_rate or "
            "training.gradient_clip and add --resume and --allow-change, or set model.qk_norm=true and start a new run"
        )
