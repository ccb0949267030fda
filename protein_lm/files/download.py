"""Downloads files over HTTP, resumes broken transfers, and checks the result.

A file under its final name is whole. The bytes fetched so far are in `NAME.part`, and the facts of the file in
`NAME.part.json`.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2

from protein_lm.errors import InputError, OutputError
from protein_lm.files.output import check_absent, checksum, claimed, clear_errors, give_name

_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416
_ATTEMPTS = 6
_ATTEMPTS_TO_FIND = 3
_FIRST_PAUSE_SECONDS = 1.0
_STALL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on a server."""

    url: str
    release: str
    """Release, or the server's tag of the content: it differs for another file at the same address."""
    num_bytes: int
    md5: str | None
    """None if the server does not tell."""

    @property
    def name(self) -> str:
        """Its name on disk."""
        return self.url.rpartition("/")[2]


class Connection:
    """Requests to a server that may be slow, break off, or be unreachable."""

    def __init__(self, *, stall_seconds: float = _STALL_SECONDS, pause_seconds: float = _FIRST_PAUSE_SECONDS) -> None:
        """Set how long a transfer may stand still, and the first pause between attempts."""
        self._pause_seconds = pause_seconds
        self._client = httpx2.Client(follow_redirects=True, timeout=stall_seconds)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def fetch(self, file: RemoteFile, folder: Path, on_progress: Callable[[int], None] | None = None) -> Path:
        """Fetch a file into a folder, from where an earlier attempt stopped.

        Args:
            file: the file on the server.
            folder: the folder to write to; made if need be.
            on_progress: called with the number of bytes fetched so far, by earlier attempts too.

        Raises:
            InputError: the server cannot be reached, broke off too often, or sent other bytes than it announced.
            OutputError: the file exists already, another command fetches it, or there is no room for it.
        """
        target = folder / file.name
        check_absent(target)
        with clear_errors(target), claimed(target):
            check_absent(target)  # another command may have fetched it meanwhile
            partial = _PartialFile(target, file)
            partial.reserve()
            self._fetch_rest(file, partial, on_progress)
            partial.check()
            give_name(partial.path, target)
            partial.note.unlink()
        return target

    def _fetch_rest(self, file: RemoteFile, partial: "_PartialFile", on_progress: Callable[[int], None] | None) -> None:
        failures, pause = 0, self._pause_seconds
        while (before := partial.size) < file.num_bytes:
            try:
                self._transfer(file, partial, on_progress)
                fault = "the server ended the transfer early"
            except httpx2.HTTPError as error:
                fault = str(error) or type(error).__name__
            if partial.size > before:
                failures, pause = 0, self._pause_seconds
                continue
            failures += 1
            if failures == _ATTEMPTS:
                raise InputError(
                    f"{file.url} cannot be fetched: {fault}, {failures} times in a row; {partial.size:,} of "
                    f"{file.num_bytes:,} bytes are there, and the same command resumes from them"
                )
            time.sleep(pause)
            pause *= 2

    def _transfer(self, file: RemoteFile, partial: "_PartialFile", on_progress: Callable[[int], None] | None) -> None:
        start = partial.size
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with self._client.stream("GET", file.url, headers=headers) as response:
            if response.status_code == _RANGE_NOT_SATISFIABLE:
                partial.restart()
                return
            response.raise_for_status()
            if start and response.status_code != _PARTIAL_CONTENT:
                partial.restart()  # the server sends the whole file
            elif start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                partial.restart()
                return
            with partial.path.open("ab") as out:
                for block in response.iter_raw():
                    out.write(block)
                    if out.tell() > file.num_bytes:
                        break
                    if on_progress:
                        on_progress(out.tell())

    def request(self, url: str, method: str = "GET") -> httpx2.Response:
        """Return the answer to a small request.

        Raises:
            InputError: the server cannot be reached, or answers with an error.
        """
        pause = self._pause_seconds
        for attempt in range(1, _ATTEMPTS_TO_FIND + 1):
            try:
                response = self._client.request(method, url, headers={"Accept-Encoding": "identity"})
                response.raise_for_status()
                return response
            except httpx2.HTTPStatusError as error:
                raise InputError(f"{url}: the server says {error.response.status_code}; check the address") from error
            except httpx2.HTTPError as error:
                if attempt == _ATTEMPTS_TO_FIND:
                    raise InputError(
                        f"{url} cannot be reached ({str(error) or type(error).__name__}); check network and address"
                    ) from error
                time.sleep(pause)
                pause *= 2
        raise AssertionError


class _PartialFile:
    """The part of a file that was fetched so far."""

    def __init__(self, target: Path, file: RemoteFile) -> None:
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")
        self._file = file
        facts = json.dumps(asdict(file))
        if self.path.exists() and (not self.note.exists() or self.note.read_text() != facts):
            self.restart()  # of another release, or of unknown origin
        self.note.write_text(facts)

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def restart(self) -> None:
        """Delete the part."""
        self.path.unlink(missing_ok=True)

    def reserve(self) -> None:
        """Raise OutputError if the rest does not fit on the disk."""
        free, needed = shutil.disk_usage(self.path.parent).free, self._file.num_bytes - self.size
        if needed > free:
            raise OutputError(
                f"{self.path.parent} has {free:,} bytes free, and {needed:,} are to come; free some space or choose another "
                "folder"
            )

    def check(self) -> None:
        """Raise InputError if size or MD5, if known, differ from those that the server announced."""
        wanted = f"{self._file.num_bytes:,} bytes"
        found = f"{self.size:,} bytes"
        if self._file.md5 is not None:
            wanted += f" with MD5 {self._file.md5}"
            found += f" with MD5 {checksum(self.path, digest=hashlib.md5(usedforsecurity=False))}"
        if found != wanted:
            self.restart()
            self.note.unlink()
            raise InputError(
                f"{self._file.url}: what came has {found} instead of {wanted}; it was removed, fetch it again"
            )
