"""The training loop, the only one: one CPU or many processes, through Accelerate.

Everything random is a pure function of (seed, step) or (seed, epoch, sequence), so a checkpoint needs no random states:
a run that goes on from one is the run that was never interrupted.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import torch.distributed
import yaml
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional

from protein_lm.attention.parallel import Group, own_span
from protein_lm.checkpoint import (
    BEST,
    LAST,
    find_model,
    load_weights,
    read_facts,
    read_training_state,
    write_model,
    write_training_state,
)
from protein_lm.choices import Precision, TrainingLongPolicy
from protein_lm.config import ModelConfig, Recipe, parse
from protein_lm.data.batches import IGNORED, Batch, TrainingBatches
from protein_lm.data.plan import Place
from protein_lm.data.split import Split
from protein_lm.data.store import TokenStore
from protein_lm.errors import ConfigError, NumericalError, OutputError
from protein_lm.inference.likelihood import evaluation_log_probabilities
from protein_lm.model.diagnosis import ALL_FINITE, first_non_finite
from protein_lm.model.language_model import ProteinLM
from protein_lm.output import new_directory
from protein_lm.training.optimizer import build_optimizers, learning_rate_factor
from protein_lm.training.run_log import RunLog

RECIPE = "recipe.yaml"
_DONE_TO_LONG = {
    TrainingLongPolicy.CROP: "cropped at a random place",
    TrainingLongPolicy.WINDOW: "cut into windows",
    TrainingLongPolicy.DROP: "left out",
}
LOG_EVERY = 20
"""Steps between rows of training metrics; each row is the mean over these steps."""


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    """Epoch of the next batch."""
    sequence: int = 0
    """Place in the epoch's order where the next batch begins."""
    part: int = 0
    """Within that sequence, see `data.plan.Place`."""
    num_tokens: int = 0
    """Tokens seen, special tokens included."""
    best_loss_nats: float = math.inf
    """Lowest validation loss so far."""


class Trainer:
    """Trains the model of a recipe on a prepared corpus into a run directory."""

    def __init__(
        self, recipe: Recipe, store: TokenStore, run: Path, *, resume: bool = False, initial: str | None = None
    ) -> None:
        """Set up model, optimizers and data.

        Args:
            recipe: model, data and training.
            store: the prepared corpus.
            run: directory to make, or to go on with.
            resume: whether to start from the run's last checkpoint.
            initial: model or run directory whose weights a new run starts from; its model is that of the recipe.

        Raises:
            OutputError: the run exists and `resume` is False, or it does not exist and `resume` is True.
            ConfigError: the recipe does not fit the corpus, the run, the initial model or the number of processes.
            ModelError: the checkpoint to go on from, or the initial model, is damaged.
        """
        if resume and initial is not None:
            raise ConfigError(
                f"{run}: a run that is resumed has weights of its own; leave out either --resume or --init"
            )
        config = recipe.training
        self.recipe, self.store, self.run = recipe, store, run
        self.accelerator = Accelerator(mixed_precision="bf16" if config.precision is Precision.BFLOAT16 else "no")
        self.batches = TrainingBatches(
            store, recipe.data, objective=recipe.model.objective, max_length=recipe.model.max_length, seed=config.seed
        )
        self.validation = self._validation_sequences()
        self.progress = Progress()
        model = ProteinLM(recipe.model)
        model.initialize(torch.Generator().manual_seed(config.seed))
        self.group = self._group_of_rows(model)
        optimizers = build_optimizers(model, config)
        self._check_run_directory(resume)
        self.accelerator.wait_for_everyone()  # before the main process makes the folder that the others look for
        if resume:
            self._restore(model, optimizers)
        elif initial is not None:
            self._start_from(model, find_model(initial))
        self.model, *self.optimizers = self.accelerator.prepare(model, *optimizers)
        self.plain_model = model

    def fit(self) -> Progress:
        """Train to the recipe's last step; write metrics, the best and the last model."""
        config = self.recipe.training
        main = self.accelerator.is_main_process
        if main and not self.run.exists():
            with new_directory(self.run) as folder:
                (folder / RECIPE).write_text(yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False))
        self.accelerator.wait_for_everyone()
        with RunLog(self.run, num_steps=config.num_steps, active=main) as log:
            log.rewind(self.progress.step)
            self._describe(log)
            window = _Window()
            for batches in self._steps():
                window.add(self._step(batches))
                self.progress.step += 1
                if self.progress.step % LOG_EVERY == 0 or self.progress.step == config.num_steps:
                    self._log(log, window)
                    window = _Window()
                self._after_step(log)
        return self.progress

    def _after_step(self, log: RunLog) -> None:
        config, step = self.recipe.training, self.progress.step
        at_end = step == config.num_steps
        if step % config.validate_every == 0 or at_end:
            loss = self._validate(log)
            if loss < self.progress.best_loss_nats:
                self.progress.best_loss_nats = loss
                self._save(BEST)
        if step % config.checkpoint_every == 0 or at_end:
            self._save(LAST)

    def _steps(self) -> Iterator[list[Batch]]:
        """The batches of this process for each remaining step."""
        progress, config = self.progress, self.recipe.training
        together = config.sequence_parallel
        num_groups = self.accelerator.num_processes // together
        own = self.accelerator.process_index // together
        plan = self.batches.plan.batches(Place(progress.epoch, progress.sequence, progress.part))
        while progress.step < config.num_steps:
            planned = [next(plan) for _ in range(config.accumulation * num_groups)]
            place = planned[-1].next_place
            progress.epoch, progress.sequence, progress.part = place.epoch, place.sequence, place.part
            yield [self.batches.batch(each) for each in planned[own::num_groups]]

    def _step(self, batches: list[Batch]) -> Tensor:
        """One optimizer step; returns its sums over all processes (loss in nats, correct, predicted, tokens)."""
        config, step = self.recipe.training, self.progress.step
        device = self.accelerator.device
        # Dropout's random state is a function of (seed, step, process), so nothing of it need be saved.
        torch.manual_seed((config.seed * 1_000_003 + step) * 4_099 + self.accelerator.process_index)
        if config.redraw_every and step and step % config.redraw_every == 0:
            self.plain_model.redraw_features(torch.Generator().manual_seed(config.seed * 1_000_003 + step))
        self._set_learning_rate(learning_rate_factor(step, config))
        self.model.train()
        predicted = torch.tensor([sum(int((self._own(batch.targets) != IGNORED).sum()) for batch in batches)])
        all_predicted = int(self._sum_over_processes(predicted))
        sums = torch.zeros(4, dtype=torch.float64)
        for batch in (batch.to(device) for batch in batches):
            selected = batch.targets != IGNORED
            targets = self._own(batch.targets)[self._own(selected)]
            logits = self.model(batch.tokens, packing=batch.packing, selected=selected, group=self.group)
            loss = functional.cross_entropy(logits.float(), targets, reduction="sum")
            # Gradients are averaged over processes: weight so that every predicted token of the step counts the same.
            weighted = loss * (self.accelerator.num_processes / all_predicted)
            if config.orthogonality:
                weighted = weighted + config.orthogonality / len(batches) * self.plain_model.orthogonality()
            self.accelerator.backward(weighted)
            correct = (logits.detach().argmax(-1) == targets).sum()
            sums[:3] += torch.stack([loss.detach(), correct, self._own(selected).sum()]).double().cpu()
            sums[3] += self._own(batch.tokens).numel()
        total = self._sum_over_processes(sums)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        if not (total[0].isfinite() and torch.as_tensor(norm).isfinite()):
            self._refuse_to_go_on(batches)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.num_tokens += int(total[3])
        return total

    def _own(self, row: Tensor) -> Tensor:
        """The part of a batch's row (1, L) that this process computes."""
        return row if self.group is None else row[:, own_span(row.shape[1], self.group)]

    def _refuse_to_go_on(self, batches: list[Batch]) -> NoReturn:
        """Say where the numbers of this step stopped being finite; the weights are still those before it."""
        places = set()
        for batch in batches:
            tokens = batch.tokens.to(self.accelerator.device)
            with self.accelerator.autocast():
                places.add(first_non_finite(self.plain_model, tokens, packing=batch.packing))
        place = min(places - {ALL_FINITE}, default="the gradient")
        raise NumericalError(
            f"{self.run}, step {self.progress.step + 1}: {place} became NaN or infinite, so the step was not taken: lower "
            "training.learning_rate or training.gradient_clip, or set model.qk_norm=true, and start a new run"
        )

    def _sum_over_processes(self, values: Tensor) -> Tensor:
        """Sums of values on the CPU; a single process never sends them to its device, which may lack float64."""
        if self.accelerator.num_processes == 1:
            return values
        return cast(Tensor, self.accelerator.reduce(values.to(self.accelerator.device), reduction="sum")).cpu()

    def _group_of_rows(self, model: ProteinLM) -> Group | None:
        """The processes that hold a batch together with this one, if there are others."""
        together, num_processes = self.recipe.training.sequence_parallel, self.accelerator.num_processes
        if together == 1:
            return None
        try:
            model.check_can_be_split()
        except ValueError as error:
            raise ConfigError(f"training.sequence_parallel {together}: {error}") from error
        if num_processes % together:
            raise ConfigError(
                f"training.sequence_parallel {together} does not divide the {num_processes} process(es) of this run; start "
                f"{together} processes, or a multiple"
            )
        group, _ = torch.distributed.new_subgroups(together)
        return cast(Group, group)

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
        chosen = indices[: self.recipe.training.num_validation_sequences]
        return [self.store.residues(i) for i in chosen.tolist()]

    def _validate(self, log: RunLog) -> float:
        """Mean loss in nats over the validation residues, shared out over the processes."""
        self.model.eval()
        mine = self.validation[self.accelerator.process_index :: self.accelerator.num_processes]
        with self.accelerator.autocast():
            results = evaluation_log_probabilities(
                self.plain_model, mine, tokens_per_batch=self.recipe.data.tokens_per_batch
            )
        sums = torch.zeros(3, dtype=torch.float64)
        for result in results:
            sums += torch.tensor([-result.log_probabilities.sum(), result.correct.sum(), result.correct.size])
        loss, correct, count = self._sum_over_processes(sums).tolist()
        row = {"loss_nats": loss / count, "perplexity": math.exp(loss / count), "accuracy": correct / count}
        log.row(step=self.progress.step, split="valid", num_tokens=self.progress.num_tokens, **row)
        log.line(
            f"step {self.progress.step}: validation perplexity {row['perplexity']:.3f}, accuracy {row['accuracy']:.1%}"
        )
        return loss / count

    def _log(self, log: RunLog, window: "_Window") -> None:
        facts = window.facts()
        learning_rate = self.optimizers[0].param_groups[0]["lr"]
        log.row(
            step=self.progress.step,
            split="train",
            epoch=self.progress.epoch,
            num_tokens=self.progress.num_tokens,
            learning_rate=learning_rate,
            **facts,
        )
        log.advance(self.progress.step, f"loss {facts['loss_nats']:.3f}  {facts['tokens_per_second']:,.0f} tokens/s")

    def _describe(self, log: RunLog) -> None:
        model, batches = self.recipe.model, self.batches
        num_weights = f"{self.plain_model.num_parameters:,} weights"
        if of_kernels := self.plain_model.num_kernel_parameters:
            num_weights += f" ({of_kernels:,} of them in the attention kernels)"
        log.line(
            f"{model.objective.value} {model.attention_name}, {num_weights}, "
            f"{batches.plan.num_sequences:,} training sequences, {self.accelerator.num_processes} process(es) on "
            f"{self.accelerator.device.type}, from step {self.progress.step} to {self.recipe.training.num_steps}"
        )
        num_valid = self.store.indices(Split.VALID).size
        if len(self.validation) < num_valid:
            log.line(
                f"validation uses {len(self.validation):,} of {num_valid:,} sequences: the first "
                f"{self.recipe.training.num_validation_sequences:,} of {batches.plan.max_residues:,} residues or less"
            )
        if batches.plan.concatenates:
            log.line(f"sequences are concatenated and cut into windows of {model.max_length:,} tokens")
        elif number := batches.plan.num_too_long:
            done = _DONE_TO_LONG[self.recipe.data.long_sequences]
            log.line(f"{number:,} sequences of over {batches.plan.max_residues:,} residues are {done}")

    def _save(self, name: str) -> None:
        """Write the model, and for `last` the training state, under `name` in the run directory."""
        if self.accelerator.is_main_process:
            progress = vars(self.progress)
            facts = {
                "step": self.progress.step,
                "num_tokens": self.progress.num_tokens,
                "best_validation_loss_nats": None if math.isinf(best := self.progress.best_loss_nats) else best,
                "corpus": {source["name"]: source["sha256"] for source in self.store.manifest["sources"]},
            }
            with new_directory(self.run / name, replace=True) as folder:
                write_model(self.plain_model, folder, facts=facts)
                if name == LAST:
                    state = {"progress": progress, "recipe": self.recipe.model_dump(mode="json")}
                    write_training_state(folder, state, _optimizer_tensors(self.optimizers))
        self.accelerator.wait_for_everyone()

    def _check_run_directory(self, resume: bool) -> None:
        if resume and not (self.run / LAST).is_dir():
            raise OutputError(f"{self.run}: nothing to resume, there is no checkpoint {LAST}; start without --resume")
        if not resume and self.run.exists():
            raise OutputError(f"{self.run} exists already; add --resume to go on with it, or name another run")

    def _restore(self, model: ProteinLM, optimizers: list[torch.optim.Optimizer]) -> None:
        state, tensors = read_training_state(self.run / LAST)
        old = parse(Recipe, state["recipe"], str(self.run / LAST)).model_dump(mode="json")
        if old != (new := self.recipe.model_dump(mode="json")):
            raise ConfigError(f"{self.run}: resumed with another recipe: {', '.join(_differences(old, new))}")
        load_weights(model, self.run / LAST)
        _restore_optimizers(optimizers, tensors)
        self.progress = Progress(**state["progress"])

    def _start_from(self, model: ProteinLM, initial: Path) -> None:
        old = parse(ModelConfig, read_facts(initial).get("model"), str(initial)).model_dump(mode="json")
        new = self.recipe.model.model_dump(mode="json") | {"dropout": old["dropout"]}  # dropout has no weights
        if old != new:
            differences = ", ".join(_differences({"model": old}, {"model": new}))
            raise ConfigError(f"{initial}: is another model than the recipe's: {differences}; change the recipe")
        load_weights(model, initial)


class _Window:
    """Sums over the steps since the last row of the log."""

    def __init__(self) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64)
        self.start = time.perf_counter()

    def add(self, sums: Tensor) -> None:
        self.sums += sums

    def facts(self) -> dict[str, float]:
        loss, correct, predicted, tokens = self.sums.tolist()
        return {
            "loss_nats": loss / predicted,
            "accuracy": correct / predicted,
            "tokens_per_second": tokens / (time.perf_counter() - self.start),
        }


def _optimizer_tensors(optimizers: list[Any]) -> dict[str, Tensor]:
    """Moments by `optimizer.parameter.name`."""
    tensors = {}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"{number}.{index}.{name}"] = torch.as_tensor(value)
    return tensors


def _restore_optimizers(optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            owner, index, name = key.split(".", 2)
            if int(owner) == number:
                state.setdefault(int(index), {})[name] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{section}.{key} was {old[section].get(key)!r}, now {value!r}"
        for section, values in new.items()
        for key, value in values.items()
        if old[section].get(key) != value
    ]
