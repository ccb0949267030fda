"""Where an unfinished run of `data prepare` is, kept in its folder, so that the same command goes on when it was killed.

A saved state is trusted only if all that determines the result is the same, and if every byte that it builds on, of the
files that grow and of the source so far, still has its checksum. So nothing need be forced to disk on the way: what a
machine that lost its power did not write is noticed, and the run starts over.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import xxhash

from protein_lm.files.sources import STANDARD_INPUT

SAVED_SECONDS = 10.0
"""Between two saves, which take 0.07 s each: what a killed run loses at most."""
STATE = "progress.json"
_READ_BYTES = 2**22


class Mark(TypedDict):
    """What a file that grows held at a save."""

    bytes: int
    header_bytes: int
    xxh3_128: str
    """Of what stands behind the header."""


class Growth:
    """Size of a file that grows at its end, and the checksum of what stands behind its header."""

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

    def add(self, values: bytes | memoryview) -> None:
        """Note what is appended."""
        self._digest.update(values)
        self.num_bytes += memoryview(values).nbytes

    def mark(self) -> Mark:
        """What to compare with later."""
        return {"bytes": self.num_bytes, "header_bytes": self._header_bytes, "xxh3_128": self._digest.hexdigest()}


class Journal:
    """Saves the state of a run now and then, and finds that of a killed one.

    Args:
        output: the store that is made; for messages.
        sources: its sources; with standard input among them, which cannot be read again, nothing is saved.
        facts: all that determines the result, by name, as JSON gives it back.
        say: called with a line for the user.
    """

    def __init__(
        self,
        output: Path,
        sources: Sequence[Path],
        facts: dict[str, Any],
        *,
        say: Callable[[str], None] | None,
    ) -> None:
        self._output, self._sources, self._facts, self._say = output, sources, facts, say or (lambda line: None)
        self._saved = time.monotonic()
        self.state: dict[str, Any] | None = None
        """As it was saved by the killed run that is gone on with."""
        self.files: dict[str, Growth] = {}
        """Its files, by name."""

    def adopt(self, folder: Path) -> bool:
        """Whether this run can go on with what a killed one left; then the files are as they were when it saved last."""
        if not (folder / STATE).exists():
            return False
        try:
            fault = self._restore(folder)
        except OSError:
            fault = "not all of it can be read"
        if fault:
            self.state, self.files = None, {}
            self._say(f"{self._output}: starting over what a killed run had begun, because {fault}")
        return not fault

    def _restore(self, folder: Path) -> str:
        """Take over the state and the files; returns what is at fault, if anything is."""
        checksum, _, text = (folder / STATE).read_bytes().partition(b"\n")
        if checksum != xxhash.xxh3_128_hexdigest(text).encode():
            return "its saved state is damaged"
        saved = json.loads(text)
        if differ := [name for name in self._facts if saved["facts"].get(name) != self._facts[name]]:
            return f"not the same: {', '.join(differ)}"
        state = saved["state"]
        source, read = self._sources[len(state["sources"])], saved["read"]
        if _sha256(source, read["bytes"]) != read["sha256"]:
            return f"{source} has changed"
        for name, mark in saved["files"].items():
            growth = Growth.restore(folder / name, mark)
            if growth is None:
                return f"its file {name} is damaged"
            self.files[name] = growth
        for path in folder.iterdir():
            if path.name not in saved["files"] and path.name != STATE:
                path.unlink()
        self.state = state
        self._say(f"{self._output}: going on with what a killed run had begun, after {state['num_read']:,} records")
        return ""

    def is_due(self) -> bool:
        """Called after each part: whether it is time to save."""
        return time.monotonic() - self._saved >= SAVED_SECONDS and STANDARD_INPUT not in self._sources

    def save(self, folder: Path, state: dict[str, Any], files: Mapping[str, Mark], read: tuple[int, str]) -> None:
        """Save a state in the midst of a source.

        Args:
            folder: of the unfinished store.
            state: what JSON can hold; in it `sources`, those that are done, and `num_read`, records.
            files: marks of all files, by name.
            read: bytes that were read of the source at hand, at least those that the state knows, and their SHA-256.
        """
        facts = {"bytes": read[0], "sha256": read[1]}
        text = json.dumps({"facts": self._facts, "state": state, "files": files, "read": facts}).encode()
        partial = folder / f"{STATE}.new"
        partial.write_bytes(xxhash.xxh3_128_hexdigest(text).encode() + b"\n" + text)
        partial.replace(folder / STATE)
        self._saved = time.monotonic()

    def close(self, folder: Path) -> None:
        """Give up what was saved: the files will be altered."""
        (folder / STATE).unlink(missing_ok=True)


def _sha256(path: Path, num_bytes: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(min(_READ_BYTES, num_bytes)):
            digest.update(part)
            num_bytes -= len(part)
    return digest.hexdigest()
