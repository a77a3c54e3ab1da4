"""The base class of result dataclasses. It adds `to_dict`, `to_pandas`, an HTML view in notebooks, and access by key."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from mmtune.contracts import JsonObject
from mmtune.html.render import render_macro

if TYPE_CHECKING:
    import pandas


class ResultFields(Mapping[str, Any]):
    """Base class of result dataclasses. Every field is an attribute and also a key of a read-only mapping.

    For example, `result.artifact` and `result["artifact"]` are the same value. In a notebook a result is shown as a table.
    """

    not_in_document: ClassVar[tuple[str, ...]] = ()
    """Names of fields that `to_dict` leaves out because JSON cannot represent them."""

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
        """The fields as data that JSON can represent."""
        return {name: getattr(self, name) for name in self._names() if name not in self.not_in_document}

    def to_pandas(self) -> "pandas.DataFrame":
        """A DataFrame of one row, with the fields that are neither dicts nor lists. Subclasses may return other tables."""
        import pandas

        single = {k: v for k, v in self.to_dict().items() if not isinstance(v, dict | list)}
        return pandas.DataFrame([single])

    def _repr_html_(self) -> str:
        rows = [(name, _short(value)) for name, value in self.to_dict().items()]
        return render_macro("values.html.j2", "table", ("field", "value"), rows)


def _short(value: object, limit: int = 200) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]} ..."
