"""A Collection as a server needs it: requests name versions "live" and "staged"."""

from mmtune.errors import ModelError
from mmtune.index.collection import Collection


class ServedCollection(Collection):
    """A `Collection` that resolves the names of versions that requests use."""

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
