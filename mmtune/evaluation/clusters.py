"""What is resampled together: rows that are one thing, by group or by content."""

from collections.abc import Mapping

from mmtune.contracts import Embeddings


def row_clusters(vectors: Mapping[str, Embeddings]) -> dict[str, int]:
    """Row id -> cluster. Rows linked by a group or by identical content of an embedded modality, also in a chain, are one.

    The same clusters serve every direction of a corpus, so that a resample draws the same things in all of them.
    """
    known: dict[tuple[str, object], int] = {}
    parent: list[int] = []

    def root(x: int) -> int:
        while parent[x] != x:
            parent[x] = x = parent[parent[x]]
        return x

    def node(key: tuple[str, object]) -> int:
        if key not in known:
            known[key] = len(parent)
            parent.append(len(parent))
        return known[key]

    rows: dict[str, int] = {}
    for name, e in vectors.items():
        group, content = e.labels.get("group"), e.labels.get(name)
        for i, row in enumerate(e.ids):
            rows[row] = me = node(("id", row))
            mark: object = (group[i] or None) if group is not None else e.groups[i]
            if mark is not None:
                parent[root(me)] = root(node(("group", mark)))
            if content is not None and content[i]:
                parent[root(me)] = root(node((f"content {name}", int(content[i]))))
    number: dict[int, int] = {}
    return {row: number.setdefault(root(me), len(number)) for row, me in sorted(rows.items())}
