"""A Collection whose encoding of queries, and search by them, go through micro-batches; all else is the Collection's own."""

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.errors import ModelError
from mmtune.lifecycle.collection import Collection
from mmtune.lifecycle.opened import Opened
from mmtune.serve.batcher import Batcher

if TYPE_CHECKING:
    from mmtune.lifecycle.filters import Filter


class Batched(Opened):
    """An open version; threads that encode or search at the same moment share a pass. Answers are those of `Opened`."""

    def __init__(self, opened: Opened, batcher: Batcher, searcher: Batcher):
        super().__init__(opened.record, opened.model, opened.stores, opened.cache, opened.canaries)
        self.opened, self.batcher, self.searcher = opened, batcher, searcher

    def forward(self, modality: str, signals: Sequence[Any]) -> Iterable[np.ndarray]:
        """As `Opened.forward`, in a pass with what others ask. Values were decoded in the caller's thread."""
        return [f.result() for f in [self.batcher.submit((self, modality), signal) for signal in signals]]

    def search(
        self, query_QD: np.ndarray, k: int, where: "Filter | None" = None, target: Sequence[str] | None = None
    ) -> list[list[dict[str, Any]]]:
        """As `Opened.search`; those who ask for as many, with the same filter, share a pass over the stores."""
        key = (self, k, repr(where), tuple(target) if target else None)  # repr: to Python `a = 1` and `a = true` are equal
        return [f.result() for f in [self.searcher.submit(key, (query, where)) for query in query_QD]]


def search_vectors(key: tuple[Batched, int, str, tuple[str, ...] | None], asked: list[tuple[np.ndarray, Any]]) -> Any:
    """One pass over a version's stores: a list of results a query. The filters of one key are the same."""
    opened, k, _, target = key
    return opened.opened.search(np.stack([query for query, _ in asked]), k, asked[0][1], target)


def encode_signals(key: tuple[Batched, str], signals: list[Any]) -> np.ndarray:
    """The pass itself: [N, D] of signals of one modality, by one version's model."""
    opened, modality = key
    return np.stack(list(opened.opened.forward(modality, signals)))


class Served(Collection):
    """`Collection` for a server. observe: see `Batcher`."""

    def __init__(
        self, path: str | Path, window: float = 0.004, batch: int = 32, observe: Callable[[int, float], None] | None = None
    ):
        super().__init__(path)
        self.batcher = Batcher(encode_signals, window, batch, observe)
        self.searcher = Batcher(search_vectors, 0.0, batch)  # who was encoded together comes together: nobody is waited for
        self._batched: dict[str, Batched] = {}
        self._wrap = threading.Lock()

    def open(self, version: str | None = None) -> Batched:
        """As `Collection.open`."""
        opened = super().open(version)
        with self._wrap:
            found = self._batched.get(opened.version)
            if found is None or found.opened is not opened:
                found = self._batched[opened.version] = Batched(opened, self.batcher, self.searcher)
            for gone in set(self._batched) - set(self._opened) - {opened.version}:
                del self._batched[gone]
        return found

    @property
    def open_versions(self) -> set[str]:
        """Those that answer without being opened first."""
        return set(self._opened)

    def staged(self) -> str | None:
        """The newest version, where it is newer than the live one: what waits to be promoted."""
        names = self.layout.versions()
        live = self.live
        return names[-1] if names and (live is None or int(names[-1][1:]) > int(live[1:])) else None

    def resolve(self, version: str | None) -> str | None:
        """From "live", "staged", a name or None to a name, None for whoever is live. ModelError when nothing is staged."""
        if version in (None, "", "live"):
            return None
        if version == "staged":
            found = self.staged()
            if found is None:
                raise ModelError("no version is staged: the newest one is live")
            return found
        return version

    def close(self) -> None:
        """Answer what waits, then as `Collection.close`."""
        self.shadowing.close()  # its searches use the batcher
        self.batcher.close()
        self.searcher.close()
        super().close()
