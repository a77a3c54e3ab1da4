"""Exceptions for mistakes that a user can correct. The command line prints their message without a traceback."""


class MmtuneError(Exception):
    """Base class of errors that a user can cause. The message is one line: the file or recipe key, the problem and the fix."""


class RecipeError(MmtuneError):
    """A recipe or an option is invalid: an unknown key, a wrong type, or a value that does not suit the data or the model."""


class DataError(MmtuneError):
    """A data source, shard, column or other data file is missing or cannot be used."""


class StoreUnavailable(DataError):
    """The database of a vector store cannot be reached, or does not answer. The same call may succeed later."""


class ServerUnreachable(DataError):
    """There is no connection to the server of remote data. The same call may succeed later."""


class DataWarning(UserWarning):
    """What is wrong with data without ending the work: samples that are skipped, with the reason and their number, a server that does not
    answer at once, or the like. The message names the data."""


class ModelError(MmtuneError):
    """A model cannot be loaded or used, e.g. because of missing weights or tokenizer files, or a wrong fingerprint."""


class MissingExtra(MmtuneError):
    """An optional library is not installed. The message contains the pip command that installs it."""


class TrainingError(MmtuneError):
    """Training cannot start or continue, e.g. because of a non-finite loss, or a run directory of another recipe."""


class ProcessEnded(TrainingError):
    """Another process of a distributed run has ended while this one waited for it."""


class Rejected(Exception):
    """The value of one row cannot be used. The message is the reason; `pack` writes it to rejected.jsonl and continues."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
