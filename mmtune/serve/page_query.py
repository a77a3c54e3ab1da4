"""The query of the search page: the fields of its URL or form."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from mmtune import modalities
from mmtune.errors import DataError
from mmtune.index.query.facets import facet_filter
from mmtune.index.query.filters import parse
from mmtune.serve.error_responses import RequestError, invalid_error
from mmtune.serve.request import RequestBody
from mmtune.serve.settings import Limits

if TYPE_CHECKING:
    from starlette.requests import Request

ITEM = "item"
"""Name of the tab whose query is an item of the collection."""
FACET = "is."
"""Prefix of the fields of facets: `is.COLUMN`, with a value as JSON."""
DEFAULT_K = 24
LIVE_ONLY = "none"
"""Value of the field `beside` that compares no other version."""
MAX_FIELDS = 512
"""Maximum number of fields of a form, so of facets that are chosen at once."""


@dataclass
class PageQuery:
    """What the page was asked.

    by: the modality of the query, or ITEM
    values: {modality or ITEM: what was typed}
    uploads: {modality: uploaded file}
    facets: {column: chosen values as JSON}
    beside: version to compare the live one with, "" for the staged version if there is one, or LIVE_ONLY
    group_by: column of which each value is shown once
    """

    by: str = ""
    values: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    facets: dict[str, list[str]] = field(default_factory=dict)
    k: str = ""
    filter: str = ""
    beside: str = ""
    group_by: str = ""
    hybrid: bool = False

    @property
    def is_search(self) -> bool:
        """Whether there is anything to search for."""
        return bool(self.uploads or any(v.strip() for v in self.values.values()))

    def tab(self, tabs: list[str]) -> str:
        """The tab to show: the one that was searched by, or else the first."""
        given = [*self.uploads, *(name for name, v in self.values.items() if v.strip())]
        return next((name for name in [self.by, *given] if name in tabs), tabs[0])

    def body(self, version: str | None, limits: Limits) -> RequestBody:
        """Return the body of the equivalent POST /search. Raises RequestError 422 for a filter or a facet that is not valid."""
        try:
            if self.filter.strip() and self.facets:
                parse(self.filter)  # so that positions in its errors are those of what was typed
            condition = facet_filter(self.facets, self.filter)
        except DataError as e:
            raise invalid_error(str(e)) from None
        options: dict[str, object] = {
            "k": self.k or min(DEFAULT_K, limits.max_k),
            "filter": condition or None,
            "version": version,
        }
        options |= {"group_by": self.group_by or None, "hybrid": self.hybrid}
        name = self.tab([*modalities.names(), ITEM])
        typed = self.values.get(name, "")
        if name == ITEM:
            return RequestBody({}, {**options, ITEM: typed.strip()})
        data = self.uploads.get(name) or typed.encode("utf-8", "replace")
        if not data.strip():
            raise invalid_error(f"choose a query: a value of {name}")
        return RequestBody({name: data}, options)

    def url(self, **changes: str) -> str:
        """Relative URL of the same page with another query: k, version and grouping are kept, filters and the value are not."""
        kept = {"k": self.k, "beside": self.beside, "group_by": self.group_by}
        return "?" + urlencode({k: v for k, v in {**kept, **changes}.items() if v})


def page_query(fields: Iterable[tuple[str, object]]) -> PageQuery:
    """Read the fields of a URL or form: strings, and uploaded files as bytes. Raises RequestError 422 for an unknown field."""
    query, single = PageQuery(), dict[str, str]()
    names = [*modalities.names(), ITEM]
    for name, value in fields:
        if isinstance(value, bytes):
            if name not in modalities.names():
                raise invalid_error(f"{name[:80]}: no field for a file")
            query.uploads |= {name: value} if value else {}  # browsers send an empty file if none was chosen
        elif not isinstance(value, str):
            continue
        elif name.startswith(FACET):
            query.facets.setdefault(name.removeprefix(FACET), []).append(value)
        elif name in names:
            query.values[name] = value
        elif name in ("by", "k", "filter", "beside", "group_by", "hybrid"):
            single[name] = value
        else:
            raise invalid_error(f"{name[:80]}: unknown field of the search page")
    if single.get("by") and single["by"] not in names:
        raise invalid_error(f"by: must be one of {', '.join(names)}")
    query.hybrid = single.pop("hybrid", "") not in ("", "0", "false")
    for name, value in single.items():
        setattr(query, name, value.strip())
    if query.by:  # what stands in the fields of other tabs is not searched for
        query.values = {n: v for n, v in query.values.items() if n == query.by}
        query.uploads = {n: v for n, v in query.uploads.items() if n == query.by}
    return query


async def form_query(request: "Request", limits: Limits) -> PageQuery:
    """Read a form with files. Raises RequestError 415 or 422."""
    from starlette.datastructures import UploadFile

    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError(415, "unsupported", "the search page sends multipart/form-data")
    fields: list[tuple[str, object]] = []
    files = len(modalities.names())
    async with request.form(max_files=files, max_fields=MAX_FIELDS, max_part_size=limits.max_bytes) as form:
        for name, value in form.multi_items():
            fields.append((name, await value.read() if isinstance(value, UploadFile) else value))
    return page_query(fields)


def chosen(facets: Mapping[str, list[str]], column: str, key: str) -> bool:
    """Whether the value `key` of a column is chosen."""
    return key in facets.get(column, ())
