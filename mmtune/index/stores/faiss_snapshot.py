"""A consistent read-only view of a faiss store: the base segment, its tombstones, and the rows of all later segments."""

import bisect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import pyarrow as pa

from mmtune.index.stores.faiss_files import Segment, StoreManifest, read_segment
from mmtune.index.stores.faiss_index import CandidateIndex

if TYPE_CHECKING:
    from mmtune.index.query.filters import Filter

MAX_MASKS = 32
"""Most filters whose masks are cached."""


class Snapshot:
    """The files that one manifest lists. The current rows of the segments after the base segment are called the delta.

    known: an earlier snapshot; its memory-mapped base segment and index are reused when the base segment is the same, and what it
        knows of later segments when only more were added.
    """

    def __init__(self, directory: Path, manifest: StoreManifest, known: "Snapshot | None" = None):
        self.manifest, fingerprint, base = manifest, manifest["fingerprint"], manifest["base"]
        if known is not None and known.manifest["base"] != base:
            known = None
        self.base: Segment
        self._place: dict[str, tuple[int, int]]
        self._dead: set[int]
        if known is not None:
            self.base = known.base
        elif base:
            self.base = read_segment(directory, base, fingerprint)
        else:
            none = pa.chunked_array([], pa.large_string())
            self.base = Segment(np.zeros((0, manifest["dim"]), np.float32), none, none, [])
        place: dict[str, tuple[int, int]] = {}
        dead: set[int] = set()
        self.segments: list[Segment] = []
        if known is not None and manifest["segments"][: len(known.segments)] == known.manifest["segments"]:
            place, dead, self.segments = dict(known._place), set(known._dead), list(known.segments)  # only segments were added
        new = manifest["segments"][len(self.segments) :]
        self.segments += [read_segment(directory, name, fingerprint) for name in new]
        for number, segment in enumerate(self.segments[-len(new) :] if new else [], len(self.segments) - len(new)):
            ids = segment.ids.to_pylist()
            for id in segment.deleted:
                place.pop(id, None)
            if base:
                dead.update(at for id in (*segment.deleted, *ids) if (at := self._base_position(id)) is not None)
            place.update({id: (number, row) for row, id in enumerate(ids)})
        self._place, self._dead = place, dead
        self.delta_ids = sorted(place, reverse=True)
        self._delta_position = {id: i for i, id in enumerate(self.delta_ids)}
        self._delta_rows = np.array([place[id] for id in self.delta_ids], np.int64).reshape(-1, 2)
        self.delta_meta: list[str] = [self.segments[n].meta[row].as_py() for n, row in self._delta_rows.tolist()]
        self._delta: np.ndarray | None = None
        self.alive: np.ndarray | None = None
        """bool [N], False for the rows of the base segment that were deleted or replaced; None means that there are none."""
        if dead:
            self.alive = np.ones(len(self.base.ids), bool)
            self.alive[list(dead)] = False
        self.count = len(self.base.ids) - len(dead) + len(place)
        self.index: CandidateIndex | None = known.index if known else _open_index(directory, manifest)
        self._masks: dict[str, tuple[np.ndarray | None, np.ndarray]] = {}

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """Return the vectors of the delta rows at these positions."""
        out = np.empty((len(positions), self.manifest["dim"]), np.float32)
        for number in np.unique(self._delta_rows[positions, 0]).tolist():
            in_segment = self._delta_rows[positions, 0] == number
            out[in_segment] = self.segments[number].vectors[self._delta_rows[positions[in_segment], 1]]
        return out

    @property
    def delta(self) -> np.ndarray:
        """All delta vectors, loaded into memory. After a `build` these are few."""
        if self._delta is None:
            self._delta = self.gather(np.arange(len(self._delta_rows)))
        return self._delta

    def _base_position(self, id: str) -> int | None:
        """Return the position of an id in the base segment, also of a deleted one; None when the id is not in it."""
        ids, ascending = self.base.ids, _Reversed(self.base.ids)
        at = bisect.bisect_left(ascending, id)
        return len(ids) - 1 - at if at < len(ids) and ascending[at] == id else None

    def vector(self, id: str) -> np.ndarray | None:
        """Return the vector [D] of an id; None when the id is unknown or deleted."""
        delta = self._delta_position.get(id)
        if delta is not None:
            return self.gather(np.array([delta]))[0]
        at = self._base_position(id)
        return None if at is None or self.alive is not None and not self.alive[at] else self.base.vectors[at]

    def ids(self) -> list[str]:
        """Return all current ids."""
        base = self.base.ids if self.alive is None else self.base.ids.filter(pa.array(self.alive))
        return [*base.to_pylist(), *self.delta_ids]

    def dead_positions(self) -> list[int]:
        """Return the positions of the base segment's rows that were deleted or replaced."""
        return [] if self.alive is None else np.flatnonzero(~self.alive).tolist()

    def dead_ids(self) -> list[str]:
        """Return the ids of the base segment's rows that were deleted or replaced."""
        return [self.base.ids[i].as_py() for i in self.dead_positions()]

    def mask(self, where: "Filter | None") -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return (mask of the base rows, mask of the delta rows): True where a row is current and matches the filter.

        None in place of a mask means that all rows match.
        """
        if where is None:
            return self.alive, None
        key = repr(where)
        if key not in self._masks:
            base_meta = (m for chunk in self.base.meta.chunks for m in chunk.to_pylist())
            base = np.fromiter((where.matches(json.loads(m)) for m in base_meta), bool, len(self.base.ids))
            delta = np.fromiter((where.matches(json.loads(m)) for m in self.delta_meta), bool, len(self.delta_ids))
            while len(self._masks) >= MAX_MASKS:
                self._masks.pop(next(iter(self._masks)), None)
            self._masks[key] = (base if self.alive is None else base & self.alive, delta)
        return self._masks[key]


def _open_index(directory: Path, manifest: StoreManifest) -> CandidateIndex | None:
    path = directory / f"{manifest['base']}.index"
    return CandidateIndex(path, manifest["index"]) if manifest["base"] and path.exists() else None


class _Reversed(Sequence[str]):
    """A view of descending strings in ascending order, as `bisect` needs it."""

    def __init__(self, ids: pa.ChunkedArray):
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> Sequence[str]: ...

    def __getitem__(self, i: int | slice) -> str | Sequence[str]:
        if isinstance(i, slice):
            raise TypeError("slices are not supported")
        return self.ids[len(self.ids) - 1 - i].as_py()
