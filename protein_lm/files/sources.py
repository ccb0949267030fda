"""Source files, plain or compressed (gzip, xz, Zstandard): read once from start to end, and hashed meanwhile."""

import gzip
import hashlib
import io
import lzma
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, cast

from isal import igzip, isal_zlib

from protein_lm.errors import InputError
from protein_lm.files.text import JoinedBlocks

BLOCK_BYTES = 2**21
"""Bytes of text worked on at a time: many for numpy, few enough for a processor's cache."""
STANDARD_INPUT = Path("-")
_READ_AHEAD, _DECOMPRESSED_AHEAD = 2, 8
"""Blocks that a thread reads ahead, and blocks that another decompresses ahead."""
_HASHED_LATER = 2
"""Pieces that wait to be hashed."""
_DEFLATE_ERROR = cast(type[Exception], isal_zlib.error)


SUFFIXES = frozenset(
    [".fasta", ".fa", ".faa", ".fas", ".fsa", ".pep", ".seq", ".dat", ".xml", ".csv", ".tsv", ".parquet"]
)
"""Suffixes of sequence files; `.gz`, `.xz`, `.zst` may follow."""
COMPRESSED_SUFFIXES = frozenset((".gz", ".xz", ".zst"))
_COMPRESSION = 2
"""About how much smaller compressed proteins are, at least."""


def sequence_files(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the files that paths name, in order, and the other files of folders. A folder names its sequence files.

    Raises:
        InputError: a folder has no sequence file, or a file is named twice.
    """
    files: list[Path] = []
    ignored: list[Path] = []
    for path in paths:
        if path == STANDARD_INPUT or not path.is_dir():
            files.append(path)
            continue
        inside = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
        wanted = [file for file in inside if file.is_file() and _suffix(file) in SUFFIXES]
        if not wanted:
            raise InputError(
                f"{path} has no sequence file: none ends in {', '.join(sorted(SUFFIXES))}, with or without .gz, .xz, .zst"
            )
        files += wanted
        ignored += [file for file in inside if file not in wanted]
    for number, file in enumerate(files):
        if file in files[:number]:
            raise InputError(f"{file} is named twice; name it once")
    return files, ignored


def text_bytes(paths: Sequence[Path]) -> int:
    """Estimate the bytes of text in files, 0 if a file has no size."""
    files = [path for path in paths if path.is_file()]
    if len(files) < len(paths):
        return 0
    ratios = [_COMPRESSION if path.suffix.lower() in COMPRESSED_SUFFIXES else 1 for path in files]
    return sum(path.stat().st_size * ratio for path, ratio in zip(files, ratios, strict=True))


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


class Source:
    """An open input file; `-` is standard input.

    Raises:
        InputError: the file is missing, a folder or unreadable.
    """

    def __init__(self, path: Path, *, block_bytes: int = BLOCK_BYTES) -> None:
        self.path = path
        self.block_bytes = block_bytes
        # A thread that waits for standard input would keep an interrupted program from ending.
        has_end = path != STANDARD_INPUT
        self._file = _HashedFile(_open(path), reads_ahead=has_end)
        self._text: IO[bytes] | None = None
        self._reading = ThreadPoolExecutor(1) if has_end else None  # and decompresses

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reading is not None:
            self._reading.shutdown(cancel_futures=True)  # before the files that it reads from
        if self._text is not None:
            self._text.close()
        self._file.close()

    @property
    def shown(self) -> Path:
        """Its name in messages."""
        return Path("standard input") if self.path == STANDARD_INPUT else self.path

    @property
    def is_plain_file(self) -> bool:
        """Whether the file is not compressed, and can be opened again by name."""
        return self._text is None and self.path != STANDARD_INPUT

    @property
    def bytes_read(self) -> int:
        """Bytes read so far of the file on disk."""
        return self._file.num_bytes

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of the bytes read so far."""
        return self._file.read_so_far()[1]

    def read_so_far(self) -> tuple[int, str]:
        """Return `bytes_read` and `sha256` of one moment; a thread may be reading on."""
        return self._file.read_so_far()

    def blocks(self) -> Iterator[bytes]:
        """Yield the file's contents, decompressed, `block_bytes` at a time.

        Raises:
            InputError: compressed data are truncated or damaged, or the disk cannot be read.
        """
        name = "file"
        try:
            pieces = self._file.pieces()
            first = next(pieces, b"")
            for magic, compression, open_compressed in _COMPRESSIONS:
                if first.startswith(magic):
                    name, self._text = compression, open_compressed(JoinedBlocks(first, pieces))
            text = self._text
            if text is None and self.block_bytes != BLOCK_BYTES:
                text = _buffered(JoinedBlocks(first, pieces))
            if text is not None:
                yield from _ahead(partial(text.read, self.block_bytes), self._reading, _DECOMPRESSED_AHEAD)
            elif first:
                yield first
                yield from pieces
        except (EOFError, gzip.BadGzipFile, _DEFLATE_ERROR, lzma.LZMAError) as error:
            raise InputError(f"{self.shown} {_fault(name, error)}; fetch or compress the file again") from error
        except OSError as error:
            if name == "zstd":  # Arrow's errors are of this class too
                raise InputError(f"{self.shown} {_fault(name, error)}; fetch or compress the file again") from error
            raise InputError(f"{self.shown} cannot be read: {error.strerror or error}") from error


def _ahead(read: Callable[[], bytes], thread: Executor | None, number: int) -> Iterator[bytes]:
    """Yield the results of `read` until one is empty; a thread computes up to `number` of them ahead."""
    if thread is None:
        yield from iter(read, b"")
        return
    pending = deque(thread.submit(read) for _ in range(number))
    while block := pending.popleft().result():
        pending.append(thread.submit(read))
        yield block


def _open_gzip(file: io.RawIOBase) -> IO[bytes]:
    return cast(IO[bytes], igzip.IGzipFile(fileobj=file, mode="rb"))


def _open_xz(file: io.RawIOBase) -> IO[bytes]:
    return cast(IO[bytes], lzma.LZMAFile(_buffered(file)))


def _open_zstd(file: io.RawIOBase) -> IO[bytes]:
    import pyarrow

    return cast(IO[bytes], pyarrow.CompressedInputStream(pyarrow.PythonFile(_buffered(file), "r"), "zstd"))


_COMPRESSIONS: tuple[tuple[bytes, str, Callable[[io.RawIOBase], IO[bytes]]], ...] = (
    (b"\x1f\x8b", "gzip", _open_gzip),
    (b"\xfd7zXZ\x00", "xz", _open_xz),
    (b"\x28\xb5\x2f\xfd", "zstd", _open_zstd),
)


def _buffered(file: io.RawIOBase) -> io.BufferedReader:
    return io.BufferedReader(file, BLOCK_BYTES)


class _HashedFile:
    """A raw file that knows how much of it was read, and the digest of that, which a thread computes."""

    def __init__(self, file: io.FileIO, *, reads_ahead: bool) -> None:
        self._file = io.BufferedReader(file)
        self._lock = threading.Lock()
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._reads_ahead = reads_ahead
        self._pending: deque[Future[None]] = deque()
        self.num_bytes = 0

    def pieces(self) -> Iterator[bytes]:
        """Yield the file, `BLOCK_BYTES` at a time; only the last piece may be shorter."""
        thread = self._thread if self._reads_ahead else None
        for piece in _ahead(partial(self._file.read, BLOCK_BYTES), thread, _READ_AHEAD):
            with self._lock:
                self._wait(most=_HASHED_LATER)
                self._pending.append(self._thread.submit(self._digest.update, piece))
                self.num_bytes += len(piece)
            yield piece

    def read_so_far(self) -> tuple[int, str]:
        """Return the bytes read until this moment, and their digest."""
        with self._lock:
            self._wait(most=0)
            return self.num_bytes, self._digest.hexdigest()

    def _wait(self, most: int) -> None:
        while len(self._pending) > most:
            self._pending.popleft().result()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._file.close()


def _open(path: Path) -> io.FileIO:
    if path == STANDARD_INPUT:
        if sys.stdin is None or sys.stdin.isatty():
            what = "closed" if sys.stdin is None else "a terminal"
            raise InputError(f"standard input is {what}; give a file, or pipe one in")
        return io.FileIO(sys.stdin.fileno(), "rb", closefd=False)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path} is a folder; name the sequence file in it")
        if not stat.S_ISREG(mode):
            raise InputError(f"{path} is not a regular file; write its contents to a file first")
        return io.FileIO(path, "rb")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the name") from error
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied; ask its owner or copy it") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _fault(name: str, error: Exception) -> str:
    if isinstance(error, EOFError):
        return f"is a truncated {name} file, or has a few other bytes after its data"
    if "Not a gzipped file" in str(error):
        return "has other bytes after the end of its gzip data"
    return f"is a damaged {name} file ({error})"
