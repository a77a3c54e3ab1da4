"""What `mmtune index` says to people."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtune.index.protocols import SearchResponse


def built(done: dict[str, Any]) -> str:
    """After a build: what there is, and what comes next."""
    indexes = ", ".join(f"{m} ({i['index']}, {done['vectors'][m]:,} vectors)" for m, i in done["index"].items())
    behind = "".join(f"\n{v} is behind: {why}" for v, why in ((done["loaded"] or {}).get("behind") or {}).items())
    live = f"live is {done['live']}" if done["live"] else "nothing is live yet"
    return (
        f"{done['version']}: {done['items']:,} items of {done['fingerprint']} in {done['seconds']:.1f} s; {indexes}; "
        f"{done['embedded']:,} embedded, {done['reused']:,} known from before{behind}\n{live}; next: {done['next']}"
    )


def embedded(done: dict[str, Any], collection: str) -> str:
    """After the vectors of a build were made."""
    lines = [
        f"{m}: {c['rows']:,} rows, {c['contents']:,} contents, {c['embedded']:,} embedded here, {c['missing']:,} rows without"
        for m, c in done["counts"].items()
    ]
    return "\n".join([f"{collection}  {done['fingerprint']}  {done['dim']} dimensions", *lines])


def taken(done: dict[str, Any]) -> str:
    """After an upsert."""
    lines = [", ".join(f"{done[k]} {k}" for k in ("new", "changed", "same")) + f", {len(done['rejected'])} rejected"]
    lines += [f"rejected {r['id']!r}: {r['reason']}" for r in done["rejected"][:10]]
    return "\n".join([*lines, *(f"{v} is behind: {why}" for v, why in done["behind"].items())])


def plan(document: dict[str, Any]) -> str:
    """Before a build."""
    price = "" if document["price"] is None else f", {document['price']:.2f} at {document['price_per_hour']:g} an hour"
    seconds, size = 3600 * document["hours"], document["bytes"]
    time = f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
    room = f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
    lines = [f"{document['items']:,} items: {time}, {room}{price}"]
    for m, x in document["by_modality"].items():
        lines.append(
            f"  {m}: {x['items']:,} at {x['per_second']:,} a second (measured on {x['measured_on']}), {x['index']} index"
            + (f"; {x['known']:,} of them are embedded already" if x["known"] else "")
        )
    return "\n".join(lines)


def answer(found: "SearchResponse") -> str:
    """The best first."""
    lines = [f"{found.version}  {1000 * found.seconds:.1f} ms"]
    for n, r in enumerate(found.results, 1):
        meta = "  ".join(f"{k}={v}" for k, v in r["meta"].items())
        lines.append(f"{n:>3}  {r['score']:.4f}  {r['id']}  {r['group'] or ''}  {meta}".rstrip())
    return "\n".join(lines)


def promoted(done: dict[str, Any]) -> str:
    """The verdict first."""
    if not done["promoted"]:
        return "\n".join([f"NOT PROMOTED: {done['version']}", *(f"- {r}" for r in done["reasons"])])
    gate = done["checks"].get("gate")
    head = f"{done['version']} is live (before: {done['previous'] or 'nothing'})" + (", by force" if done["forced"] else "")
    return "\n".join(
        [head, *(f"- {r}" for r in done["reasons"]), *([f"gate: {gate['verdict']}: {gate['reason']}"] if gate else [])]
    )


def shadow(document: dict[str, Any]) -> str:
    """Live against staged."""
    state, pick = document["shadowing"], document["preference"]
    now = f"shadowing {state['version']}, {state['fraction']:.0%} of the searches" if state else "not shadowing"
    lines = [f"{now}; {document['searches']} repeated, {document['errors']} errors, {document['dropped']} dropped"]
    if document["searches"]:
        moved = "" if document["rank_change"] is None else f", shared items move {document['rank_change']:.1f} ranks"
        lines.append(f"{document['live']} -> {document['staged']}: {document['overlap']:.0%} of the answers shared{moved}")
        lines.append(f"first answer the same: {document['same_first']:.0%}")
        for side in ("live", "staged"):
            ms = document[side + "_ms"]
            lines.append(f"{side}: p50 {ms['p50']:.1f} ms, p95 {ms['p95']:.1f} ms, {document['empty_' + side]} empty")
    if pick["clicked"]:
        low, high = pick["interval"]
        lines.append(
            f"interleaved: {pick['staged']} for staged, {pick['live']} for live, {pick['ties']} ties; staged wins "
            f"{low:.0%} to {high:.0%}" + (f": {pick['prefers']} is preferred" if pick["prefers"] else ": undecided")
        )
    return "\n".join(lines)


def status(document: dict[str, Any]) -> str:
    """A line a version."""
    live = f"{document['live']} is live since {document['since']}" if document["live"] else "nothing is live"
    lines = [f"{document['collection']}: {document['items']:,} items; {live}"]
    for v in document["versions"]:
        mark = "live" if v["live"] else "previous" if v["can_roll_back_to"] else ""
        gate = ((v["gate"] or {}).get("gate") or {}).get("verdict", "")
        index = ", ".join(f"{m} {i['index']}" for m, i in v["index"].items())
        behind = f"  {v['behind']} changes behind" if v["behind"] else ""
        lines.append(
            f"  {v['version']:<4} {mark:<8} {v['fingerprint']}  {v['items']:,} items  {v['store']['kind']} ({index})  "
            f"{v['created']}  {v['model']}{'  gate: ' + gate if gate else ''}{behind}"
        )
    if document["shadow"]:
        lines.append(f"  shadowing {document['shadow']['version']}, {document['shadow']['fraction']:.0%} of the searches")
    return "\n".join(lines)


def journal(lines: list[dict[str, Any]]) -> str:
    """A line an event."""
    return "\n".join(
        f"{x['at'][:19]}  {x['who']:<10} {x['what']:<10} {x['version'] or '':<5} {_told(x)}".rstrip() for x in lines
    )


def _told(x: dict[str, Any]) -> str:
    """What an event's line says beside who, what and when."""
    parts = []
    if x.get("items") is not None:
        parts.append(f"{x['items']:,} items" + (f" of {x['fingerprint']}" if "fingerprint" in x else ""))
    if "generation" in x:
        parts.append(f"before: {x['previous'] or 'nothing'}")
    if x.get("gate"):
        parts.append(f"gate: {x['gate']['verdict']}")
    if "fraction" in x:
        parts.append(f"{x['fraction']:.0%} of the searches")
    if x.get("why"):
        parts.append(f"why: {x['why']}")
    if x.get("reasons"):
        parts.append(("forced over: " if x.get("forced") else "") + "; ".join(x["reasons"]))
    return "; ".join(parts)
