"""Errors that a user can fix. The command line prints them as one line and exits with status 2.

A message is always one line of printable characters and of bounded length, whatever it quotes (see `one_line`).
"""

import re
import reprlib

_MOST = 2000
"""Limit of characters in a message."""
_MOST_OF_WORD = 1000
"""Limit of characters in a word, such as a path."""
_MOST_QUOTED = 200
"""Limit of characters in a quoted value."""
_shorter = reprlib.Repr()
_shorter.maxstring = _shorter.maxother = _shorter.maxlong = _MOST_QUOTED
_shorter.maxlevel = 3


class ProteinLMError(Exception):
    """Base of all errors raised for bad input. The message names the value, the limit and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class InputError(ProteinLMError):
    """A sequence file or table that cannot be read: missing, empty, truncated, of another format, illegal content."""


class ConfigError(ProteinLMError):
    """A recipe or setting with an unknown name or an impossible value."""


class ModelError(ProteinLMError):
    """A model directory that is missing, incomplete, damaged or of another format version."""


class StoreError(ProteinLMError):
    """A prepared corpus that is missing, incomplete, damaged or of another format version."""


class OutputError(ProteinLMError):
    """An output that exists already or cannot be written."""


class NumericalError(ProteinLMError):
    """A computation whose numbers became NaN or infinite."""


def one_line(text: str) -> str:
    r"""Return a text as one line of at most 2,000 printable characters.

    Long words and long texts lose their middle, so that their end, the remedy, stays.

    >>> one_line("no\n  sequence \x1b[31mP1\x1b[0m")
    'no sequence \\x1b[31mP1\\x1b[0m'
    >>> len(one_line("A" * 10**6)), len(one_line("A " * 10**6))
    (200, 2000)
    """
    text = re.sub(r" *[\n\r\t][ \n\r\t]*", " ", _cut(text, 20 * _MOST)).strip(" ")
    text = re.sub(rf"[^ ]{{{_MOST_OF_WORD + 1},}}", lambda word: _cut(word[0], _MOST_QUOTED), printable(text))
    return _cut(text, _MOST)


def printable(text: str) -> str:
    r"""Return a text with characters escaped that steer a terminal or turn the direction of writing.

    >>> printable("a\tb\x07\u202e")
    'a\\tb\\x07\\u202e'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def quoted(value: object) -> str:
    """Return a value as Python writes it, cut to 200 characters. Time and memory do not grow with it.

    >>> quoted("P1"), len(quoted("A" * 10**6)), quoted([[[[[1]]]]])
    ("'P1'", 200, '[[[[...]]]]')
    """
    try:
        return _cut(printable(_shorter.repr(value)), _MOST_QUOTED)
    except ValueError:  # a number of more digits than Python writes
        return "a number of thousands of digits"


def named(text: str) -> str:
    r"""Return a name for a message: without quotes, cut to 200 characters and escaped.

    >>> named("sp|P1\x1b"), len(named("A" * 10**6))
    ('sp|P1\\x1b', 200)
    """
    return printable(_cut(text, _MOST_QUOTED))


def _cut(text: str, most: int) -> str:
    """Return a text without its middle, at most `most` characters long."""
    if len(text) <= most:
        return text
    end = most // 4
    return f"{text[: most - end - 3]}...{text[-end:]}"
