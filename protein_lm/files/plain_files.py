"""Reads small files that others may have written, within bounds: only plain files, and JSON of any content."""

import errno
import json
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 2**28
"""Limit for a file of JSON. Manifests of very many sources take some megabytes."""


def check_plain(path: Path) -> None:
    """Refuse anything but a plain file: a device or a pipe could be read without end, or wait for ever.

    Raises:
        OSError: it is no plain file, or does not exist.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "no plain file")


def is_plain_name(name: object) -> bool:
    """Tell whether a name read from a file names a file in the same folder, and leads nowhere else.

    >>> is_plain_name("model.safetensors"), is_plain_name("../model.safetensors"), is_plain_name(".."), is_plain_name("")
    (True, False, False, False)
    """
    return isinstance(name, str) and name not in ("", "..") and name == Path(name).name and not {"\\", "\0"} & set(name)


def parse_json(text: str | bytes) -> Any:
    """Parse a text of JSON.

    Raises:
        ValueError: it is not JSON, or exceeds Python's limits: its nesting is too deep, or a number has too many digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path) -> Any:
    """Read a file of JSON.

    Raises:
        OSError: it does not exist, cannot be read, or is no plain file.
        ValueError: as `parse_json`, or it is too large.
    """
    check_plain(path)
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{size:,} bytes, over the limit of {MOST_BYTES:,}")
    return parse_json(path.read_bytes().decode("utf-8"))
