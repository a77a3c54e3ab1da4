"""The base of results: dataclasses with `to_dict`, `to_pandas`, a notebook view, and access by key."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from mmtune.contracts import JsonObject
from mmtune.html.render import render_macro

if TYPE_CHECKING:
    import pandas


class ResultFields(Mapping[str, Any]):
    """Base of a result dataclass: its fields are attributes, and keys of a read-only mapping.

    `result.artifact` and `result["artifact"]` are the same value. to_dict: plain data for JSON. to_pandas: one row, or what the
    subclass makes of it. In a notebook a result shows as a table.
    """

    not_in_document: ClassVar[tuple[str, ...]] = ()
    """Fields that `to_dict` leaves out, for they are no plain data."""

    def __getitem__(self, key: str) -> Any:
        if key not in self._names():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    @classmethod
    def _names(cls) -> list[str]:
        return [f.name for f in fields(cls)]  # type: ignore[arg-type]  # subclasses are dataclasses

    def to_dict(self) -> JsonObject:
        """The fields as plain data."""
        return {name: getattr(self, name) for name in self._names() if name not in self.not_in_document}

    def to_pandas(self) -> "pandas.DataFrame":
        """One row with the fields that are single values."""
        import pandas

        single = {k: v for k, v in self.to_dict().items() if not isinstance(v, dict | list)}
        return pandas.DataFrame([single])

    def _repr_html_(self) -> str:
        rows = [(name, _short(value)) for name, value in self.to_dict().items()]
        return render_macro("values.html.j2", "table", ("field", "value"), rows)


def _short(value: object, limit: int = 200) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]} ..."
