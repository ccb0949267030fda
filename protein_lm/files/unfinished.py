"""Long work on a stream of sequences that a stopped process can go on with, to the same bytes.

What is done so far lies in the folder `OUTPUT.unfinished` beside the output: files that grow at their end, whole files, and a
saved state. On the way nothing but whole files is forced to disk: what is found damaged is refused.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from protein_lm.errors import OutputError, ProteinLMError
from protein_lm.files.journal import Growth
from protein_lm.files.output import check_absent, claimed, clear_errors, flush_tree, give_name
from protein_lm.native.memory import return_freed_memory

STATE = "progress.json"


class Unfinished:
    """The folder of one piece of work. Made by `unfinished`."""

    def __init__(self, output: Path, facts: dict[str, Any]) -> None:
        self.output = output
        self.folder = folder_of(output)
        self.state: dict[str, Any] | None = None
        """As it was saved last, by a stopped process too; None: nothing is saved."""
        self._facts = facts
        self._growing: dict[str, tuple[BinaryIO, Growth]] = {}
        self._whole: set[str] = set()
        self._retired: set[str] = set()
        self._dropped: set[str] = set()

    def grow(self, name: str, content: bytes | memoryview) -> None:
        """Append to a file, which is made if it is not there."""
        if name not in self._growing:
            self._growing[name] = (self.folder / name).open("wb"), Growth()
        file, growth = self._growing[name]
        file.write(content)
        growth.add(content)

    def path_of_grown(self, name: str) -> Path:
        """A growing file with all that was appended so far in it."""
        self._growing[name][0].flush()
        return self.folder / name

    def num_bytes(self, name: str) -> int:
        """Size of a growing file, 0 if it is not there."""
        return self._growing[name][1].num_bytes if name in self._growing else 0

    def retire(self, name: str) -> None:
        """Give up a growing file. It stays until the next state is saved, since the last one may count on it."""
        self._growing.pop(name)[0].close()
        self._retired.add(name)

    def keep(self, name: str) -> None:
        """Count a whole file, written into the folder, as done from the next state on."""
        flush_tree(self.folder / name)
        self._whole.add(name)

    def drop(self) -> None:
        """Leave the whole files kept so far out of the finished folder."""
        self._dropped |= self._whole

    def save(self, state: dict[str, Any]) -> None:
        """Save where the work is, as JSON can hold it."""
        for file, _ in self._growing.values():
            file.flush()
        marks = {name: growth.mark() for name, (_, growth) in self._growing.items()}
        saved = {"facts": self._facts, "state": state, "growing": marks, "whole": sorted(self._whole)}
        text = json.dumps(saved).encode()
        partial = self.folder / f"{STATE}.new"
        partial.write_bytes(xxhash.xxh3_128_hexdigest(text).encode() + b"\n" + text)
        partial.replace(self.folder / STATE)
        self.state = state
        while self._retired:
            (self.folder / self._retired.pop()).unlink()
        return_freed_memory()

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._growing.values():
            file.close()
        self._growing = {}

    def finish_as_folder(self) -> None:
        """Give the folder the name of the output; growing files, those that were dropped and the state go."""
        flush_tree(self.folder)
        give_name(self.folder, self.output)
        for name in [*self._growing, *self._dropped, STATE]:
            (self.output / name).unlink()
        self.close()

    def clear(self) -> None:
        """Remove what a stopped process left before it saved anything."""
        for path in self.folder.iterdir():
            path.unlink()

    def restore(self) -> None:
        """Take over what a stopped process saved.

        Raises:
            OutputError: it is damaged, or of other work.
        """
        remedy = f"remove {self.folder} to start over"
        checksum, _, text = (self.folder / STATE).read_bytes().partition(b"\n")
        if checksum != xxhash.xxh3_128_hexdigest(text).encode():
            raise OutputError(f"{self.folder}: its saved state is damaged; {remedy}")
        saved = json.loads(text)
        if differ := [name for name, fact in self._facts.items() if saved["facts"].get(name) != fact]:
            raise OutputError(f"{self.folder} was begun with another {', '.join(differ)}; give the same, or {remedy}")
        for name, mark in saved["growing"].items():
            path = self.folder / name
            growth = Growth.restore(path, mark) if path.exists() else None
            if growth is None:
                raise OutputError(f"{path}: damaged or missing; {remedy}")
            self._growing[name] = path.open("ab"), growth
        self._whole = set(saved["whole"])
        for name in self._whole:
            if not (self.folder / name).exists():
                raise OutputError(f"{self.folder / name} is missing; {remedy}")
        for path in self.folder.iterdir():
            if path.name not in self._growing and path.name not in self._whole and path.name != STATE:
                path.unlink()
        self.state = saved["state"]


def folder_of(output: Path) -> Path:
    """Where unfinished work on an output lies."""
    return output.with_name(f"{output.name}.unfinished")


@contextmanager
def unfinished(output: Path, facts: dict[str, Any], *, resume: bool) -> Iterator[Unfinished]:
    """The folder of work on `output`, with what a stopped process did if `resume` is True and there is any.

    On an error the folder stays if anything was saved, and is removed otherwise; in the end it is removed.

    Args:
        output: what is being made; it must not be there.
        facts: all that determines the result but the input, by name, as JSON gives it back.
        resume: whether to go on.

    Raises:
        OutputError: the output is there; another process is at work on it; saved work is there but `resume` is False, or it
            is damaged or of other facts.
    """
    check_absent(output)
    folder = folder_of(output)
    work = Unfinished(output, facts)
    with clear_errors(output), claimed(output):
        check_absent(output)  # another command may have made it meanwhile
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if (folder / STATE).exists():
                if not resume:
                    raise OutputError(
                        f"{folder} holds what a stopped command had done; go on with --resume, or remove it"
                    )
                work.restore()
            else:
                work.clear()
            yield work
        except BaseException as error:
            work.close()
            if not (folder / STATE).exists():
                shutil.rmtree(folder, ignore_errors=True)
            elif work.state is not None and isinstance(error, ProteinLMError):
                raise type(error)(f"{error}; what was done before is kept, go on with --resume") from error
            raise
        work.close()
        shutil.rmtree(folder, ignore_errors=True)
