"""Errors for users: what is wrong, where, what to do next. One line each; the CLI prints them without a traceback."""


class MmtuneError(Exception):
    """Base of every error a user can cause. `str(error)` is one line that names the file or key and the fix."""


class RecipeError(MmtuneError):
    """A recipe key that is unknown, of the wrong type, or needs what the data or the model does not have."""


class DataError(MmtuneError):
    """A source, shard or column that cannot be used."""


class DataWarning(UserWarning):
    """Something in DATA was left out; one line that names the shard, the reason and how often."""


class ModelError(MmtuneError):
    """A MODEL that cannot be loaded: missing weights, preprocessing, tokenizer, or another fingerprint."""


class MissingExtra(MmtuneError):
    """An optional library is not installed; the line carries the exact pip command."""


class TrainingError(MmtuneError):
    """Training cannot go on: a loss that is not finite, a run directory of another recipe."""


class Rejected(Exception):
    """One row's value cannot be used; `str(error)` is the reason that goes to rejected.jsonl. Never ends a job."""
