"""A source file, plain or gzip: read once from start to end, decompressed and hashed on the way."""

import gzip
import hashlib
import io
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, cast

from isal import igzip_threaded, isal_zlib

from protein_lm.errors import InputError

BLOCK_BYTES = 2**20
"""Text is worked on in blocks of this many bytes: long for numpy, short enough for a processor's cache."""
_DEFLATE_ERROR = cast(type[Exception], isal_zlib.error)
_GZIP_MAGIC = b"\x1f\x8b"


class Source:
    """An open input file.

    Raises:
        InputError: the file is missing, a folder or unreadable.
    """

    def __init__(self, path: Path, *, block_bytes: int = BLOCK_BYTES) -> None:
        self.path = path
        self.block_bytes = block_bytes
        self._file = _HashedFile(_open(path))
        self._buffer = io.BufferedReader(self._file, BLOCK_BYTES)
        self._text: IO[bytes] | None = None

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._text is not None:
            self._text.close()  # before the file that it reads from: it has a thread of its own
        self._buffer.close()

    @property
    def bytes_read(self) -> int:
        """Bytes read so far of the file as it lies on disk."""
        return self._file.num_bytes

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of the bytes read so far."""
        return self._file.digest.hexdigest()

    def blocks(self) -> Iterator[bytes]:
        """The file's contents, decompressed, `block_bytes` at a time.

        Raises:
            InputError: compressed data are truncated or damaged, or the disk cannot be read.
        """
        try:
            if self._buffer.peek(2)[:2] == _GZIP_MAGIC:
                self._text = cast(IO[bytes], igzip_threaded.open(self._buffer, "rb"))
            while block := (self._text or self._buffer).read(self.block_bytes):
                yield block
        except (EOFError, gzip.BadGzipFile, _DEFLATE_ERROR) as error:
            raise InputError(f"{self.path} {_gzip_fault(error)}; fetch or compress the file again") from error
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror or error}") from error


class _HashedFile(io.RawIOBase):
    """A raw file that remembers how much of it was read, and the digest of that."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        size = self._file.readinto(buffer) or 0
        self.digest.update(buffer[:size])
        self.num_bytes += size
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: Path) -> io.FileIO:
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


def _gzip_fault(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "is a truncated gzip file, or has a few other bytes after its data"
    if "Not a gzipped file" in str(error):
        return "has other bytes after the end of its gzip data"
    return f"is a damaged gzip file ({error})"
