"""Errors of LanceDB's object storage, as one line."""

import functools
import re
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from mmtune.errors import DataError, StoreUnavailable, first_line


class _Labelled(Protocol):
    _label: str


P = ParamSpec("P")
S = TypeVar("S", bound=_Labelled)
T = TypeVar("T")
AWAY = re.compile(r'Generic (?!LocalFileSystem)\w+ error|Generic \{ store: "(?!LocalFileSystem)')
"""How LanceDB's messages say that object storage did not answer; a refusal or a missing object is said otherwise."""


def storage_error(label: str, error: Exception) -> Exception:
    """Return an error of LanceDB as one line: StoreUnavailable if object storage did not answer. Errors of local files are returned as
    they are."""
    if "://" not in label:
        return error
    return (StoreUnavailable if AWAY.search(str(error)) else DataError)(f"{label}: {message_of(error)}")


def message_of(error: Exception) -> str:
    """Return the first line of an error's message, without the place in LanceDB's source."""
    return re.sub(r", /\S+\.rs:\d+:\d+.*", "", first_line(error))[:500]


def reports_outages(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Decorator for methods that use the table: errors of object storage become StoreUnavailable or DataError."""

    @functools.wraps(method)
    def reporting(self: S, *args: P.args, **options: P.kwargs) -> T:
        try:
            return method(self, *args, **options)
        except (OSError, RuntimeError, ValueError) as e:
            raise storage_error(self._label, e) from e.__cause__

    return reporting
