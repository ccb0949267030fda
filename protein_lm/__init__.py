"""Protein language models with linear attention: train them, score with them, look inside them."""

__version__ = "0.1.0"
