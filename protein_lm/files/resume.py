"""Long work that another process can resume after an interruption, to the same bytes.

Work is cut into parts. Their results lie in one folder: files that grow at their end, whole files, and a saved state. The
state lists the settings that determine the result, and size and checksum of each growing file. So it need not be forced to
disk: a state is trusted only if its files still have their checksums, even after a power cut.

| folder | made by | resumed |
|---|---|---|
| `OUTPUT.unfinished`, next to the output | `unfinished_work` | when the user asks for it, with `--resume` |
| hidden, next to the output | `resumable_directory` | by the next run with the same settings |
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import xxhash

from protein_lm.errors import OutputError, ProteinLMError
from protein_lm.files.output import check_absent, claimed, clear_errors, flush, flush_tree, give_name, new_directory
from protein_lm.native.freed_memory import return_freed_memory

STATE = "progress.json"
_FORMAT = 2
"""Version of the saved state's form."""
_READ_BYTES = 2**22


class Mark(TypedDict):
    """Size and checksum of a growing file when a state was saved."""

    bytes: int
    header_bytes: int
    xxh3_128: str
    """Checksum of the bytes behind the header."""


class Growth:
    """Size and running checksum of a file that grows at its end. The checksum leaves out the header."""

    def __init__(self, header_bytes: int = 0) -> None:
        self._header_bytes = self.num_bytes = header_bytes
        self._digest = xxhash.xxh3_128()

    @classmethod
    def restore(cls, path: Path, mark: Mark) -> "Growth | None":
        """Cut a file back to a mark; None if it does not hold any more what it held then."""
        growth = cls(mark["header_bytes"])
        with path.open("r+b") as file:
            file.seek(growth.num_bytes)
            while part := file.read(min(_READ_BYTES, mark["bytes"] - growth.num_bytes)):
                growth.add(part)
            file.truncate(growth.num_bytes)
        return growth if growth.mark() == mark else None

    def add(self, content: bytes | memoryview) -> None:
        """Count bytes that are appended."""
        self._digest.update(content)
        self.num_bytes += memoryview(content).nbytes

    def mark(self) -> Mark:
        """Return what a later process compares the file with."""
        return {"bytes": self.num_bytes, "header_bytes": self._header_bytes, "xxh3_128": self._digest.hexdigest()}


class StateError(Exception):
    """A saved state that cannot be trusted, and why; `differing` names settings that are not the same."""

    def __init__(self, fault: str, *, differing: list[str] | None = None) -> None:
        super().__init__(fault)
        self.differing = differing


class WorkFolder:
    """A folder of work that can be resumed from the state that was saved last.

    Args:
        folder: an existing folder.
        settings: all that determines the result but the input, by name, as JSON gives it back.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.state: dict[str, Any] | None = None
        """The state saved last, by another process too; None: nothing is saved."""
        self.growths: dict[str, Growth] = {}
        """Growing files by name. Who writes a file without `append` adds it here."""
        self._settings = settings or {}
        self._appended: dict[str, BinaryIO] = {}
        self._whole: set[str] = set()
        self._removed: set[str] = set()
        """Files to delete when the next state is saved: the last one counts on them."""

    def append(self, name: str, content: bytes | memoryview) -> None:
        """Append to a growing file, which is made if need be; the name of a removed file is not used again."""
        assert name not in self._removed
        if name not in self._appended:
            self._appended[name] = (self.folder / name).open("ab" if name in self.growths else "wb")
        self._appended[name].write(content)
        self.growths.setdefault(name, Growth()).add(content)

    def flushed(self, name: str) -> Path:
        """Return the path of a growing file that holds all that was appended."""
        if name in self._appended:
            self._appended[name].flush()
        return self.folder / name

    def num_bytes(self, name: str) -> int:
        """Return the size of a growing file, 0 if there is none."""
        return self.growths[name].num_bytes if name in self.growths else 0

    def remove(self, name: str) -> None:
        """Delete a growing file: at once, or with the next save if the last saved state counts on it."""
        if name in self._appended:
            self._appended.pop(name).close()
        del self.growths[name]
        if self.state is None:
            (self.folder / name).unlink()
        else:
            self._removed.add(name)

    def keep(self, name: str) -> None:
        """Count a whole file of the folder as done from the next save on."""
        flush(self.folder / name)
        self._whole.add(name)

    def save(self, state: dict[str, Any]) -> None:
        """Save how far the work is, as JSON can hold it."""
        for file in self._appended.values():
            file.flush()
        saved = {
            "format": _FORMAT,
            "settings": self._settings,
            "state": state,
            "growing": {name: growth.mark() for name, growth in self.growths.items()},
            "whole": sorted(self._whole),
        }
        text = json.dumps(saved).encode()
        partial = self.folder / f"{STATE}.new"
        partial.write_bytes(xxhash.xxh3_128_hexdigest(text).encode() + b"\n" + text)
        partial.replace(self.folder / STATE)
        self.state = state
        while self._removed:
            (self.folder / self._removed.pop()).unlink()
        return_freed_memory()

    def restore(self) -> None:
        """Take over what another process saved: the files become what they were then.

        Raises:
            StateError: the state is damaged, or of other settings, or a file does not fit it.
        """
        checksum, _, text = (self.folder / STATE).read_bytes().partition(b"\n")
        if checksum != xxhash.xxh3_128_hexdigest(text).encode():
            raise StateError("its saved state is damaged")
        saved = json.loads(text)
        if saved.get("format") != _FORMAT:
            raise StateError("another version of protein-lm saved its state")
        if differing := [name for name, value in self._settings.items() if saved["settings"].get(name) != value]:
            raise StateError(f"not the same: {', '.join(differing)}", differing=differing)
        self._whole = set(saved["whole"])
        for name in (*saved["growing"], *self._whole):
            if not (self.folder / name).exists():
                raise StateError(f"its file {name} is missing")
        for name, mark in saved["growing"].items():
            if (growth := Growth.restore(self.folder / name, mark)) is None:
                raise StateError(f"its file {name} is damaged")
            self.growths[name] = growth
        for path in self.folder.iterdir():
            if path.name not in (*self.growths, *self._whole, STATE):
                path.unlink()
        self.state = saved["state"]

    def forget(self) -> None:
        """Delete the saved state, since files that it counts on are about to change."""
        (self.folder / STATE).unlink(missing_ok=True)
        self.state = None

    def close(self) -> None:
        """Close the files that `append` opened."""
        while self._appended:
            with suppress(OSError):  # a full disk refuses what nobody asked to be flushed
                self._appended.popitem()[1].close()

    def finish_as_folder(self, output: Path, *, without_whole: bool = False) -> None:
        """Give the folder its final name, without growing files and state; `without_whole` leaves out whole files too."""
        flush_tree(self.folder)
        give_name(self.folder, output)
        self.close()
        for name in (*self.growths, *(self._whole if without_whole else ()), STATE):
            (output / name).unlink()


@contextmanager
def unfinished_work(output: Path, settings: Mapping[str, Any], *, resume: bool) -> Iterator[WorkFolder]:
    """Yield the folder `OUTPUT.unfinished`, with what a stopped process did if `resume` is True and there is any.

    On an error the folder stays if anything was saved. Otherwise it is removed.

    Args:
        output: what is being made; it must not exist.
        settings: as for `WorkFolder`.
        resume: whether to resume.

    Raises:
        OutputError: the output exists, or another process makes it. Or saved work exists but `resume` is False, or it is
            damaged or of other settings.
    """
    check_absent(output)
    folder = output.with_name(f"{output.name}.unfinished")
    work = WorkFolder(folder, settings)
    with clear_errors(output), claimed(output):
        check_absent(output)  # another command may have made it meanwhile
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if not (folder / STATE).exists():
                for path in folder.iterdir():  # a process was killed before it saved anything
                    path.unlink()
            elif resume:
                _restore(work)
            else:
                raise OutputError(
                    f"{folder} holds the work of a stopped command; resume it with --resume, or remove it"
                )
            yield work
        except BaseException as error:
            work.close()
            if not (folder / STATE).exists():
                shutil.rmtree(folder, ignore_errors=True)
            elif work.state is not None and isinstance(error, ProteinLMError):
                raise type(error)(f"{error}; the work done before is kept, resume it with --resume") from error
            raise
        work.close()
        shutil.rmtree(folder, ignore_errors=True)


def _restore(work: WorkFolder) -> None:
    remedy = f"remove {work.folder} to start over"
    try:
        work.restore()
    except StateError as error:
        if error.differing:
            differing = ", ".join(error.differing)
            raise OutputError(
                f"{work.folder} was begun with another {differing}; give the same, or {remedy}"
            ) from error
        raise OutputError(f"{work.folder}: {error}; {remedy}") from error


@contextmanager
def resumable_directory(
    output: Path,
    settings: Mapping[str, Any],
    *,
    check_input: Callable[[dict[str, Any]], None],
    say: Callable[[str], None],
) -> Iterator[WorkFolder]:
    """Yield a hidden folder that becomes `output`, as `new_directory` does; one that a killed process left is resumed.

    Args:
        output: the folder to make; it must not exist.
        settings: as for `WorkFolder`.
        check_input: given a saved state, raises StateError if the input that it read has changed.
        say: called with a line that says why work starts over.

    Raises:
        OutputError: as `new_directory`.
    """
    resumed: list[WorkFolder] = []

    def adopt(folder: Path) -> bool:
        if not (folder / STATE).exists():
            return False
        work = WorkFolder(folder, settings)
        try:
            work.restore()
            check_input(work.state or {})
        except (StateError, OSError) as error:
            fault = str(error) if isinstance(error, StateError) else "not all of it can be read"
            say(f"{output}: starting over what a killed run had begun, because {fault}")
            return False
        resumed.append(work)
        return True

    with new_directory(output, adopt=adopt) as folder:
        work = resumed[0] if resumed else WorkFolder(folder, settings)
        try:
            yield work
        finally:
            work.close()
