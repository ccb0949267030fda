"""The checkpoints of a run: `last` is the newest, `step-N` are earlier ones, `best` is the model with the lowest loss.

A checkpoint is written whole next to the others before any name changes, and a name changes by one rename. Wherever a process
is killed, at least one whole checkpoint has a name that `newest_first` looks for.
"""

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from protein_lm import __version__
from protein_lm.checkpoint.checksums import write_checksums
from protein_lm.checkpoint.directory import BEST, LAST, write_model
from protein_lm.checkpoint.training_state import STATE_FACTS, STATE_TENSORS, write_training_state
from protein_lm.checkpoint.weights import model_tensors
from protein_lm.config import FineTuningRecipe, Recipe
from protein_lm.errors import OutputError
from protein_lm.files.output import clear_errors, new_directory, new_file, recover
from protein_lm.files.plain_files import read_json
from protein_lm.training.optimizer import optimizer_tensors
from protein_lm.training.processes import whole_on_cpu
from protein_lm.training.progress import Progress
from protein_lm.training.run_log import RECIPE, RunLog
from protein_lm.training.task import Task, TrainedModel

Tensors = Mapping[str, Mapping[str, Tensor]]
"""The tensors of a checkpoint, by file and name."""
_EARLIER = "step-"


class Checkpoints:
    """The checkpoints in a run's folder."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def newest_first(self) -> list[Path]:
        """All checkpoints. One whose step cannot be read counts as the newest, `last` as older than another of its step."""
        names = [path for path in self.run.glob(f"{_EARLIER}*") if path.name.removeprefix(_EARLIER).isdecimal()]
        found = [(_step(path), path) for path in (self.run / LAST, *names) if path.is_dir()]
        return [path for _, path in sorted(found, key=lambda pair: (-pair[0], pair[1].name == LAST))]

    def steps(self) -> dict[str, float]:
        """The steps of all checkpoints by their names; infinity where it cannot be read."""
        return {path.name: _step(path) for path in self.newest_first()}

    def write(self, step: int, write: Callable[[Path], None], *, keep: int) -> None:
        """Let `write` fill a folder, which becomes `last`; keep the newest `keep` checkpoints.

        Raises:
            OutputError: it cannot be written; earlier ones are unchanged.
        """
        new = self.run / f"{_EARLIER}{step}"
        with new_directory(new, replace=True) as folder:
            write(folder)
        self._rename_newest(keep)

    def tidy(self, damaged: list[Path], *, keep: int) -> None:
        """Prepare to resume: move damaged checkpoints out of the way, remove what killed processes left.

        A whole checkpoint whose process was killed before it got its name gets it now.
        """
        for path in damaged:
            self._set_aside(path)
        for hidden in self.run.glob(".*.*-*"):
            recover(hidden.with_name(hidden.name[1:].rpartition(".")[0]))
        self._rename_newest(keep)

    def _rename_newest(self, keep: int) -> None:
        """Make the newest checkpoint `last`, and keep the newest `keep`."""
        last = self.run / LAST
        before = _step(last)
        if before == math.inf:
            self._set_aside(last)
        new = self.newest_first()[0]
        with clear_errors(last):
            if new != last:
                if before == _step(new):
                    _remove(last)
                elif last.exists():
                    last.rename(self.run / f"{_EARLIER}{before}")
                new.rename(last)
            for path in self.newest_first()[keep:]:
                _remove(path)

    def _set_aside(self, damaged: Path) -> None:
        number = 1
        while (aside := self.run / f"damaged-{number}").exists():
            number += 1
        with clear_errors(aside), suppress(FileNotFoundError):
            damaged.rename(aside)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint. If killed in between, it leaves a hidden folder for `tidy`, and no damaged checkpoint."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.partial-removed")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


def _step(checkpoint: Path) -> float:
    """Step of a checkpoint, or infinity."""
    try:
        return int(read_json(checkpoint / STATE_FACTS)["progress"]["step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return math.inf


class Saver:
    """Writes the best model and the checkpoints of a run."""

    def __init__(
        self,
        run: Path,
        task: Task,
        recipe: Recipe | FineTuningRecipe,
        model: TrainedModel,
        progress: Progress,
        changes: list[dict[str, Any]],
    ) -> None:
        """Keep references: `progress` and the weights of `model` change while the run trains."""
        self._run, self._task, self._recipe, self._model = run, task, recipe, model
        self._progress, self._changes = progress, changes
        self._checkpoints = Checkpoints(run)
        self.last_saved = progress.step
        """Step of the newest checkpoint."""

    def prepare_folder(self, first: Tensors, damaged: list[Path]) -> None:
        """Make a new run's folder with the checkpoint of its first step, or tidy that of a resumed one."""
        run, recipe = self._run, yaml.safe_dump(self._recipe.model_dump(mode="json"), sort_keys=False)
        if not run.exists():
            with new_directory(run, is_claimed=True) as folder:
                (folder / RECIPE).write_text(recipe, encoding="utf-8")
                (folder / LAST).mkdir()
                self._write_checkpoint(folder / LAST, first)
            return
        self._checkpoints.tidy(damaged, keep=self._recipe.training.keep_checkpoints)
        if (run / RECIPE).read_text(encoding="utf-8") != recipe:
            with new_file(run / RECIPE, replace=True) as partial:
                partial.write_text(recipe, encoding="utf-8")

    def save(self, name: str, log: RunLog, *, must: bool) -> bool:
        """Write `best` (a model) or `last` (a model and the training state); return whether that succeeded.

        Raises:
            OutputError: it failed, and `must` is True.
        """
        failed, tensors = torch.zeros(1), self.tensors(name)
        if self._model.accelerator.is_main_process:
            try:
                self._write(name, tensors)
            except OutputError as error:
                if must:
                    raise
                failed += 1
                log.line(f"step {self._progress.step}: {error}; the run goes on, and {name} stays as it was")
        saved = not self._model.total(failed)
        if saved and name == LAST:
            self.last_saved = self._progress.step
        return saved

    def tensors(self, name: str) -> Tensors:
        """The tensors of `best` or `last`. All processes must call this: they gather the weights that they hold shards of."""
        model = self._model
        files = model_tensors(model.plain, base=model.base, head=model.head)
        if name == LAST:
            files[STATE_TENSORS] = optimizer_tensors(model.optimizers)
        if not model.is_sharded:
            return files
        keep = model.accelerator.is_main_process
        return {file: whole_on_cpu(tensors, keep=keep) for file, tensors in files.items()}

    def _write(self, name: str, tensors: Tensors) -> None:
        if name == LAST:
            keep = self._recipe.training.keep_checkpoints
            self._checkpoints.write(self._progress.step, lambda new: self._write_checkpoint(new, tensors), keep=keep)
            return
        with new_directory(self._run / BEST, replace=True) as folder:
            self._write_model(folder, tensors)
            write_checksums(folder)

    def _write_checkpoint(self, folder: Path, tensors: Tensors) -> None:
        self._write_model(folder, {file: content for file, content in tensors.items() if file != STATE_TENSORS})
        state = {
            "progress": asdict(self._progress),
            "recipe": self._recipe.model_dump(mode="json"),
            "changes": self._changes,
            "corpus": self._task.data.identity,
            "protein_lm_version": __version__,
        }
        write_training_state(folder, state, tensors[STATE_TENSORS])
        write_checksums(folder)

    def _write_model(self, folder: Path, tensors: Tensors) -> None:
        model, best = self._model, self._progress.best_loss
        facts = {
            "step": self._progress.step,
            "num_tokens": self._progress.num_tokens,
            f"best_validation_{self._task.loss_name}": None if math.isinf(best) else best,
            "corpus": {source["name"]: source["sha256"] for source in self._task.data.sources},
        }
        write_model(model.plain, folder, facts=facts, base=model.base, head=model.head, tensors=tensors)
