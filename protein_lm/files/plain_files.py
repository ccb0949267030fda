"""Small files of facts that others may have written, read with bounds: plain files alone, and JSON of any content."""

import errno
import json
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 2**28
"""Of a file of JSON. Manifests of very many sources take some megabytes."""


def check_plain(path: Path) -> None:
    """Refuse what is no plain file: a device or a pipe would be read without end, or would wait for ever.

    Raises:
        OSError: it is none, or does not exist.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "no plain file")


def is_plain_name(name: object) -> bool:
    """Whether a name that a file gives is that of a file beside it, and leads nowhere else.

    >>> is_plain_name("model.safetensors"), is_plain_name("../model.safetensors"), is_plain_name(".."), is_plain_name("")
    (True, False, False, False)
    """
    return isinstance(name, str) and name not in ("", "..") and name == Path(name).name and not {"\\", "\0"} & set(name)


def parse_json(text: str | bytes) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: it is not JSON, or holds what Python cannot: deeper nesting, or numbers of more digits.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path) -> Any:
    """What a file of JSON says.

    Raises:
        OSError: it does not exist, cannot be read, or is no plain file.
        ValueError: as `parse_json`, or it is too large.
    """
    check_plain(path)
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{size:,} bytes, over the limit of {MOST_BYTES:,}")
    return parse_json(path.read_bytes().decode("utf-8"))
