"""Results as HTML. Everything that comes from data is escaped here or by the modality that draws it."""

import html
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mmtune import modalities
from mmtune.errors import Rejected
from mmtune.serve.refusals import Refusal

if TYPE_CHECKING:
    from mmtune.serve.service import Service

CELL = 200  # characters of a metadata value that are shown
STYLE = """
.mm-hit{display:grid;gap:.35rem;border:1px solid var(--border-color-primary,#8884);border-radius:8px;padding:.6rem}
.mm-hit .values{display:flex;flex-wrap:wrap;gap:.6rem;align-items:center}
.mm-hit img{max-width:160px;height:auto;border-radius:4px}
.mm-hit audio{width:100%;min-width:220px;height:36px}
.mm-hit .sound{display:grid;gap:.2rem;max-width:320px}
.mm-hit .sound svg{width:100%;height:36px;stroke:currentColor;fill:none;stroke-width:.6;vector-effect:non-scaling-stroke}
.mm-hit .sound img{width:100%;max-width:none;height:64px}
.mm-hit .words{margin:0}
.mm-hit dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .6rem;margin:0;font-size:.85em;opacity:.85}
.mm-hit dt{font-weight:600}.mm-hit dd{margin:0;overflow-wrap:anywhere}
.mm-hit .head{display:flex;justify-content:space-between;gap:.6rem;font-variant-numeric:tabular-nums}
.mm-hit .head b{overflow-wrap:anywhere}
.mm-said{margin:0}.mm-no{color:#b3261e;font-weight:600;margin:0}
@media (prefers-color-scheme:dark){.mm-no{color:#ff8a80}}
"""


class Cards:
    """Draws results; a value's card is drawn once and kept for a while."""

    def __init__(self, service: "Service", kept: int = 512):
        self.service = service
        self._card = lru_cache(kept)(self._draw)

    def _draw(self, id: str, modality: str, mark: int) -> str:
        try:
            data, _ = self.service.value(id, modality)
            return modalities.get(modality).card(data, id)
        except (Refusal, Rejected, NotImplementedError) as e:
            return f"<small>{html.escape(modality)}: {html.escape(str(e) or 'cannot be shown')}</small>"

    def hit(self, result: dict[str, Any], rank: int) -> str:
        """One result: rank, id, score, its values, its metadata. A changed value has another label and is drawn anew."""
        item = self.service.items([result["id"]]).get(result["id"])
        contents = item.contents if item else {}
        cards = "".join(self._card(result["id"], m, mark) for m, (mark, _) in contents.items())
        meta = {"group": result.get("group"), **result.get("meta", {})}
        cells = "".join(
            f"<dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v)[:CELL])}</dd>" for k, v in meta.items() if v is not None
        )
        head = f"<span>{rank}. <b>{html.escape(result['id'])}</b></span><span>{result['score']:.3f}</span>"
        return f'<div class="mm-hit"><div class="head">{head}</div><div class="values">{cards}</div><dl>{cells}</dl></div>'


def said(document: dict[str, Any]) -> str:
    """The line over a column of results."""
    count = len(document["results"])
    found = f"{count} result{'' if count == 1 else 's'}" if count else "nothing found"
    version = html.escape(document["version"])
    return f'<p class="mm-said"><b>{version}</b> · {found} · {1000 * document["seconds"]:.0f} ms</p>'


def refused(message: str) -> str:
    """The line where there are none."""
    return f'<p class="mm-no" role="alert">{html.escape(message)}</p>'
