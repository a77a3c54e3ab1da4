"""A click log from a known click model: position bias, noise, bots, and a ranker that puts some wrong items high."""

from dataclasses import dataclass

import numpy as np

NAMES = {
    "query": "q",
    "item": "sku",
    "position": "rank",
    "clicked": "clicked",
    "time": "ts",
    "session": "session",
    "user": "user",
}
"""The columns of a simulated log, by the parameter of `pairs_from_logs` that they are for."""


@dataclass
class SimulatedLog:
    """columns: the log. truth: {(query, item): relevance 0 to 1}. examination: probability by rank, from rank 1."""

    columns: dict[str, np.ndarray]
    truth: dict[tuple[str, str], float]
    examination: np.ndarray

    def table(self):
        import pyarrow as pa

        return pa.table({k: pa.array(v) for k, v in self.columns.items()})


def simulate(
    sessions=6000,
    queries=30,
    items_per_query=12,
    shown=8,
    noise=0.05,
    bots=3,
    bot_sessions=40,
    exponent=1.0,
    swaps=0.7,
    seed=0,
    relevance=None,
    query_names=None,
    item_names=None,
):
    """Position-based model: P(click) = examination(rank) * attractiveness, attractiveness = noise + (1 - noise) * relevance.

    The ranker orders by a score that agrees with relevance only in part, and a jitter (`swaps`) moves results between lists, as in
    any live system. Bots search very fast and click everything they see.

    relevance: float [queries, items_per_query] of 0 to 1; default: drawn, mostly 0
    query_names, item_names: strings [queries] and [queries, items_per_query]; default: numbers
    """
    rng = np.random.default_rng(seed)
    if relevance is None:
        relevance = rng.choice([0.0, 0.15, 0.45, 0.9], (queries, items_per_query), p=[0.45, 0.25, 0.2, 0.1])
    queries, items_per_query = relevance.shape
    score = 0.5 * relevance + rng.normal(0, 0.5, relevance.shape)
    examination = np.arange(1, shown + 1) ** -exponent
    human = sessions
    q = np.concatenate([rng.integers(0, queries, human), rng.integers(0, queries, bots * bot_sessions)])
    is_bot = np.arange(len(q)) >= human
    jitter = rng.normal(0, swaps, (len(q), items_per_query))
    order = np.argsort(-(score[q] + jitter), axis=1)[:, :shown]
    attract = noise + (1 - noise) * relevance[q[:, None], order]
    clicked = rng.random(order.shape) < examination * attract
    clicked |= is_bot[:, None]
    session = np.arange(len(q))
    user = np.where(is_bot, 10_000_000 + (session - human) // bot_sessions, session // 3)
    start = np.sort(rng.uniform(1_767_225_600, 1_767_225_600 + 30 * 86400, len(q)))
    start = np.where(is_bot, 1_767_300_000 + user % 1000 * 3600 + (session - human) % bot_sessions * 0.3, start)
    rows = order.size
    shuffle = rng.permutation(rows)
    query_names = query_names if query_names is not None else np.array([f"query {i:03d}" for i in range(queries)])
    if item_names is None:
        item_names = np.array([[f"item-{i:03d}-{j:02d}" for j in range(items_per_query)] for i in range(queries)])
    columns = {
        "q": np.repeat(query_names[q], shown)[shuffle],
        "sku": item_names[q[:, None], order].ravel()[shuffle],
        "rank": np.tile(np.arange(1, shown + 1), len(q))[shuffle],
        "clicked": clicked.ravel()[shuffle],
        "ts": np.repeat(start, shown)[shuffle],
        "session": np.repeat(session, shown)[shuffle],
        "user": np.repeat(user, shown)[shuffle],
    }
    truth = {
        (str(query_names[i]), str(item_names[i, j])): float(relevance[i, j])
        for i in range(queries)
        for j in range(items_per_query)
    }
    return SimulatedLog(columns, truth, examination)


def picture_shop(folder, photos=4, seed=0, **options):
    """Pictures of coloured shapes, a table of them, and a simulated log of searches such as "red circle".

    An item is relevant 0.9 for its own colour and shape, 0.3 for its shape alone, 0.15 for its colour alone. Returns the log, whose
    `truth` covers all queries and items; writes FOLDER/items.csv (sku, photo, brand) and FOLDER/log.parquet.
    """
    import pyarrow.parquet as pq
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    colours = {
        "red": (200, 30, 30),
        "green": (30, 160, 60),
        "blue": (40, 60, 200),
        "yellow": (220, 200, 40),
        "black": (20, 20, 20),
    }
    shapes = {
        "circle": lambda d, b, c: d.ellipse(b, fill=c),
        "square": lambda d, b, c: d.rectangle(b, fill=c),
        "triangle": lambda d, b, c: d.polygon([(b[0], b[3]), (b[2], b[3]), ((b[0] + b[2]) / 2, b[1])], fill=c),
        "ring": lambda d, b, c: d.ellipse(b, outline=c, width=6),
    }
    (folder / "photos").mkdir(parents=True)
    items, lines = [], ["sku,photo,brand"]
    for colour in colours:
        for shape, draw in shapes.items():
            for n in range(photos):
                sku, size = f"{colour}-{shape}-{n}", rng.integers(24, 40)
                x, y = rng.integers(2, 60 - size, 2)
                picture = Image.fromarray(rng.integers(200, 256, (64, 64, 3), dtype=np.uint8))
                shade = tuple(int(v) for v in np.clip(np.array(colours[colour]) + rng.integers(-20, 21, 3), 0, 255))
                draw(ImageDraw.Draw(picture), [int(x), int(y), int(x + size), int(y + size)], shade)
                picture.save(folder / "photos" / f"{sku}.png")
                items.append((sku, colour, shape))
                lines.append(f"{sku},photos/{sku}.png,brand {n % 2}")
    (folder / "items.csv").write_text("\n".join(lines) + "\n")
    names = [(c, s) for c in colours for s in shapes]

    def relevant(query, item):
        same_colour, same_shape = query[0] == item[1], query[1] == item[2]
        return 0.9 if same_colour and same_shape else 0.3 * same_shape + 0.15 * same_colour

    candidates = np.stack([rng.permutation(len(items))[:24] for _ in names])
    for row, query in zip(candidates, names, strict=True):  # each list holds some that are right
        own = [i for i, item in enumerate(items) if item[1:] == query]
        row[: len(own)] = own
        others = [i for i in rng.permutation(len(items)) if i not in own]
        row[len(own) :] = others[: len(row) - len(own)]
    relevance = np.array([[relevant(q, items[i]) for i in row] for q, row in zip(names, candidates, strict=True)])
    ids = np.array([[items[i][0] for i in row] for row in candidates])
    log = simulate(
        seed=seed, relevance=relevance, query_names=np.array([" ".join(q) for q in names]), item_names=ids, **options
    )
    pq.write_table(log.table(), folder / "log.parquet")
    log.truth = {(" ".join(q), item[0]): relevant(q, item) for q in names for item in items}
    return log
