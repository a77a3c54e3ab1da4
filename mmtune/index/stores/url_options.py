"""Options of mmtune in the URL of a database, e.g. `http://host:6333?mmtune_alias=items`."""

import re
from collections.abc import Collection
from urllib.parse import unquote

from mmtune.errors import DataError


def split_options(url: str, known: Collection[str], store: str, query: bool = True) -> tuple[str, dict[str, str]]:
    """Return (the URL without the options of mmtune, {option: value}).

    known: names of the store's options, without the prefix `mmtune_`; store: its kind, for messages
    query: whether the options stand in the query of a URL; else they stand in a libpq string (`host=... mmtune_pool=3`)

    Raises DataError for an unknown option.
    """
    found: dict[str, str] = {}

    def take(match: re.Match[str]) -> str:
        found[match["name"]] = unquote(match["value"]) if query else match["value"].strip("'")
        return match["head"] if match["head"] == "?" else ""

    if query:
        rest = re.sub(r"(?P<head>[?&])mmtune_(?P<name>\w+)=(?P<value>[^&#]*)", take, url)
        if found:
            rest = rest.replace("?&", "?").rstrip("?")
    else:
        rest = re.sub(r"(?P<head>\s*)\bmmtune_(?P<name>\w+)\s*=\s*(?P<value>'[^']*'|\S+)", take, url).strip()
    for name in found:
        if name not in known:
            raise DataError(f"store {store}: no option mmtune_{name}; choose from mmtune_{', mmtune_'.join(sorted(known))}")
    return rest, found
