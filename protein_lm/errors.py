"""Errors that are a user's to mend: the command line prints them as one line and exits with status 2."""


class ProteinLMError(Exception):
    """Base of all errors raised for bad input. The message names the place, the limit and the remedy."""


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
