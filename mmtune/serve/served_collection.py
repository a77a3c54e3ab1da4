"""A Collection for the server, where requests can name versions "live" and "staged"."""

from mmtune.errors import ModelError
from mmtune.index.collection import Collection


class ServedCollection(Collection):
    """A `Collection` that resolves the version names used in requests."""

    def resolve(self, version: str | None) -> str | None:
        """Resolve "live", "staged" or a version's name. None means the live version, in the argument and in the result.

        Raises ModelError if no version is staged.
        """
        if version in (None, "", "live"):
            return None
        if version == "staged":
            staged = self.staged()
            if staged is None:
                raise ModelError("no version is staged: the newest version is already live")
            return staged
        return version
