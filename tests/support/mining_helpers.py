"""A naive reference for mining, over rows and full matrices, and small corpora with ties, groups and shared content."""

import numpy as np

from mmtune.contracts import Embeddings


def corpus(n, dim, seed=0, groups=6, grouped=0.7, shared=0.3, dyadic=True):
    """Two modalities "a" and "b" of n rows. dyadic: vectors of +-0.5 on four dimensions: exact scores, many ties."""
    rng = np.random.default_rng(seed)
    ids = [f"r{i:04d}" for i in rng.permutation(n)]
    group = np.where(rng.random(n) < grouped, rng.integers(1, groups + 1, n), 0)
    content_b = np.arange(1, n + 1)
    many = rng.random(n) < shared
    content_b[many] = 1000 + rng.integers(1, max(2, n // 8), many.sum())
    labels = {"id": np.arange(1, n + 1), "group": group, "a": np.arange(1, n + 1) + 5000, "b": content_b + 9000}

    def vectors(content):
        out = np.zeros((n, dim), np.float32)
        for c in np.unique(content):
            r = np.random.default_rng([seed, int(c)])
            v = np.zeros(dim, np.float32)
            if dyadic:
                v[r.choice(dim, 4, replace=False)] = r.choice([-0.5, 0.5], 4)
            else:
                v[:] = r.standard_normal(dim)
                v /= np.linalg.norm(v)
            out[content == c] = v
        return out

    names = [None if g == 0 else f"g{g}" for g in group]
    labels = {k: v.astype(np.int64) for k, v in labels.items()}
    return {
        "a": Embeddings(ids, names, labels, vectors(labels["a"]), "print"),
        "b": Embeddings(ids, names, labels, vectors(labels["b"]), "print"),
    }


def permuted(embedded, seed):
    """The same rows in another order."""
    n = len(next(iter(embedded.values())).ids)
    p = np.random.default_rng(seed).permutation(n)
    return {
        m: Embeddings(
            [e.ids[i] for i in p], [e.groups[i] for i in p], {k: v[p] for k, v in e.labels.items()}, e.vectors[p], e.fingerprint
        )
        for m, e in embedded.items()
    }


def naive_items(e, name):
    """[(id, rows)] in descending order of id; an item's id is the smallest of its rows'."""
    by_content = {}
    for row in range(len(e.ids)):
        label = int(e.labels[name][row])
        by_content.setdefault(label if label else ("row", row), []).append(row)
    items = [(min(e.ids[r] for r in rows), rows) for rows in by_content.values()]
    return sorted(items, reverse=True)


def naive_same(ea, ra, eb, rb, groups=True):
    """Whether row ra of ea and row rb of eb are positives of each other: by row id, and with groups also by group and content."""
    kinds = ["id", "group", *(k for k in ea.labels if k not in ("id", "group"))] if groups else ["id"]
    return any(ea.labels[k][ra] != 0 and ea.labels[k][ra] == eb.labels[k][rb] for k in kinds)


def naive_score(ea, ia, eb, ib):
    """Cosine on the grid of 2**-24, of the rows that name the items."""
    va = ea.vectors[next(r for r in ia[1] if ea.ids[r] == ia[0])].astype(np.float64)
    vb = eb.vectors[next(r for r in ib[1] if eb.ids[r] == ib[0])].astype(np.float64)
    return float(np.rint((va * vb).sum() * 2**24) / 2**24)


def naive_mine(
    embedded,
    a,
    b,
    *,
    negatives=4,
    window=30,
    skip_top=0,
    max_score=None,
    absolute=None,
    relative=None,
    groups=True,
    trust=True,
    positive="mean",
    hub_cap=None,
    near=None,
):
    """{(query id, item id): (rank, score, positive, reason or "mined")} of everything in the window, by loops."""
    ea, eb = embedded[a], embedded[b]
    qs, cs = naive_items(ea, a), naive_items(eb, b)
    scores = np.array([[naive_score(ea, q, eb, c) for c in cs] for q in qs])

    def known(q, c):
        return (a == b and q is c) or any(naive_same(ea, x, eb, y, groups) for x in q[1] for y in c[1])

    cs = qs if a == b else cs
    same = np.array([[known(q, c) for c in cs] for q in qs])
    combine = {"mean": lambda v: float(np.mean([round(x * 2**24) for x in v])) / 2**24, "min": min, "max": max}[positive]
    pos = []
    for i, q in enumerate(qs):
        own = (
            []
            if a == b
            else [j for j, c in enumerate(cs) if {ea.labels["id"][r] for r in q[1]} & {eb.labels["id"][r] for r in c[1]}]
        )
        if not own:
            own = [j for j in range(len(cs)) if same[i, j] and not (a == b and i == j)]
        pos.append(combine([scores[i, j] for j in own]) if own else None)
    have = [p for p in pos if p is not None]
    middle = np.round(np.quantile(have, 0.5) * 2**24) / 2**24 if have else (1.0 if a == b else None)
    pos = [middle if p is None else p for p in pos]
    wanted = [min(negatives * len(q[1]), window) for q in qs]
    cap = None if hub_cap is None else max(int(np.ceil(hub_cap * sum(wanted) / len(cs))), 1)
    times_mined = [0] * len(cs)
    out = {}
    for i, q in enumerate(qs):
        free = [j for j in sorted(range(len(cs)), key=lambda j: (-scores[i, j], j)) if not same[i, j]]
        taken = 0
        for rank, j in enumerate(free[:window], 1):
            s, p = scores[i, j], pos[i]
            trusted = (
                trust and groups and all(ea.labels["group"][r] for r in q[1]) and all(eb.labels["group"][r] for r in cs[j][1])
            )
            reason = None
            if not trusted:
                if rank <= skip_top:
                    reason = "skip_top"
                elif max_score is not None and s > max_score:
                    reason = "max_score"
                elif absolute is not None and p is not None and s > p - absolute:
                    reason = "absolute_margin"
                elif relative is not None and p is not None and s > p - relative * abs(p):
                    reason = "relative_margin"
                elif near is not None and near(q, cs[j]):
                    reason = "near_duplicate"
            if reason is None and taken < wanted[i]:
                if cap is not None and times_mined[j] >= cap:
                    reason = "hub"
                else:
                    times_mined[j] += 1
                    taken += 1
                    reason = "mined"
            out[q[0], cs[j][0]] = (rank, s, p, reason)
    return out
