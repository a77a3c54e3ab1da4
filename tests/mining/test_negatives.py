"""From a table into training: extra rows, confusable batches, rounds; near keys, other sources and verifiers on real files."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from mmtune import modalities
from mmtune.cli import mine_verb
from mmtune.cli.dispatch import dispatch
from mmtune.contracts import Embeddings
from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError, RecipeError
from mmtune.mining.batch_negatives import BatchNegatives
from mmtune.mining.confusable_batches import ConfusableBatches
from mmtune.mining.context import row_finder
from mmtune.mining.mine_vectors import mine_vectors
from mmtune.mining.mining_rounds import MiningRounds, metric_drop, negatives_per_query, round_epochs
from mmtune.mining.near_duplicates import NearDuplicates, hash_contents
from mmtune.modalities.audio import Sound
from mmtune.recipe.mining_block import MiningOptions
from mmtune.relevance.items import unique_items
from mmtune.run import train
from tests.support import corpora
from tests.support.data_helpers import write_csv


def drawing(seed, n=48):
    """A smooth picture, so that re-encoding and scaling leave its low frequencies alone."""
    rng = np.random.default_rng(seed)
    coarse = PILImage.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))
    return coarse.resize((n, n), PILImage.Resampling.BICUBIC)


def encoded(picture, kind="PNG", **how):
    out = io.BytesIO()
    picture.save(out, kind, **how)
    return out.getvalue()


COLOURS = ["red", "blue", "green"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """24 rows of 12 products (2 pictures, one caption), packed; row 23 is row 0's picture again, smaller, without a sku."""
    place = tmp_path_factory.mktemp("shop")
    rows = []
    for i in range(24):
        name = f"{i:02d}.png"
        file = encoded(drawing(i)) if i < 23 else encoded(drawing(0).resize((40, 40)), "JPEG", quality=80)
        (place / name).write_bytes(file)
        product = i // 2 if i < 23 else 0
        caption = f"a {COLOURS[product % 3]} thing number {product}"
        text, sku = (caption, f"s{product}") if i < 23 else (f"A {caption[2:].upper()}!", "")
        more = {"sku": sku, "truth": f"s{product}", "kind": COLOURS[product % 3], "id": f"row{i:02d}"}
        rows.append({"image": name, "text": text, **more})
    write_csv(place / "rows.csv", rows)
    code = dispatch("pack", [str(place / "rows.csv"), "--out", str(place / "packed"), "--group", "sku"])
    assert code == 0
    return str(place / "packed")


def vectors(data, seed=0, dim=16):
    """Random unit vectors for every distinct content."""
    out = {}
    for m in data.modalities:
        v = np.zeros((len(data), dim), np.float32)
        for label in np.unique(data.labels[m]):
            x = np.random.default_rng([seed, int(label) & 0xFFFFFFFF]).standard_normal(dim)
            v[data.labels[m] == label] = (x / np.linalg.norm(x)).astype(np.float32)
        out[m] = Embeddings(data.ids, data.groups, data.labels, v, "print")
    return out


def plain(**more):
    return MiningOptions(guards={"relative_margin": None, "near_duplicates": False, "hub_cap": None}, **more)


def test_extra_rows_are_the_tables_and_never_known_positives(shop, tmp_path):
    data = open_data(shop)
    mine_vectors(vectors(data), tmp_path / "t.parquet", plain(negatives=3, window=6), data=data)
    negatives = BatchNegatives(tmp_path / "t.parquet", data, "print")
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    row = {i: n for n, i in enumerate(data.ids)}
    allowed = {}
    for r in table:
        if r["verdict"] == "mined":
            a, b = r["direction"].split("->")
            for q in np.flatnonzero(data.labels[a] == data.labels[a][row[r["query_id"]]]):
                same = np.flatnonzero(data.labels[b] == data.labels[b][row[r["negative_id"]]])
                allowed.setdefault((r["direction"], int(q)), set()).update(same.tolist())
    batch = np.array([0, 5, 9])
    drawn = set()
    for epoch in range(6):
        once, again = (negatives.draw(batch, 2, seed=1, epoch=epoch) for _ in range(2))
        assert set(once) == {"image->text", "text->image"}
        for name, pairs in once.items():
            np.testing.assert_array_equal(pairs, again[name])
            assert not set(pairs[1].tolist()) & set(batch.tolist()) and 1 <= pairs.shape[1] <= 3 * 2
            assert all(n in allowed[name, int(batch[q])] for q, n in pairs.T.tolist()), "each is its own query's"
            drawn |= {(name, q, n) for q, n in pairs.T.tolist()}
    assert len(drawn) > sum(pairs.shape[1] for pairs in once.values()), "other negatives in other epochs"
    only = negatives.draw(batch, {"image->text": 1}, seed=1)
    assert set(only) == {"image->text"} and only["image->text"].shape[1] <= 3, "a direction without columns brings nothing"
    with pytest.raises(DataError, match="other weights"):
        BatchNegatives(tmp_path / "t.parquet", data, "newer")
    assert "other weights" in BatchNegatives(tmp_path / "t.parquet", data, "newer", allow_stale=True).notes[0]
    with pytest.raises(DataError, match="mined on other data"):
        BatchNegatives(tmp_path / "t.parquet", Elsewhere(data), "print")


class Elsewhere:
    """The same data under other ids."""

    def __init__(self, data):
        self.spec, self.ids, self.labels, self.present = "elsewhere", [f"x{i}" for i in data.ids], data.labels, data.present

    def __len__(self):
        return len(self.ids)


def test_a_users_own_table_needs_three_columns(shop, tmp_path):
    import pyarrow as pa

    data = open_data(shop)
    own = pa.table({"direction": ["text->image"] * 2, "query_id": ["row00", "row02"], "negative_id": ["row04", "gone"]})
    pq.write_table(own, tmp_path / "own.parquet")
    with pytest.raises(DataError, match="does not say which weights"):
        BatchNegatives(tmp_path / "own.parquet", data, "print")
    negatives = BatchNegatives(tmp_path / "own.parquet", data, "print", allow_stale=True)
    row = {i: n for n, i in enumerate(data.ids)}
    assert negatives.of("text->image", row["row01"]).tolist() == [row["row04"]]  # the same caption as row00
    assert any("1 of 2 pairs" in n for n in negatives.notes)
    pq.write_table(own.drop(["negative_id"]), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="negative_id"):
        BatchNegatives(tmp_path / "bad.parquet", data, "print")


def test_confusable_batches_hold_each_row_once_and_neighbours_together(shop, tmp_path):
    data = open_data(shop)
    mine_vectors(vectors(data), tmp_path / "t.parquet", plain(negatives=1, window=1, directions=["image->image"]), data=data)
    negatives = BatchNegatives(tmp_path / "t.parquet", data, "print")

    def rows(epoch):
        return np.random.default_rng([7, epoch]).permutation(24)

    def share(batches):
        """Of all rows, how many have their negative beside them."""
        return np.mean([int(negatives.of("image->image", r)[0]) in batch for batch in batches for r in batch.tolist()])

    plan = ConfusableBatches(negatives, rows, 6, seed=3, confusable=0.9)
    for epoch in range(3):
        batches = plan(epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(24))
        assert [len(b) for b in batches] == [6] * 4
        assert all((x == y).all() for x, y in zip(batches, plan(epoch), strict=True))
    assert any((x != y).any() for x, y in zip(plan(0), plan(1), strict=True))
    plain_share = np.mean([share(np.split(rows(e), 4)) for e in range(5)])
    assert np.mean([share(plan(e)) for e in range(5)]) > 2 * plain_share
    twice = ConfusableBatches(negatives, lambda e: np.r_[np.arange(24), 3], 6, confusable=0.5)(0)
    assert sorted(np.concatenate(twice).tolist()) == sorted([*range(24), 3]) and [len(b) for b in twice] == [6, 6, 6, 7]


def test_confusable_batches_hold_as_many_groups_as_even_dealing_would(shop, tmp_path):
    data = open_data(shop)
    mine_vectors(vectors(data), tmp_path / "t.parquet", plain(negatives=2, window=4, directions=["image->image"]), data=data)
    negatives = BatchNegatives(tmp_path / "t.parquet", data, "print")
    groups = np.r_[np.full(12, 5), np.repeat([6, 7, 8], 2), np.zeros(6, np.int64)]  # one large, three small, six rows alone
    for epoch in range(5):
        rows = np.random.default_rng([9, epoch]).permutation(24)
        batches = ConfusableBatches(negatives, lambda _, r=rows: r, 6, 1, 0.8, groups)(epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(24)) and [len(b) for b in batches] == [6] * 4
        per_batch = [np.bincount(groups[b], minlength=9) for b in batches]
        assert all(h[5] == 3 for h in per_batch) and all(h[6:].max() <= 1 for h in per_batch)


def test_near_keys_survive_other_clothes_and_tell_others_apart():
    image, audio, text = (modalities.get(m) for m in ("image", "audio", "text"))
    keys = [image.near_duplicate_key(drawing(s, 128)) for s in range(40)]
    for s in range(40):
        again = image.near_duplicate_key(image.decode(encoded(drawing(s, 128).resize((80, 80)), "JPEG", quality=50)))
        assert (keys[s] ^ again).bit_count() <= image.near_duplicate_distance
    assert min((a ^ b).bit_count() for i, a in enumerate(keys) for b in keys[:i]) > image.near_duplicate_distance
    assert image.near_duplicate_key(PILImage.new("RGB", (50, 50), "white")) is None

    def tones(seed):
        rng = np.random.default_rng(seed)
        t = np.arange(24000) / 12000
        waves = [
            rng.uniform(0.2, 1) * np.sin(2 * np.pi * (f * t + rng.uniform(-150, 150) * t**2)) for f in rng.uniform(200, 2500, 6)
        ]
        return Sound((sum(waves) / 6 + 0.01 * rng.standard_normal(24000)).astype(np.float32), 12000)

    sounds = [tones(s) for s in range(12)]
    keys = [audio.near_duplicate_key(s) for s in sounds]
    for s, key in zip(sounds, keys, strict=True):
        quieter = s.resampled(8000)
        assert (key ^ audio.near_duplicate_key(Sound(quieter.samples * 0.3, 8000))).bit_count() <= audio.near_duplicate_distance
    assert min((a ^ b).bit_count() for i, a in enumerate(keys) for b in keys[:i]) > audio.near_duplicate_distance
    assert audio.near_duplicate_key(Sound(np.zeros(9000, np.float32), 8000)) is None
    assert (
        text.near_duplicate_key("A Red  thing!")
        == text.near_duplicate_key("a red thing")
        != text.near_duplicate_key("a red things")
    )
    assert text.near_duplicate_key("...") is None


def test_near_duplicates_without_a_group_are_dropped_in_both_modalities(shop, tmp_path):
    data = open_data(shop)
    o = plain(negatives=22, window=23).model_copy(
        update={"guards": plain().guards.model_copy(update={"near_duplicates": True})}
    )
    mine_vectors(vectors(data), tmp_path / "t.parquet", o, data=data, cache=tmp_path)
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    near = {(r["direction"], r["query_id"], r["negative_id"]) for r in table if r["reason"] == "near_duplicate"}
    # row 23 is row 0's picture and (but for case) its caption; rows 0 and 1 share that caption, under the id row00
    assert ("text->image", "row00", "row23") in near and ("image->text", "row23", "row00") in near
    assert ("image->text", "row00", "row23") in near and ("text->image", "row23", "row00") in near
    assert all("row23" in (q, n) for _, q, n in near)
    assert len(list(tmp_path.glob("near-*.npz"))) == 2
    sig = {m: hash_contents(data, m, tmp_path) for m in data.modalities}
    e = vectors(data)["image"]
    items = unique_items("image", e)
    number = {i: n for n, i in enumerate(items.ids)}
    pairs = NearDuplicates(items, items, {"image": sig["image"]}, row_finder(data)).contains(
        np.arange(24), np.tile(np.arange(24), (24, 1))
    )
    assert pairs[number["row00"], number["row23"]] and pairs.sum() == 24 + 2


def test_lexical_and_siblings_find_what_vectors_do_not(shop, tmp_path):
    data = open_data(shop)
    meta = {i: data.meta(n) for n, i in enumerate(data.ids)}
    by = {}
    for sources in (["lexical"], ["siblings"], ["nearest", "siblings"]):
        o = plain(
            negatives=20, window=8, sources=sources, siblings={"same": ["kind"], "other": "truth"}, directions=["text->image"]
        )
        mine_vectors(vectors(data), tmp_path / "t.parquet", o, data=data)
        by["+".join(sources)] = pq.read_table(tmp_path / "t.parquet").to_pylist()
    for r in by["siblings"]:
        q, n = meta[r["query_id"]], meta[r["negative_id"]]
        assert r["reason"] == "siblings" and q["kind"] == n["kind"] and q["truth"] != n["truth"]
    assert len({r["negative_id"] for r in by["siblings"]}) == 24
    same_colour = [meta[r["query_id"]]["kind"] == meta[r["negative_id"]]["kind"] for r in by["lexical"] if r["rank"] <= 3]
    assert np.mean(same_colour) > 0.9  # "a red thing number 3" is most like other red things
    every = by["nearest+siblings"]
    assert len({(r["query_id"], r["negative_id"]) for r in every}) == len(every), "a pair counts once"
    assert {r["reason"] for r in every} == {"nearest", "siblings"}
    with pytest.raises(DataError, match="need the data"):
        mine_vectors(vectors(data), tmp_path / "t.parquet", o)


class Judge:
    """Says that things of one colour match: a verifier that knows less than the labels."""

    def __init__(self):
        self.pairs_scored = 0

    def score(self, pairs):
        self.pairs_scored += len(pairs)
        return [float(any(c in a and c in b for c in COLOURS)) for a, b in pairs]


def test_verifier_drops_what_it_finds_as_good_as_the_positive(shop, tmp_path):
    data = open_data(shop)
    judge = Judge()
    o = plain(negatives=3, window=11, directions=["text->text"])
    mine_vectors(vectors(data), tmp_path / "t.parquet", o, data=data, verifier=judge)
    row = {i: n for n, i in enumerate(data.ids)}
    text = {i: data.read(n, "text").decode().lower() for i, n in row.items()}
    colour = {i: next(c for c in COLOURS if c in t) for i, t in text.items()}
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert judge.pairs_scored == 0, "every text is its own positive only: nothing to compare with"
    o = plain(negatives=3, window=11, directions=["text->image"])

    class Colours(Judge):
        def score(self, pairs):
            self.pairs_scored += len(pairs)
            return [1.0 if words.lower().split()[1] == known[picture.tobytes()] else 0.0 for words, picture in pairs]

    known = {modalities.get("image").decode(data.read(n, "image")).tobytes(): colour[i] for i, n in row.items()}
    judge = Colours()
    mine_vectors(vectors(data), tmp_path / "t.parquet", o, data=data, verifier=judge)
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    dropped = [r for r in table if r["reason"] == "verifier"]
    mined = [r for r in table if r["verdict"] == "mined"]
    assert judge.pairs_scored and dropped and mined
    assert all(colour[r["query_id"]] == colour[r["negative_id"]] for r in dropped)
    assert all(colour[r["query_id"]] != colour[r["negative_id"]] for r in mined)


@pytest.mark.precision
def test_training_takes_a_users_own_table(shop, tmp_path, capsys):
    import pyarrow as pa

    own = pa.table({"direction": ["text->image"] * 2, "query_id": ["row00", "row02"], "negative_id": ["row04", "row08"]})
    pq.write_table(own, tmp_path / "own.parquet")
    recipe = {
        "model": "tiny:clip",
        "data": {"train": str(shop)},
        "train": {"epochs": 1, "batch_size": 6},
        "mining": {"table": str(tmp_path / "own.parquet"), "use": {"negatives_per_query": 1, "confusable": 0}},
    }
    with pytest.raises(DataError, match="own.parquet does not say which weights.*mining.allow_stale=true"):
        train(recipe | {"run": {"dir": str(tmp_path / "refused")}}, quiet=True)
    recipe["mining"]["allow_stale"] = True
    done = train(recipe | {"run": {"dir": str(tmp_path / "run")}})
    assert "used all the same, as asked" in capsys.readouterr().err
    del recipe["mining"]
    plain = train(recipe | {"run": {"dir": str(tmp_path / "plain")}}, quiet=True)
    assert done["fingerprint"] != plain["fingerprint"], "the table's negatives changed nothing"
    assert not (tmp_path / "run" / "mining").exists(), "nothing was mined"


def test_columns_are_words_unless_the_recipe_says():
    names = ["image->text", "text->image", "audio->image"]
    assert negatives_per_query(MiningOptions(), names) == {"image->text": 4, "text->image": 0, "audio->image": 0}
    assert negatives_per_query(MiningOptions(), names[2:]) == {"audio->image": 1}
    assert negatives_per_query(MiningOptions(use={"negatives_per_query": 2}), names) == dict.fromkeys(names, 2)
    own = MiningOptions(per_direction=[{"direction": "text->image", "negatives_per_query": 1, "negatives": 2}])
    assert negatives_per_query(own, names) == {"image->text": 4, "text->image": 1, "audio->image": 0}
    assert own.for_direction("text->image").negatives == 2


def test_rounds_mine_once_resume_and_say_when_a_metric_falls(shop, tmp_path, capsys):
    import mmtune

    data, model = open_data(shop), mmtune.load("tiny:clip")
    assert round_epochs(12, 3) == [3, 6, 9] and round_epochs(1, 3) == [0] and round_epochs(4, 3) == [1, 2, 3]

    def batches(epoch):
        return np.split(np.random.default_rng([0, epoch]).permutation(24), 4)

    options = MiningOptions(rounds=1, negatives=2, window=5, use={"negatives_per_query": 1, "confusable": 0.5})

    def rounds():
        return MiningRounds(
            model, data, batches, options, tmp_path, pairs=[("text", "image")], epochs=4, batch_size=6, quiet=False
        )

    one = rounds()
    assert one.plan(0)[0].tolist() == batches(0)[0].tolist() and one.extra(np.arange(3)) is None
    assert one.plan(1)[0].tolist() == batches(1)[0].tolist()
    mined = one.plan(2)
    assert sorted(np.concatenate(mined).tolist()) == list(range(24)) and len(mined) == 4
    assert set(one.extra(mined[0])) == {"image->text", "text->image"}
    stamp = (tmp_path / "round-0.parquet").stat().st_mtime_ns
    two = rounds()
    assert [b.tolist() for b in two.plan(3)] == [b.tolist() for b in one.plan(3)]
    for m, rows in one.extra(mined[0]).items():
        assert two.extra(mined[0])[m].tolist() == rows.tolist()
    assert (tmp_path / "round-0.parquet").stat().st_mtime_ns == stamp, "a resumed run does not mine again"
    values = iter([0.5, 0.4])
    watched = two.watch(lambda m: {"metric": next(values)})
    watched(model), watched(model)
    stderr = capsys.readouterr().err
    assert "fell from 0.5000 to 0.4000" in stderr and "round-0.parquet.audit.html" in stderr
    assert metric_drop("x", 0.4, 0.4, two.round.result) is None


def test_the_verb(shop, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmtune.cli.dispatch.VERBS", {"mine": ""})
    out = str(tmp_path / "t.parquet")
    argv = [
        "tiny:clip",
        shop,
        "--out",
        out,
        "--quiet",
        "--set",
        "negatives=2",
        "--direction",
        "text->image",
        "--json",
        "--truth",
        "truth",
    ]
    assert dispatch("mine", argv) == 0
    document = json.loads(capsys.readouterr().out)
    d = document["directions"]["text->image"]
    assert (
        document["mined"] == d["mined"] > 0 and d["measured_by_truth"]["positives"] == 3
    )  # row 23's caption and two images, and one in the other direction
    assert "data:image" in open(document["page"]).read()
    assert dispatch("mine", [*argv[:-3], "--set", "guards.max_score=-2", "--set", "guards.trust_groups=false"]) == 1
    assert "guarded away" in capsys.readouterr().out
    assert dispatch("mine", [*argv[:5], "--set", "guards.max_scor=1"]) == 2
    assert "guards.max_scor" in capsys.readouterr().err
    assert dispatch("mine", [*argv[:5], "--set", "table=own.parquet"]) == 2
    assert "table: own.parquet is for training" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="KEY=VALUE"):
        mine_verb.collected(parsed(["m", "d", "--out", "o", "--set", "x"]))
    values = mine_verb.collected(parsed(["m", "d", "--out", "o", "--relative-margin", "off", "--memory", "99", "--seed", "3"]))
    assert values == {"guards": {"relative_margin": None}, "search": {"memory_mb": 99}, "seed": 3}


def parsed(argv):
    import argparse

    parser = argparse.ArgumentParser()
    mine_verb.arguments(parser)
    return parser.parse_args(argv)


@pytest.mark.slow
@pytest.mark.precision
def test_the_study_of_mining_runs_and_goes_on(tmp_path):
    """recipes/does_mining_help.py: every arm and seed, on all and on confusable queries; done runs are not done again."""
    data, recipe = corpora.packed(tmp_path), tmp_path / "r.yaml"
    recipe.write_text("model: ???\ndata:\n  train: ???\n  batches: spread\ntrain: {batch_size: 8}\n")
    script = Path(__file__).parents[2] / "recipes" / "does_mining_help.py"
    command = [sys.executable, script, recipe, "tiny:clip", data, data, "--out", tmp_path / "runs", "train.epochs=2"]

    def go(*more):
        done = subprocess.run([*map(str, command), *more], capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-2000:]
        lines = done.stdout.splitlines()
        return [json.loads(x) for x in lines if x[0] == "{"], [x for x in lines if "±" in x], done.stderr

    runs, table, stderr = go("--seeds", "0", "--mining", '{"rounds": 1}')
    assert [(x["arm"], x.get("seed")) for x in runs] == [("base", None), ("none", 0), ("naive", 0), ("guarded", 0)]
    assert set(runs[0]["confusable"]) == {"image->text", "text->image"} and len(table) == 8 and "mining round 1" in stderr
    again, _, stderr = go("--seeds", "0", "--mining", '{"rounds": 1}')
    assert again == runs and "mining round" not in stderr, "finished runs are read, not repeated"
