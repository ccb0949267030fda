"""UniProt's release files: fetched, gone on with where a transfer broke, and checked against the release's own list.

Beside each group of files the server keeps `RELEASE.metalink` with the release and, for each file, its size and MD5. A file
under its final name has passed both. What was fetched so far stands as `NAME.part`, with what it is a part of in
`NAME.part.json`.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

import httpx2

from protein_lm.errors import ConfigError, InputError, OutputError
from protein_lm.output import check_absent, clear_errors

BASE = "https://ftp.uniprot.org/pub/databases/uniprot/"
CURRENT = "current"
FILES = {
    "swissprot": "current_release/knowledgebase/complete/uniprot_sprot.fasta.gz",
    "trembl": "current_release/knowledgebase/complete/uniprot_trembl.fasta.gz",
    "uniref50": "current_release/uniref/uniref50/uniref50.fasta.gz",
    "uniref90": "current_release/uniref/uniref90/uniref90.fasta.gz",
    "uniref100": "current_release/uniref/uniref100/uniref100.fasta.gz",
}
"""What can be fetched -> its place under the base address."""
METALINK = "RELEASE.metalink"
STORE_BYTES_PER_BYTE = 1.8
"""Of a prepared store, per byte of .fasta.gz."""
_BLOCK_BYTES = 2**20
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416
_ATTEMPTS = 6
_ATTEMPTS_TO_FIND = 3
_FIRST_PAUSE_SECONDS = 1.0
_STALL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ReleaseFile:
    """A file of a release, as the server's list has it."""

    url: str
    release: str
    num_bytes: int
    md5: str

    @property
    def name(self) -> str:
        """Its name on disk."""
        return self.url.rpartition("/")[2]


class Server:
    """UniProt's release server, or a mirror of it."""

    def __init__(
        self, base: str = BASE, *, stall_seconds: float = _STALL_SECONDS, pause_seconds: float = _FIRST_PAUSE_SECONDS
    ) -> None:
        """Take the base address, how long a transfer may stand still, and the first pause between attempts.

        Raises:
            ConfigError: the address is not http or https.
        """
        if not base.startswith(("http://", "https://")):
            raise ConfigError(f"{base}: the base address must begin with http:// or https://")
        self._base = base if base.endswith("/") else base + "/"
        self._pause_seconds = pause_seconds
        self._client = httpx2.Client(follow_redirects=True, timeout=stall_seconds)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def find(self, name: str, release: str = CURRENT) -> ReleaseFile:
        """What the server has of `name` (one of FILES).

        Raises:
            ConfigError: an unknown name.
            InputError: the server cannot be reached, does not list the file, or has another release.
        """
        if name not in FILES:
            raise ConfigError(f"{name!r} cannot be fetched; choose from {', '.join(FILES)}")
        url = self._base + FILES[name]
        folder, _, file_name = url.rpartition("/")
        found, size, md5 = _listed(self._text(f"{folder}/{METALINK}"), f"{folder}/{METALINK}", file_name)
        if release not in (CURRENT, found):
            raise InputError(
                f"the server has release {found}, not {release}; UniProt keeps older ones as archives of several files under "
                f"{self._base}previous_releases/release-{release}/: unpack one and give its files to data prepare"
            )
        return ReleaseFile(url, found, size, md5)

    def fetch(self, file: ReleaseFile, folder: Path, on_progress: Callable[[int], None] | None = None) -> Path:
        """Fetch a file into a folder, from where an earlier attempt stopped.

        Args:
            file: what `find` gave.
            folder: where to; made if need be.
            on_progress: called with the bytes that are there so far.

        Raises:
            InputError: the server cannot be reached or broke off too often, or what came is not what the release lists.
            OutputError: the file exists already, or there is no room for it.
        """
        target = folder / file.name
        check_absent(target)
        with clear_errors(target):
            folder.mkdir(parents=True, exist_ok=True)
            partial = _Partial(target, file)
            partial.reserve()
            self._fetch_rest(file, partial, on_progress)
            partial.check()
            partial.path.rename(target)
            partial.note.unlink()
        return target

    def _fetch_rest(self, file: ReleaseFile, partial: "_Partial", on_progress: Callable[[int], None] | None) -> None:
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
                    f"{file.num_bytes:,} bytes are there, and the same command goes on with them"
                )
            time.sleep(pause)
            pause *= 2

    def _transfer(self, file: ReleaseFile, partial: "_Partial", on_progress: Callable[[int], None] | None) -> None:
        start = partial.size
        headers = (
            {"Range": f"bytes={start}-", "Accept-Encoding": "identity"} if start else {"Accept-Encoding": "identity"}
        )
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

    def _text(self, url: str) -> bytes:
        pause = self._pause_seconds
        for attempt in range(1, _ATTEMPTS_TO_FIND + 1):
            try:
                response = self._client.get(url)
                response.raise_for_status()
                return response.content
            except httpx2.HTTPStatusError as error:
                raise InputError(
                    f"{url}: the server says {error.response.status_code}; check the base address"
                ) from error
            except httpx2.HTTPError as error:
                if attempt == _ATTEMPTS_TO_FIND:
                    raise InputError(
                        f"{url} cannot be reached ({str(error) or type(error).__name__}); check network and base address"
                    ) from error
                time.sleep(pause)
                pause *= 2
        raise AssertionError


class _Partial:
    """What is there of a file so far."""

    def __init__(self, target: Path, file: ReleaseFile) -> None:
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")
        self._file = file
        facts = json.dumps(asdict(file))
        if self.path.exists() and (not self.note.exists() or self.note.read_text() != facts):
            self.restart()  # of another release, or of unknown origin
        self.note.write_text(facts)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def restart(self) -> None:
        """Forget what is there."""
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
        """Raise InputError if size or MD5 are not those of the release."""
        digest = hashlib.md5(usedforsecurity=False)
        with self.path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        found = f"{self.size:,} bytes with MD5 {digest.hexdigest()}"
        if self.size != self._file.num_bytes or digest.hexdigest() != self._file.md5:
            self.restart()
            self.note.unlink()
            raise InputError(
                f"{self._file.url}: what came has {found} instead of {self._file.num_bytes:,} bytes with MD5 "
                f"{self._file.md5}; it was removed, fetch it again"
            )


def _listed(text: bytes, url: str, name: str) -> tuple[str, int, str]:
    """Release, size and MD5 of a file in a metalink."""
    try:
        root = ElementTree.fromstring(text)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        release = (root.findtext("version") or "").strip()
        for file in root.iter("file"):
            if file.get("name") == name:
                md5 = next(hash_.text or "" for hash_ in file.iter("hash") if hash_.get("type") == "md5")
                return release, int(file.findtext("size") or ""), md5.strip().lower()
    except (ElementTree.ParseError, StopIteration, ValueError) as error:
        raise InputError(f"{url} is no list of files with sizes and checksums; check the base address") from error
    raise InputError(f"{url} does not list {name}; check the base address")
