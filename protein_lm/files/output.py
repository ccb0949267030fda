"""Results appear under their final name whole or not at all: written next to it, flushed to disk, renamed.

If two commands have the same output, the second is refused (`claimed`). A file that appears meanwhile is not replaced.
"""

import errno
import glob
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import xxhash

from protein_lm.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows: folders of killed processes stay, and nothing is claimed
    fcntl = None

_OLD = "old"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of file systems without locks."""
_READ_BYTES = 2**22


def check_absent(path: Path) -> None:
    """Raise OutputError if `path` exists: nothing a user made is overwritten."""
    if path.exists() or path.is_symlink():
        raise OutputError(f"{path} exists already; remove it or name another output")


@contextmanager
def new_file(path: Path, *, replace: bool = False, is_claimed: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it takes the final name, on any error it is removed.

    The temporary name keeps the suffix of `path`, since many writers choose their format by it.

    Args:
        path: the final name.
        replace: whether an existing file may be replaced.
        is_claimed: whether the caller has claimed `path`.

    Raises:
        OutputError: `path` exists and `replace` is False, another command writes it, the disk is full, or the folder cannot
            be written.
    """
    if not replace:
        check_absent(path)
    with clear_errors(path), nullcontext() if replace or is_claimed else claimed(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.partial-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            partial.chmod(new_file_mode())
            flush(partial)
            if replace:
                partial.replace(path)
            else:
                give_name(partial, path)
            flush(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def new_directory(
    path: Path, *, replace: bool = False, is_claimed: bool = False, adopt: Callable[[Path], bool] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder next to `path`; on success it takes the final name, on any error it is removed.

    A process that is killed while it replaces a folder may leave the old one under a hidden name; `recover` puts it back.

    Args:
        path: the final name.
        replace: whether an existing folder may be replaced.
        is_claimed: whether the caller has claimed `path`.
        adopt: tells whether to use a temporary folder that a killed process left, which is removed otherwise.

    Raises:
        OutputError: as `new_file`.
    """
    if not replace:
        check_absent(path)
    with clear_errors(path), nullcontext() if replace or is_claimed else claimed(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        adopted = recover(path, adopt)
        partial, lock = adopted or (_hidden(path, "partial"), None)
        try:  # an interruption may come as soon as the folder is there
            if adopted is None:
                lock = _make_locked(partial)
            yield partial
            partial.chmod(0o777 & ~_umask())
            flush_tree(partial)
            if replace and path.exists():
                _exchange(partial, path)
            else:
                give_name(partial, path)
            flush(path.parent)
        finally:
            if lock is not None:
                os.close(lock)
            shutil.rmtree(partial, ignore_errors=True)


def give_name(partial: Path, path: Path) -> None:
    """Rename a file or folder to a free name.

    Raises:
        OutputError: something has this name now; it stays unchanged.
    """
    if not partial.is_dir():
        try:
            os.link(partial, path)  # unlike a rename, it never replaces a file
            partial.unlink()
            return
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            if not path.exists():
                partial.rename(path)
                return
    check_absent(path)
    try:
        partial.rename(path)
    except OSError:  # a folder that is not empty appeared
        check_absent(path)
        raise


def _exchange(partial: Path, path: Path) -> None:
    """Replace the folder `path` by `partial`."""
    retired, lock = _hidden(path, "retired"), None
    try:
        lock = _make_locked(retired)
        path.rename(retired / _OLD)
        try:
            partial.rename(path)
        except OSError:
            (retired / _OLD).rename(path)
            raise
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


def _hidden(path: Path, role: str) -> Path:
    """Return a free name next to `path`."""
    return path.with_name(f".{path.name}.{role}-{secrets.token_hex(8)}")


def _make_locked(folder: Path) -> int | None:
    """Make a folder and return its descriptor, locked: so others can tell that its process is alive."""
    while True:
        folder.mkdir(mode=0o700)
        if fcntl is None:
            return None
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            if _lock_if_possible(lock) and folder.exists():
                return lock
            os.close(lock)  # another process took it for abandoned before it was locked


def _lock(descriptor: int) -> bool:
    """Lock a file or folder; return False if another process has locked it."""
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_if_possible(descriptor: int) -> bool:
    """Lock as `_lock`; return True on a file system without locks."""
    try:
        return _lock(descriptor)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return True


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep other commands off an output, whether it exists or not.

    The lock is on the hidden file `.NAME.lock` next to it, and ends with its process, however that ends. If that file cannot
    be made, the lock is on the output itself, if this is a folder.

    Raises:
        OutputError: another command has claimed it, or the folder around it cannot be written.
    """
    if fcntl is None:
        yield
        return
    target = Path(os.path.realpath(path))
    lock_file = target.with_name(f".{target.name}.lock") if target.name else target
    descriptor = None
    try:  # an interruption may come as soon as the file is there
        with clear_errors(path):
            lock_file.parent.mkdir(parents=True, exist_ok=True)
            while descriptor is None:
                descriptor, lock = _open_lock(lock_file, target)
                if not _lock_if_possible(descriptor):
                    raise OutputError(f"{path}: another command is at work there; wait for it or name another output")
                if not _has_name(descriptor, lock):  # its owner has removed it
                    stale, descriptor = descriptor, None
                    os.close(stale)
        yield
    finally:
        _unlock(descriptor, lock_file)


_TO_LOCK = 0 if fcntl is None else os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def _open_lock(lock_file: Path, target: Path) -> tuple[int, Path]:
    """Open the file or folder to lock; return its descriptor and its path."""
    try:
        return os.open(lock_file, _TO_LOCK), lock_file  # O_CREAT is refused for another user's file in a common folder
    except OSError:
        try:
            return os.open(lock_file, _TO_LOCK | os.O_CREAT, 0o666), lock_file
        except OSError:
            if not target.is_dir():
                raise
            return os.open(target, os.O_RDONLY), target


def _has_name(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _unlock(descriptor: int | None, lock_file: Path) -> None:
    """Close a lock, and remove its file unless another process has locked it; None: the file may exist or not."""
    with suppress(OSError):
        if descriptor is None:
            descriptor = os.open(lock_file, _TO_LOCK)
        if _lock_if_possible(descriptor) and _has_name(descriptor, lock_file):
            lock_file.unlink()
    if descriptor is not None:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Make sure that a folder and all its contents are on the disk."""
    for file in [*folder.rglob("*"), folder]:
        flush(file)


def recover(path: Path, adopt: Callable[[Path], bool] | None = None) -> tuple[Path, int] | None:
    """Tidy up after processes that were killed while they wrote the folder `path`; their locks ended with them.

    A folder that they had moved aside to replace it is put back if `path` does not exist. Folders that they were writing are
    removed, but for one that `adopt` accepts.

    Returns:
        The adopted folder and its descriptor, locked; None if there is none.
    """
    if fcntl is None:
        return None
    adopted = None
    for folder in path.parent.glob(f".{glob.escape(path.name)}.*-*"):
        role = folder.name.removeprefix(f".{path.name}.").partition("-")[0]
        if role not in ("partial", "retired") or not folder.is_dir():
            continue
        with suppress(OSError), ExitStack() as stack:
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            if not _lock(descriptor):
                continue
            if role == "retired" and (folder / _OLD).is_dir() and not path.exists():
                (folder / _OLD).rename(path)
            if role == "partial" and adopt is not None and adopted is None and folder.exists() and adopt(folder):
                adopted = folder, descriptor
                stack.pop_all()
            else:
                shutil.rmtree(folder, ignore_errors=True)
    return adopted


def checksum(path: Path, start: int = 0, *, num_bytes: int | None = None, digest: Any = None) -> str:
    """Return the checksum of a file from its byte `start` on, in hexadecimal digits.

    Args:
        path: the file.
        start: offset of the first byte.
        num_bytes: number of bytes; None: up to the end.
        digest: an object of hashlib; None: XXH3-128.
    """
    digest = digest or xxhash.xxh3_128()
    left = path.stat().st_size - start if num_bytes is None else num_bytes
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(min(_READ_BYTES, left)):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some space or write elsewhere",
    errno.EFBIG: "the file would be larger than the allowed size; raise the limit or write elsewhere",
    errno.EACCES: "permission denied; write elsewhere",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EROFS: "the file system is read-only; write elsewhere",
    errno.ENOTDIR: "a part of this path is a file, not a folder; name another output",
    errno.EEXIST: "a part of this path is a file, not a folder; name another output",
}


def reason(error: OSError) -> str:
    """Return the remedy for an error of the operating system, or what it says."""
    return _REMEDIES.get(error.errno or 0) or (error.strerror or str(error) or type(error).__name__).lower()


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into an OutputError of one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise OutputError(f"cannot write {path}: {_REMEDIES[error.errno]}") from error


def flush(path: Path) -> None:
    """Make sure that the content of a file, or the list of names of a folder, is on the disk."""
    with suppress(OSError) if path.is_dir() else nullcontext():  # not every system opens folders or flushes them
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def safe_name(identifier: str, *, taken: Collection[str] = ()) -> str:
    """Return a file name for any identifier: letters, digits, `.`, `_`, `-`, at most 100 characters.

    >>> safe_name("../a b|c"), safe_name("P1", taken=["P1"])
    ('_a_b_c', 'P1_2')
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", identifier).lstrip(".")[:100] or "_"
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    return unique


def new_file_mode() -> int:
    """Return the permissions that this process gives to a new file."""
    return 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
