"""Results as HTML. Everything that comes from data is escaped here or by the modality that draws it."""

import html
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mmtune import modalities
from mmtune.errors import Rejected
from mmtune.serve.error_responses import Refusal

if TYPE_CHECKING:
    from mmtune.serve.service import Service

CELL = 200  # characters of a metadata value that are shown
STYLE = """
.mm-top h1{margin:0;font-size:1.4rem}.mm-said{margin:0}
.mm-row{background:var(--background-fill-primary);border:1px solid var(--border-color-primary);border-radius:10px;padding:.7rem}
.mm-row .mm-row,.mm-row .styler,.mm-row .block{background:none;border:0;padding:0}
.mm-hit{display:grid;gap:.45rem}
.mm-hit .head{display:flex;justify-content:space-between;gap:.6rem;font-variant-numeric:tabular-nums}
.mm-hit .head b{overflow-wrap:anywhere}
.mm-hit .values{display:flex;flex-wrap:wrap;gap:.8rem;align-items:center}
.mm-hit .values>img{max-width:160px;max-height:160px;min-width:64px;object-fit:contain;border-radius:6px}
.mm-hit .sound{display:grid;gap:.15rem;width:min(100%,240px)}
.mm-hit .sound svg{width:100%;height:26px;stroke:currentColor;fill:none;stroke-width:.6;vector-effect:non-scaling-stroke}
.mm-hit .sound img{width:100%;height:44px}
.mm-hit [controls]{width:100%;min-width:200px;height:32px}
.mm-hit .words{margin:0;flex:1 1 12rem}
.mm-hit p.meta{margin:0;font-size:.85em;overflow-wrap:anywhere}
.mm-hit p.meta span{margin-right:.9em}
.mm-marks{margin-top:.5rem;gap:.5rem!important}
.mm-mark{border:1px solid var(--border-color-primary)!important;border-radius:6px!important}
.mm-no{color:#b3261e;font-weight:600;margin:0}.dark .mm-no{color:#ff8a80}
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
        cards = "".join(self._card(result["id"], m, contents[m][0]) for m in modalities.names() if m in contents)
        meta = {"group": result.get("group"), **result.get("meta", {})}
        cells = "".join(
            f"<span>{html.escape(str(k))}: <b>{html.escape(str(v)[:CELL])}</b></span>" for k, v in meta.items() if v is not None
        )
        head = f"<span>{rank}. <b>{html.escape(result['id'])}</b></span><span>{result['score']:.3f}</span>"
        parts = f'<div class="head">{head}</div><div class="values">{cards}</div><p class="meta">{cells}</p>'
        return f'<div class="mm-hit">{parts}</div>'


def heading(name: str, line: str) -> str:
    """The top of the page."""
    return f'<div class="mm-top"><h1>{html.escape(name)}</h1><p class="mm-said">{html.escape(line)}</p></div>'


def said(document: dict[str, Any]) -> str:
    """The line over a column of results."""
    count = len(document["results"])
    found = f"{count} result{'' if count == 1 else 's'}" if count else "nothing found"
    version = html.escape(document["version"])
    return f'<p class="mm-said"><b>{version}</b> · {found} · {1000 * document["seconds"]:.0f} ms</p>'


def refused(message: str) -> str:
    """The line where there are none."""
    return f'<p class="mm-no" role="alert">{html.escape(message)}</p>'
