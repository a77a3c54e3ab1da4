"""Batches with repeated items, groups and missing sides, and the losses re-computed by plain Python loops."""

import math

import torch

from mmtune.contracts import Batch


def unit(n, d, seed, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=g, dtype=dtype), dim=1)


def make_batch(rows, columns=None, ids=None):
    """rows: (group or 0, a-content or 0, b-content or 0, asks) each; items get slots in order of first use."""
    n = len(rows)
    slot = {"a": [], "b": []}
    order = {"a": {}, "b": {}}
    for r in rows:
        for m, content in (("a", r[1]), ("b", r[2])):
            slot[m].append(order[m].setdefault(content, len(order[m])) if content else -1)
    t = torch.tensor
    return Batch(
        ids=ids or [f"r{i}" for i in range(n)],
        index=torch.arange(n),
        is_query=t([bool(r[3]) for r in rows]),
        inputs={m: {"x": torch.zeros(len(order[m]), 1)} for m in order},
        item_of_row={m: t(s) for m, s in slot.items()},
        labels={
            "id": t([1000 + i for i in range(n)]),
            "group": t([r[0] for r in rows]),
            "a": t([r[1] for r in rows]),
            "b": t([r[2] for r in rows]),
        },
        columns=columns or {},
    )


ROWS = [
    # group, a, b, asks
    (1, 11, 21, True),
    (1, 12, 22, True),
    (2, 13, 23, True),
    (2, 14, 23, True),
    (0, 15, 24, True),
    (0, 16, 21, True),
    (3, 17, 0, True),
    (4, 0, 25, True),
    (0, 0, 26, False),
    (1, 0, 27, False),
    (5, 18, 28, False),
    (0, 15, 24, True),
]


def naive_sides(batch, a, b):
    """(queries, candidates, related(q, c), own pairs [(row, q, c)]) by loops over rows; items are content numbers."""
    rows = range(len(batch.ids))

    def has(r, m):
        return int(batch.item_of_row[m][r]) >= 0

    def content(r, m):
        return int(batch.labels[m][r])

    asks = [r for r in rows if bool(batch.is_query[r]) and has(r, a) and has(r, b)]
    takes = [r for r in rows if (has(r, a) and has(r, b)) or not bool(batch.is_query[r])]
    queries = sorted({content(r, a) for r in asks})
    candidates = sorted({content(r, b) for r in takes if has(r, b)})

    def labels(m, item):
        mine = [r for r in takes if has(r, m) and content(r, m) == item]
        return {(k, int(batch.labels[k][r])) for r in mine for k in ("id", "group", a, b) if int(batch.labels[k][r])}

    def related(q, c):
        return bool(labels(a, q) & labels(b, c))

    return queries, candidates, related, [(r, content(r, a), content(r, b)) for r in asks]


def naive_contrastive(batch, z, a, b, row_loss, weights=None, by_item=False):
    """Weighted mean over queries; row_loss(sims of positives, sims of negatives, [(sim, weight) of row pairs], graded)."""
    queries, candidates, related, own = naive_sides(batch, a, b)
    asking = {c for _, _, c in own}
    mined = {
        (int(batch.labels[a][q]), int(batch.labels[b][c]))
        for q, c in batch.hard_negatives.get(f"{a}->{b}", torch.zeros(2, 0)).T.int()
    }

    def meets(q, c):
        return not batch.hard_negatives or c in asking or (q, c) in mined

    def vector(m, item):
        row = next(r for r in range(len(batch.ids)) if int(batch.labels[m][r]) == item)
        return z[m][int(batch.item_of_row[m][row])]

    total, norm = 0.0, 0.0
    for q in queries:
        mine = [(c, 1.0 if weights is None else float(weights[r])) for r, x, c in own if x == q]
        owned = {c for c, w in mine if w > 0}

        def sim(c, q=q):
            return float((vector(a, q) * vector(b, c)).sum())

        pos = [sim(c) for c in candidates if (related(q, c) if weights is None else c in owned)]
        neg = [sim(c) for c in candidates if not related(q, c) and meets(q, c)]
        w = sum(x for _, x in mine)
        if not pos or w == 0:
            continue
        w = 1.0 if by_item else w
        total += w * row_loss(pos, neg, [(sim(c), x) for c, x in mine if c in owned], weights is not None)
        norm += w
    return total / norm


def logsum(values):
    return math.log(sum(math.exp(v) for v in values))


def naive_info_nce(scale, positives="mean", smoothing=0.0, hardness=0.0, robustness=0.0):
    def of_probability(p):
        return (1 - p**robustness) / robustness if robustness else -math.log(p)

    def negative_mass(neg):
        if not neg:
            return 0.0
        weigh = [math.exp(hardness * scale * s) for s in neg]
        return sum(len(neg) * w / sum(weigh) * math.exp(scale * s) for w, s in zip(weigh, neg, strict=True))

    def loss(pos, neg, own, graded):
        mass = negative_mass(neg)
        total = sum(w for _, w in own)
        share = [(s, w / total) for s, w in own] if graded or positives == "mask" else [(s, 1 / len(pos)) for s in pos]
        if positives == "sum":
            e = sum(len(pos) * w * math.exp(scale * s) for s, w in share)
            return of_probability(e / (e + mass))
        others = 0.0 if positives == "mask" else sum(math.exp(scale * s) for s in pos)
        value = 0.0
        for s, w in share:
            against = (math.exp(scale * s) if positives == "mask" else others) + mass
            value += w * of_probability(math.exp(scale * s) / against)
        attained = sum(w * scale * s for s, w in share)
        targets = sorted({s for s, _ in own}) if positives == "mask" else pos
        even = sum(scale * s for s in targets + neg) / len(targets + neg)
        return value + smoothing * (attained - even)

    return loss


def naive_sigmoid(scale, bias):
    def loss(pos, neg, own, graded):
        yes = sum(math.log(1 + math.exp(-(scale * s + bias))) for s in pos)
        return yes + sum(math.log(1 + math.exp(scale * s + bias)) for s in neg)

    return loss


def naive_triplet(margin, distance, mining):
    def d(s):
        return 1 - s if distance == "cosine" else math.sqrt(2 - 2 * s)

    def loss(pos, neg, own, graded):
        if not neg:
            return 0.0
        if mining == "hard":
            return max(0.0, max(map(d, pos)) - min(map(d, neg)) + margin)
        total = 0.0
        for p in map(d, pos):
            farther = [x for x in map(d, neg) if x > p]
            total += max(0.0, p - (min(farther) if farther else max(map(d, neg))) + margin)
        return total / len(pos)

    return loss
