"""Errors that a user can act on, whose one-sentence message commands print without a traceback; and a warning."""


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


class UnknownIds(UserWarning):
    """Ids that the log does not have were left out of an answer.

    argument: where they were given, 'users', 'histories', 'exclude' or 'only'. missing, asked: how many of how many.
    first: the first of them.
    """

    def __init__(self, argument: str, missing: int, asked: int, first: object):
        self.argument, self.missing, self.asked, self.first = argument, missing, asked, first
        kind = 'user' if argument == 'users' else 'item'
        super().__init__(f'{missing} of {asked} {kind} ids are not in the log and are skipped; the first is {first!r}')
