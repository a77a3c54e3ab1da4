"""Render the templates in `mmtune/html/templates`. Every inserted value is escaped unless it is a `markupsafe.Markup`."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2
    from markupsafe import Markup


@cache
def environment() -> "jinja2.Environment":
    """Return the Jinja environment of all pages. It escapes inserted values and raises an error for an undefined variable."""
    import jinja2

    shared = jinja2.Environment(
        loader=jinja2.PackageLoader("mmtune.html"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared.filters["cell"] = table_cell
    return shared


def render(template: str, **context: object) -> str:
    """Render a whole page or a style sheet.

    template: file name of the template
    context: the template's variables
    """
    return environment().get_template(template).render(**context)


def render_macro(template: str, macro: str, *values: object) -> "Markup":
    """Call a macro of a template and return its HTML, marked as escaped.

    template: file name of the template
    macro: name of the macro
    values: the macro's arguments
    """
    from markupsafe import Markup

    return Markup(getattr(_module(template), macro)(*values))


@cache
def _module(template: str) -> object:
    """Return the template as a module, whose attributes are its macros."""
    return environment().get_template(template).module


def trusted(fragment: str) -> "Markup":
    """Mark HTML that is already escaped, e.g. the output of `Modality.to_html`, so that templates do not escape it again."""
    from markupsafe import Markup

    return Markup(fragment)


def table_cell(value: object) -> str:
    """Format the content of a table cell: floats with three decimals, None and NaN as an empty cell."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.3f}"  # only NaN differs from itself
    return "" if value is None else str(value)
