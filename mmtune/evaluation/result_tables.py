"""Format tables for the terminal and for notebooks."""

import io
from collections.abc import Sequence

from mmtune.html.render import render_macro


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table as plain text without colour or wrapping; the first column is left-aligned, the others right-aligned."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    width = 8 + sum(3 + max([len(c), *(len(r[i]) for r in rows)]) for i, c in enumerate(columns))
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())


def html_table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Format the same table as HTML; every cell is escaped."""
    return render_macro("values.html.j2", "table", columns, rows, caption)
