"""Errors that a user can act on; commands print their one-sentence message without a traceback and exit with 1."""


class UserError(Exception):
    """Something outside the code is wrong; the message names it and says what to do about it."""


class ConfigError(UserError):
    """A configuration key or value cannot be used."""


class DataError(UserError):
    """A file of interactions is missing, damaged or not in the format it should have."""


class CheckpointError(UserError):
    """A checkpoint cannot be written or read."""


class TrainingError(UserError):
    """Training cannot go on, for example because the loss is not finite."""
