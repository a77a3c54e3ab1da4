"""Corpora of random unit vectors with ids, groups and content labels; a judge that goes through ir_measures."""

import math

import ir_measures
import numpy as np

from mmtune.contracts import Embeddings

MEASURES = {"hit": ir_measures.Success, "recall": ir_measures.R, "precision": ir_measures.P, "ndcg": ir_measures.nDCG}


def measure(name):
    base, _, k = name.partition("@")
    return MEASURES[base] @ int(k) if k else {"mrr": ir_measures.RR, "map": ir_measures.AP}[base]


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def corpus(rng, n, dim, groups, *, names=("a", "b"), content=None, coarse=False, missing=0.0):
    """{modality: Embeddings}; `coarse` vectors lie on few points, so scores tie; `content` distinct contents a modality."""
    ids = [f"row-{i}" for i in rng.permutation(10 * n)[:n]]
    group = rng.integers(0, groups + 1, n)  # 0: no group
    labels = {"id": np.arange(1, n + 1), "group": group.astype(np.int64)}
    vectors = {}
    for name in names:
        label = rng.integers(1, (content or 10**6) + 1, n)
        table = rng.integers(-1, 2, (label.max() + 1, dim)) if coarse else rng.standard_normal((label.max() + 1, dim))
        table = table.astype(np.float64)
        table[~table.any(1)] = 1
        labels[name], vectors[name] = label, unit(table)[label]
    out = {}
    for name in names:
        keep = np.flatnonzero(rng.random(n) >= missing)
        out[name] = Embeddings(
            [ids[i] for i in keep],
            [f"g{group[i]}" if group[i] else None for i in keep],
            {k: v[keep] for k, v in labels.items()},
            vectors[name][keep],
        )
    return out


def naive_items(name, e):
    """[(id, vector, row ids, groups)] with equal content united, by plain loops."""
    found = {}
    for i, row in sorted(enumerate(e.ids), key=lambda x: x[1]):
        item = found.setdefault(int(e.labels[name][i]), (row, e.vectors[i], set(), set()))
        item[2].add(row)
        item[3].update([e.groups[i]] if e.groups[i] else [])
    return list(found.values())


def naive_score(a, b):
    """The stated score: the exact cosine sum, rounded to 2**-24 and clipped."""
    exact = math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return max(-1.0, min(1.0, round(exact * 2**24) / 2**24))


def naive_direction(a, b, left, right, qrels=None):
    """(run, qrels) of one direction, as dicts of strings, for ir_measures."""
    queries, candidates = naive_items(a, left), naive_items(b, right)
    run, truth = {}, {}
    for q, qv, q_rows, q_groups in queries:
        run[q], truth[q] = {}, {}
        for d, dv, d_rows, d_groups in candidates:
            if a == b and q == d:
                continue
            run[q][d] = naive_score(qv, dv)
            if qrels is None:
                grade = int(bool(q_groups & d_groups) or (a != b and bool(q_rows & d_rows)))
            else:
                grade = max((qrels.get(x, {}).get(y, 0) for x in q_rows for y in d_rows), default=0)
            if grade > 0:
                truth[q][d] = grade
        if not truth[q]:
            del run[q], truth[q]
    return run, truth


def judge(run, truth, names):
    """Means by ir_measures over the judged queries."""
    scored = ir_measures.calc_aggregate([measure(n) for n in names], truth, run)
    return {n: scored[measure(n)] for n in names}


def picture(rng, colour, size=(64, 48), noise=6):
    """PNG bytes of one colour with a random bright patch and noise: no two alike."""
    import io

    from PIL import Image

    x = np.full((size[1], size[0], 3), colour, np.float64) + rng.normal(0, noise, (size[1], size[0], 3))
    top, left = rng.integers(0, size[1] - 16), rng.integers(0, size[0] - 16)
    x[top : top + 14, left : left + 14] += rng.integers(60, 120, 3)
    out = io.BytesIO()
    Image.fromarray(x.clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def sound(rng, pitch, rate=8000, seconds=1.0, level=0.3):
    """FLAC bytes of a tone in noise."""
    import io

    import soundfile

    t = np.arange(int(rate * seconds)) / rate
    x = level * np.sin(2 * np.pi * pitch * t + rng.random()) * (0.6 + 0.4 * rng.random()) + level / 3 * rng.standard_normal(
        len(t)
    )
    out = io.BytesIO()
    soundfile.write(out, x.clip(-0.95, 0.95), rate, format="FLAC")
    return out.getvalue()


def shards(path, rows):
    """A WebDataset tar of rows {"id", "group", suffix: bytes, "meta": {...}}; returns DATA."""
    import io
    import json
    import tarfile

    path.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path / "part-0.tar", "w") as tar:
        for number, row in enumerate(rows):
            meta = {"id": row["id"], "group": row.get("group"), **row.get("meta", {})}
            for suffix, data in {
                **{k: v for k, v in row.items() if isinstance(v, bytes)},
                "json": json.dumps(meta).encode(),
            }.items():
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


def coloured_rows(seed, count=36, start=0):
    """Rows with an image and a caption of six groups, and the metadata column "kind"."""
    rng = np.random.default_rng(seed)
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (180, 180, 40), (40, 180, 180), (180, 40, 180)]
    return [
        {
            "id": f"r{start + i}",
            "group": f"g{i % 6}",
            "png": picture(rng, colours[i % 6], (64 + 8 * (i % 5), 48)),
            "txt": f"a thing of colour number {i % 6}, item {start + i}".encode(),
            "meta": {"kind": "even" if i % 2 == 0 else "odd"},
        }
        for i in range(count)
    ]
