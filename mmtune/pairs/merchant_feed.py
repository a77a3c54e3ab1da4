"""Read product feeds in XML (Google Merchant: RSS 2.0 with <item>, Atom with <entry>) as a table.

The file is parsed by defusedxml, which refuses entity declarations and external references, and in a stream, so that a feed of a
million products needs little memory. Elements become columns by their names without the namespace (`g:image_link` and `image_link`
are one column); an element that occurs several times in an item becomes a list. A `product_detail` becomes a column with the name of
its attribute; other nested elements become objects.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.data.sources.row_source import Cells, InvalidRow, RowSource
from mmtune.data.sources.text_tables import file_digest
from mmtune.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

SUFFIXES = (".xml", ".rss", ".atom")
ITEMS = ("item", "entry")
DETAIL = "product_detail"


def open_feed(path: Path) -> RowSource:
    """Open an XML feed. It is read once, to find the columns.

    Raises DataError if the file has no product, is no XML from its start, or declares entities; MissingExtra without defusedxml.
    """
    columns: dict[str, None] = {}
    total, broken = 0, ""
    for row in feed_rows(path):
        if isinstance(row, InvalidRow):
            broken = row.reason
        else:
            total += 1
            columns |= dict.fromkeys(row)
    if not total:
        raise DataError(f"{path}: {broken or 'no <item> or <entry> in it; is it a product feed?'}")
    return RowSource(
        path, "xml", path.parent, list(columns), total, file_digest(path)[0], lambda _: feed_rows(path), frozenset(columns)
    )


def feed_rows(path: Path) -> Iterator[Cells | InvalidRow]:
    """Yield the products of a feed. If the file is damaged, those before the damage come first, then an InvalidRow that says where it is."""
    try:
        from defusedxml.common import DefusedXmlException
        from defusedxml.ElementTree import ParseError, iterparse
    except ModuleNotFoundError:
        raise MissingExtra(f'{path}: reading XML needs defusedxml: pip install "mmtune[pairs]"') from None

    open_elements: list[Element] = []
    try:
        for event, element in iterparse(str(path), events=("start", "end")):
            if event == "start":
                open_elements.append(element)
                continue
            open_elements.pop()
            if _name(element) in ITEMS:
                yield _cells(element)
                if open_elements:
                    open_elements[-1].remove(element)  # or the whole feed would stay in memory
    except DefusedXmlException as e:
        raise DataError(f"{path}: refused, because it declares entities or external references ({type(e).__name__})") from None
    except (ParseError, UnicodeError, LookupError, ValueError) as e:  # LookupError: an encoding that Python does not know
        yield InvalidRow(f"not well-formed XML from here on ({e})")


def _name(element: "Element") -> str:
    return str(element.tag).rpartition("}")[2]


def _cells(item: "Element") -> dict[str, object]:
    cells: dict[str, object] = {}
    for child in item:
        name, value = _name(child), _value(child)
        if name == DETAIL and isinstance(value, dict):
            name, value = str(value.get("attribute_name") or DETAIL), value.get("attribute_value")
        if value in (None, "", {}):
            continue
        before = cells.get(name)
        cells[name] = value if before is None else [*before, value] if isinstance(before, list) else [before, value]
    return cells


def _value(element: "Element") -> object:
    if len(element):
        return {_name(child): _value(child) for child in element}
    text = (element.text or "").strip()
    return text or element.get("href") or ""
