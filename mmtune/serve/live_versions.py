"""A Collection as a server needs it: which versions are open, which one is staged."""

from mmtune.errors import ModelError
from mmtune.index.collection import Collection


class Served(Collection):
    """`Collection` for a server."""

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
