"""A Collection as a server needs it: which versions are open, which one is staged."""

from mmtune.errors import ModelError
from mmtune.index.collection import Collection


class ServedCollection(Collection):
    """A `Collection` that also knows its open versions and resolves the names that requests use."""

    @property
    def open_versions(self) -> set[str]:
        """The versions whose model and vectors are loaded."""
        return set(self._opened)

    def staged(self) -> str | None:
        """The newest version where it is newer than the live one (it waits to be promoted), else None."""
        names = self.layout.versions()
        live = self.live
        return names[-1] if names and (live is None or int(names[-1][1:]) > int(live[1:])) else None

    def resolve(self, version: str | None) -> str | None:
        """A version's name from "live", "staged" or a name; None is the live one. ModelError when nothing is staged."""
        if version in (None, "", "live"):
            return None
        if version == "staged":
            staged = self.staged()
            if staged is None:
                raise ModelError("no version is staged: the newest one is live")
            return staged
        return version
