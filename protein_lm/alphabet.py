"""Residues <-> token ids. The 33 tokens and their ids are those of ESM, so that weights of ESM-2 fit without translation.

The order is that of fair-esm's `Alphabet.from_architecture("ESM-1b")`, which ESM-2 uses too.
"""

from enum import Enum

import numpy as np
from numpy.typing import NDArray

TOKENS: tuple[str, ...] = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    *("<null_1>", "<mask>"),
)
VOCABULARY_SIZE = len(TOKENS)
CLS, PAD, EOS, UNK, MASK = (TOKENS.index(name) for name in ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>"))

STANDARD_RESIDUES = "LAGVSERTIDPKQNFYMHWC"
"""The 20 standard amino acids in token order: ids 4 to 23."""
FIRST_RESIDUE = TOKENS.index("L")
NUM_STANDARD = len(STANDARD_RESIDUES)
RESIDUES = STANDARD_RESIDUES + "XBUZO"
"""All residue letters that have a token: ids 4 to 28. J (leucine or isoleucine) has none and reads as X."""
NUM_RESIDUES = len(RESIDUES)
NUM_SPECIAL_TOKENS = 2
"""Special tokens around every sequence, <cls> before and <eos> after; a length in tokens includes them."""

GAPS = "-."

ILLEGAL = 255
"""Value of `ENCODING` for a byte that is no residue."""


class ResiduePolicy(str, Enum):
    """Treatment of B, J, O, U, X and Z. Lower case is always raised, and gaps and a final `*` are always removed."""

    KEEP = "keep"
    """B, O, U, X, Z keep their own tokens; J becomes X."""
    TO_X = "to-x"
    """All six become X."""
    DROP = "drop"
    """Leave out sequences that have one, and count them."""
    ERROR = "error"
    """Stop at the first sequence that has one."""


def _encoding() -> NDArray[np.uint8]:
    table = np.full(256, ILLEGAL, dtype=np.uint8)
    for offset, letter in enumerate(RESIDUES):
        table[[ord(letter), ord(letter.lower())]] = FIRST_RESIDUE + offset
    table[[ord("J"), ord("j")]] = TOKENS.index("X")
    table.flags.writeable = False
    return table


ENCODING: NDArray[np.uint8] = _encoding()
"""Byte value -> token id (policy `keep`), ILLEGAL where the byte is not a residue letter."""
_DECODING = np.array([ord(token) if len(token) == 1 else ord("?") for token in TOKENS], dtype=np.uint8)


def encode(sequence: str | bytes) -> NDArray[np.uint8]:
    """Return the token ids (length,) of residues, without special tokens. B, O, U, X, Z keep their tokens; J becomes X.

    Raises:
        ValueError: a letter that is no residue, named with its position.

    >>> encode("MKB").tolist()
    [20, 15, 25]
    """
    letters = np.frombuffer(sequence.encode("utf-8") if isinstance(sequence, str) else sequence, dtype=np.uint8)
    tokens = ENCODING[letters]
    if (illegal := np.flatnonzero(tokens == ILLEGAL)).size:
        position = int(illegal[0])
        raise ValueError(f"{chr(letters[position])!r} at position {position + 1} is not a residue letter")
    return tokens


def decode(tokens: NDArray[np.integer]) -> str:
    """Return the residue letters of token ids; special tokens become `?`.

    >>> decode(encode("mkj"))
    'MKX'
    """
    return _DECODING[tokens].tobytes().decode("ascii")
