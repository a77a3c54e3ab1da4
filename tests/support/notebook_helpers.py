"""The percent format, as far as our notebooks use it, without jupytext."""

import re
from pathlib import Path


def percent_cells(script: Path) -> list[tuple[str, str]]:
    """(cell type, source) of a percent script."""
    cells = []
    for part in re.split(r"^# %%", script.read_text(), flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        body = body.strip("\n")
        if "[markdown]" in head:
            cells.append(("markdown", "\n".join(re.sub(r"^# ?", "", line) for line in body.split("\n"))))
        else:
            cells.append(("code", body))
    return cells
