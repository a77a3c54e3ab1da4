"""The keys of streamed members: names are cut at the first or the last dot, by the rule of random access (`tar_members`).

Random access sees all names of a tar file before it chooses. A stream chooses at the first name with two dots, by the members that
follow it, and raises DataError if a later name shows that random access would choose otherwise.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple, NoReturn

from mmtune.data.shards.tar_members import key_to_first_dot, key_to_last_dot, suffixes_at_last_dot
from mmtune.errors import DataError

AHEAD, AHEAD_BYTES = 256, 64 << 20
"""At most so many members, or bytes, are read ahead at the first name with two dots."""


class KeyedMember(NamedTuple):
    """A member of a tar file with the key of its sample and its extension."""

    key: str
    extension: str
    name: str
    data: bytes


def keyed_members(members: Iterable[tuple[str, bytes]], url: str) -> Iterator[KeyedMember]:
    """Yield the members (name, content) that belong to samples, in order, with their keys.

    url: the public name of the file, for messages

    Raises DataError if the names do not allow to decide in time where keys end.
    """
    every = (KeyedMember(*key_to_first_dot(name), name, data) for name, data in members)
    rest = (m for m in every if m.extension)
    before = _Runs()
    held: list[KeyedMember] = []
    for m in rest:
        if "." in m.extension:
            held = [m, *_ahead(rest)]
            break
        before.add(m.key, m.extension)  # with one dot, the first is the last
        yield m
    if not held:
        return
    names = [m.name for m in held]
    suffixes, is_needed = suffixes_at_last_dot([*before.current_names(), *_of_whole_samples(names)])
    if before.complete - {suffixes}:
        suffixes = None
    at_last = bool(suffixes) and is_needed
    runs, first_key = _Runs(before.key, before.extensions), ""
    for m in itertools.chain(held, rest):
        key, suffix = key_to_last_dot(m.name)
        whole = runs.add(key, suffix)
        if suffixes and whole is not None and whole != suffixes:
            if at_last:
                _refuse(url, m.name)
            suffixes = None
        if suffixes and not at_last and whole is not None and m.key == first_key:
            _refuse(url, m.name)
        first_key = m.key
        yield m._replace(key=key, extension=suffix) if at_last else m
    if at_last and runs.extensions != suffixes:
        _refuse(url, runs.key)


class _Runs:
    """The extensions of consecutive members with the same key, if names are cut at the last dot.

    complete: the sets of extensions of all samples but the current one
    """

    def __init__(self, key: str = "", extensions: frozenset[str] = frozenset()) -> None:
        self.key, self.extensions = key, extensions
        self.complete: set[frozenset[str] | None] = set()

    def add(self, key: str, extension: str) -> frozenset[str] | None:
        """Add a member. Returns the extensions of the sample before it if the member begins another one."""
        whole = self.extensions if self.key and key != self.key else None
        if whole is not None:
            self.complete.add(whole)
            self.extensions = frozenset()
        self.key, self.extensions = key, self.extensions | {extension}
        return whole

    def current_names(self) -> list[str]:
        """The names of the current sample's members."""
        return [f"{self.key}.{e}" for e in self.extensions]


def _ahead(rest: Iterator[KeyedMember]) -> list[KeyedMember]:
    held: list[KeyedMember] = []
    size = 0
    for m in rest:
        held.append(m)
        size += len(m.data)
        if len(held) == AHEAD or size >= AHEAD_BYTES:
            break
    return held


def _of_whole_samples(names: list[str]) -> list[str]:
    """The names without those of the last sample, which may continue, unless there is no other."""
    last = key_to_last_dot(names[-1])[0]
    whole = [n for n in names if key_to_last_dot(n)[0] != last]
    return whole or names


def _refuse(url: str, name: str) -> NoReturn:
    raise DataError(
        f"{url}: {name}: keys of some names end at the first dot, of others at the last, which a stream cannot tell in time; read it "
        "with random access (index), or write it again by `mmtune pack`"
    )
