"""Choices that the command line and recipes share, one enum each; import nothing, so that help is quick."""

from enum import Enum


class LongPolicy(str, Enum):
    """What happens to a sequence that is longer than the model's window."""

    CROP = "crop"
    """Training: a window at a seeded position, another one in each epoch. Evaluation: its first residues."""
    DROP = "drop"
    """Left out and counted."""
    ERROR = "error"
    """The command stops and names the first one."""


class FigureFormat(str, Enum):
    """File format of figures."""

    PNG = "png"
    SVG = "svg"
    PDF = "pdf"
