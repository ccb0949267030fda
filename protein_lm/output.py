"""Results appear under their final name whole or not at all: write beside, flush to disk, rename."""

import errno
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from protein_lm.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: folders of killed processes stay
    fcntl = None


def check_absent(path: Path) -> None:
    """Raise OutputError if `path` exists: nothing a user made is overwritten."""
    if path.exists() or path.is_symlink():
        raise OutputError(f"{path} exists already; remove it or name another output")


@contextmanager
def new_file(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the final name, on any error it is removed.

    The temporary name keeps the suffix of `path`, since many writers choose their format by it. `replace` allows
    an existing file (a running log's figure, for example) to be replaced.

    Raises:
        OutputError: `path` exists and `replace` is False, or the disk is full, or the folder cannot be written.
    """
    if not replace:
        check_absent(path)
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.partial-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            partial.chmod(0o666 & ~_umask())
            _flush(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path, *, replace: bool = False, adopt: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it takes the final name, on any error it is removed.

    `adopt` says of a temporary folder that a killed process left whether it is gone on with; otherwise it is removed.

    Raises:
        OutputError: as `new_file`.
    """
    if not replace:
        check_absent(path)
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial, lock = _adopted_folder(path, adopt) or _locked_folder(path)
        try:
            yield partial
            partial.chmod(0o777 & ~_umask())
            for file in partial.rglob("*"):
                if file.is_file():
                    _flush(file)
            if path.exists():
                retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.retired-", dir=path.parent))
                path.rename(retired / "old")
                partial.rename(path)
                shutil.rmtree(retired)
            else:
                partial.rename(path)
        finally:
            if lock is not None:
                os.close(lock)
            shutil.rmtree(partial, ignore_errors=True)


def _locked_folder(path: Path) -> tuple[Path, int | None]:
    """A new folder for `path`, and its descriptor, locked, so that others can tell that its process still lives."""
    while True:
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
        if fcntl is None:
            return partial, None
        with suppress(FileNotFoundError):
            lock = os.open(partial, os.O_RDONLY)
            if _lock(lock) and partial.exists():
                return partial, lock
            os.close(lock)  # another process took it for abandoned before it was locked


def _lock(descriptor: int) -> bool:
    """Lock a folder unless another process has it locked."""
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _adopted_folder(path: Path, adopt: Callable[[Path], bool] | None) -> tuple[Path, int] | None:
    """A partial folder for `path` whose process was killed, so that nobody holds its lock any more, and its descriptor.

    Those that are not adopted are removed.
    """
    if fcntl is None:
        return None
    adopted = None
    for partial in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        if not partial.is_dir():
            continue
        with suppress(OSError), ExitStack() as stack:
            descriptor = os.open(partial, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            if not _lock(descriptor):
                continue
            if adopted is None and adopt is not None and partial.exists() and adopt(partial):
                adopted = partial, descriptor
                stack.pop_all()
            else:
                shutil.rmtree(partial, ignore_errors=True)
    return adopted


_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some space or write elsewhere",
    errno.EFBIG: "the file would be larger than the allowed size; raise the limit or write elsewhere",
    errno.EACCES: "permission denied; write elsewhere",
    errno.EROFS: "the file system is read-only; write elsewhere",
    errno.ENOTDIR: "a part of this path is a file, not a folder; name another output",
    errno.EEXIST: "a part of this path is a file, not a folder; name another output",
}


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into an OutputError of one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise OutputError(f"cannot write {path}: {_REMEDIES[error.errno]}") from error


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def safe_name(identifier: str, *, taken: Collection[str] = ()) -> str:
    """A file name for an identifier that may hold anything: letters, digits, `.`, `_`, `-`, at most 100 characters.

    >>> safe_name("../a b|c"), safe_name("P1", taken=["P1"])
    ('_a_b_c', 'P1_2')
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", identifier).lstrip(".")[:100] or "_"
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique
