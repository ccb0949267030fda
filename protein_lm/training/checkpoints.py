"""The checkpoints of a run: `last` is the newest, `step-N` are those before it.

Each is written whole beside the others before any name changes, and a name changes by one rename, so that wherever a process
is killed, at least one whole checkpoint is there under a name that `newest_first` looks for.
"""

import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from protein_lm.checkpoint.directory import LAST
from protein_lm.checkpoint.training_state import STATE_FACTS
from protein_lm.files.output import clear_errors, new_directory, recover
from protein_lm.files.plain_files import read_json

_EARLIER = "step-"


class Checkpoints:
    """The checkpoints in a run's folder."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def newest_first(self) -> list[Path]:
        """All checkpoints; one that does not tell its step counts as the newest, `last` as older than another of its step."""
        names = [path for path in self.run.glob(f"{_EARLIER}*") if path.name.removeprefix(_EARLIER).isdecimal()]
        found = [(_step(path), path) for path in (self.run / LAST, *names) if path.is_dir()]
        return [path for _, path in sorted(found, key=lambda pair: (-pair[0], pair[1].name == LAST))]

    def steps(self) -> dict[str, float]:
        """The steps of all checkpoints by their names; infinity for one that does not tell."""
        return {path.name: _step(path) for path in self.newest_first()}

    def write(self, step: int, write: Callable[[Path], None], *, keep: int) -> None:
        """Let `write` fill a folder, which becomes `last`; of all checkpoints the newest `keep` stay.

        Raises:
            OutputError: it cannot be written; those before it are as they were.
        """
        new = self.run / f"{_EARLIER}{step}"
        with new_directory(new, replace=True) as folder:
            write(folder)
        self._name(keep)

    def tidy(self, damaged: list[Path], *, keep: int) -> None:
        """Before a run goes on: move damaged checkpoints out of the way, remove what killed processes left.

        A checkpoint that was written whole, but had not got its name yet when the process was killed, gets it.
        """
        for path in damaged:
            self._set_aside(path)
        for hidden in self.run.glob(".*.*-*"):
            recover(hidden.with_name(hidden.name[1:].rpartition(".")[0]))
        self._name(keep)

    def _name(self, keep: int) -> None:
        """Make the newest checkpoint `last`; of all of them the newest `keep` stay."""
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
    """Remove a checkpoint; killed in between, it leaves a hidden folder, which is tidied up, and no damaged checkpoint."""
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
