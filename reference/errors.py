"""Errors beyond Python's own; each message names the file and the value at fault."""


class AudioFormatError(ValueError):
    """An audio file cannot be read, or does not hold what its header declares."""


class CheckpointError(RuntimeError):
    """A checkpoint, or its config, is missing, damaged, refused, or does not fit the model."""


class CodeFileError(ValueError):
    """A file of codes is damaged, or no such file; or codes cannot be what such a file holds."""


class DataError(ValueError):
    """A data folder or manifest holds nothing to train on, or is malformed."""


class TrainingError(RuntimeError):
    """Training cannot go on (a loss that stays NaN, for example); the last checkpoint is intact."""
