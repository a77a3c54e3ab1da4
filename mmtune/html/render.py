"""Renders a template of `mmtune/html/templates`. Every inserted value is escaped unless it is `Markup`."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup


@cache
def environment() -> "jinja2.Environment":
    """The Jinja environment that all pages share: autoescaping, and an error for a variable that is missing."""
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.PackageLoader("mmtune.html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["cell"] = table_cell
    return found


def render(template: str, **context: object) -> str:
    """A whole page or a style sheet, by the template's file name; `context` are its variables."""
    return environment().get_template(template).render(**context)


def render_macro(template: str, macro: str, *values: object) -> "Markup":
    """The HTML fragment that one macro of a template makes of `values`, marked as escaped."""
    from markupsafe import Markup

    return Markup(getattr(_module(template), macro)(*values))


@cache
def _module(template: str) -> object:
    return environment().get_template(template).module


def trusted(fragment: str) -> "Markup":
    """Marks HTML that a modality made (and has escaped) so that templates insert it as it is."""
    from markupsafe import Markup

    return Markup(fragment)


def table_cell(value: object) -> str:
    """A table cell's text: floats with three decimals, nothing for None and NaN."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.3f}"
    return "" if value is None else str(value)
