"""Given negatives: read from files, matched with rows, guarded, drawn, and used by every loss as a naive loop uses them."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import mmtune
from mmtune.data.loader.loader import Loader
from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import DataError, TrainingError
from mmtune.mining.given_negatives import GivenDraws, load_given
from mmtune.training.build_objective import build_objective
from mmtune.training.teacher_outputs import TeacherVectors
from mmtune.training.unused_inputs import unused_negatives
from tests.support.data_helpers import picture, write_csv
from tests.support.losses_helpers import unit

PAIR = [("image", "text")]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Ten products with a caption, a picture each and one or two negatives in each direction; rows 8 and 9 are one product."""
    root = tmp_path_factory.mktemp("shop")
    rows = []
    for i in range(10):
        (root / f"{i}.png").write_bytes(picture(i))
        sku = min(i, 8)
        rows.append({"id": 100 + i, "text": f"thing {sku}", "image": f"{i}.png", "group": f"s{sku}"})
        rows[-1] |= {"negative_image": f"{(i + 1) % 10}.png", "negative_text": f"other {i}"}
        rows[-1] |= {"negative_text_2": f"thing {(i + 3) % 8}"}
    pack(write_csv(root / "rows.csv", rows), root / "packed")
    return root / "packed"


def concat(*specs):
    return WeightedConcat([open_data(str(s)) for s in specs], [1.0] * len(specs))


def write_pairs(path, rows):
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows(rows)
    return path


def test_tables_beside_the_shards_are_found_guarded_and_counted(shop):
    data = concat(shop)
    given = load_given(data, pairs=PAIR)
    # 100+8 names 9.png as a negative of "thing 8", which is a picture of the same product
    assert given.counts == {"text->image": 9, "image->text": 20} and given.positives == {"text->image": 1}
    assert given.lines() == [
        "9 negatives used in text->image, 20 negatives used in image->text",
        "1 in text->image are not used: the negative is a positive of the query (same row, group or content)",
    ]
    named = {(data.ids[q], data.ids[n]) for q, n in given.pairs["text->image"].tolist()}
    assert named == {(f"{100 + i}", f"{100 + (i + 1) % 10}") for i in range(10) if i != 8}


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_file_of_ones_own_with_integer_ids(shop, tmp_path, kind):
    data = concat(shop)
    rows = [(100, 104), (101, 999), (102, 105), (102, 102), (108, 109)]
    path = tmp_path / f"own.{kind}"
    if kind == "csv":
        write_pairs(path, [("qid", "neg_id"), *rows])
    elif kind == "parquet":
        pq.write_table(pa.table({"query": [q for q, _ in rows], "negative": [n for _, n in rows]}), path)
    else:
        path.write_text("".join(json.dumps({"query_id": q, "negative_id": n}) + "\n" for q, n in rows))
    given = load_given(data, [path], PAIR, beside=False)
    number = {i: n for n, i in enumerate(data.ids)}
    want = [[number["100"], number["104"]], [number["102"], number["105"]]]
    assert {k: v.tolist() for k, v in given.pairs.items()} == {"image->text": want, "text->image": want}
    assert given.unknown == 1 and given.positives == {"image->text": 2, "text->image": 2}
    assert f"; 1 name unknown rows ({path} row 2: '101', '999')" in given.lines()[0]


def test_negatives_beside_remote_shards_are_found(shop):
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in shop.iterdir():
        if file.is_file():
            memory.pipe(f"/negatives-shop/{file.name}", file.read_bytes())
    here, there = load_given(concat(shop), pairs=PAIR), load_given(concat("memory://negatives-shop"), pairs=PAIR)
    assert {k: v.tolist() for k, v in there.pairs.items()} == {k: v.tolist() for k, v in here.pairs.items()}


def test_directions_that_are_not_trained_and_rows_that_lack_a_modality(shop, tmp_path):
    data = concat(shop)
    own = [("direction", "query_id", "negative_id"), ("image->image", 100, 101), ("text->image", 100, "100~negative_text")]
    given = load_given(data, [write_pairs(tmp_path / "o.csv", own)], PAIR, beside=False)
    assert not given.pairs and given.unused == {"image->image": 1} and given.missing == {"text->image": 1}
    assert given.lines()[0] == "no negative is used" and len(given.lines()) == 3


def test_two_training_sets_with_equal_ids_keep_to_their_own_rows(shop):
    one, two = load_given(concat(shop), pairs=PAIR), load_given(concat(shop, shop), pairs=PAIR)
    n = len(open_data(str(shop)))
    for name, rows in one.pairs.items():
        assert sorted(two.pairs[name].tolist()) == sorted([*rows.tolist(), *(rows + n).tolist()])


@pytest.mark.parametrize(
    "header,row,says",
    [
        (["querry_id", "negative_id"], [100, 101], "no column 'query_id'; did you mean 'querry_id'?"),
        (["query_id", "negativ_id"], [100, 101], "no column 'negative_id'; did you mean 'negativ_id'?"),
        (["query_id", "negative_id"], ["x", "y"], r"none of its 1 pairs has both rows .*row 1: 'x', 'y'"),
        (["query_id", "negative_id"], [100, ""], "row 1: negative_id is empty"),
        (["query_id", "negative_id", "direction"], [100, 101, "text"], "row 1: the direction 'text' is not of the form"),
    ],
)
def test_wrong_files_are_refused_in_one_line(shop, tmp_path, header, row, says):
    with pytest.raises(DataError, match=says):
        load_given(concat(shop), [write_pairs(tmp_path / "o.csv", [header, row])], PAIR)
    with pytest.raises(DataError, match="no such file of negatives"):
        load_given(concat(shop), [tmp_path / "none.csv"], PAIR)


# --- losses against loops ------------------------------------------------------------------------------------------------


def drawn_batch(shop, rows=(0, 3, 6, 12, 15)):
    """A batch of rows with all their given negatives, embeddings of its items, and the vectors by (row, modality)."""
    data = concat(shop)
    rows = np.array([i for i in np.flatnonzero(data.present["image"] & data.present["text"])][:6])
    draws = GivenDraws(load_given(data, pairs=PAIR), data, lambda epoch: [rows], None, 0)
    draws.plan(0)
    extra = draws.extra(rows)
    model = mmtune.load("tiny:clip")
    batch = Loader(data, {m: t.preprocess for m, t in model.towers.items()}, {}).batch(rows, 0, extra)
    z = {m: unit(int(batch.item_of_row[m].max()) + 1, 8, s) for s, m in enumerate(("image", "text"))}
    return data, rows, batch, z


def naive_directions(data, rows, batch, z):
    """For each direction and query row: (cosine of the positive, cosines of its negatives), by loops; rows differ in content."""
    given = load_given(data, pairs=PAIR)
    vector = {}
    for position, row in enumerate(batch.index.tolist()):
        for m in z:
            if (item := int(batch.item_of_row[m][position])) >= 0:
                vector[m, int(data.labels[m][row])] = z[m][item].double().numpy()
    out = {}
    for a, b in (("image", "text"), ("text", "image")):
        for q in rows:
            v = vector[a, int(data.labels[a][q])]
            in_batch = {int(data.labels[b][r]) for r in rows if data.labels["group"][r] != data.labels["group"][q]}
            own = {int(data.labels[b][n]) for query, n in given.pairs[f"{a}->{b}"].tolist() if query == q}
            negatives = [float(v @ vector[b, c]) for c in sorted(in_batch | own)]
            out.setdefault((a, b), []).append((float(v @ vector[b, int(data.labels[b][q])]), negatives))
    joined = [len(negatives) - len(rows) + 1 for pairs in out.values() for _, negatives in pairs]
    assert sum(joined) > len(rows), "no given negative joined"
    return out


def scale_of(a, b):
    return torch.tensor(7.0), torch.tensor(-2.0)


def softplus(x):
    return np.logaddexp(0, x)


NAIVE = {
    "info_nce": lambda p, n: np.log(sum(np.exp(7 * np.array([p, *n])))) - 7 * p,
    "triplet": lambda p, n: max(0.0, 0.2 + max(n) - p),
    "sigmoid": lambda p, n: softplus(-(7 * p - 2)) + sum(softplus(7 * np.array(n) - 2)),
}


@pytest.mark.parametrize("loss", [*NAIVE])
@pytest.mark.parametrize("tile", ["never", "always"])
def test_losses_of_a_batch_with_given_negatives_equal_a_loop(shop, loss, tile):
    data, rows, batch, z = drawn_batch(shop)
    value, _ = build_objective([{"loss": loss, "tile": tile}], PAIR)(z, batch, scale_of)
    directions = naive_directions(data, rows, batch, z)
    want = np.mean([np.mean([NAIVE[loss](p, n) for p, n in pairs]) for pairs in directions.values()])
    assert float(value) == pytest.approx(want, rel=1e-5)


def test_distillation_uses_given_negatives_as_a_loop_does(shop):
    data, rows, batch, z = drawn_batch(shop)
    vectors = {m: unit(len(data), 5, s + 9).numpy() for s, m in enumerate(z)}
    for m in z:  # equal contents have equal vectors
        for i in range(len(data)):
            vectors[m][i] = vectors[m][int(np.flatnonzero(data.labels[m] == data.labels[m][i])[0])]
    teacher = TeacherVectors("t", vectors, {m: np.arange(len(data)) for m in z}, "print")
    objective = build_objective([{"loss": "margin_mse", "teacher": "t"}], PAIR, teachers={"t": teacher})
    value, _ = objective(z, batch, scale_of)
    taught = {m: torch.from_numpy(vectors[m])[[_row_of_item(batch, m, i) for i in range(len(z[m]))]] for m in z}
    student, score = naive_directions(data, rows, batch, z), naive_directions(data, rows, batch, taught)
    want = []
    for name in student:
        each = [
            np.mean([((p - n) - (tp - tn)) ** 2 for n, tn in zip(ns, tns, strict=True)])
            for (p, ns), (tp, tns) in zip(student[name], score[name], strict=True)
        ]
        want.append(np.mean(each))
    assert float(value) == pytest.approx(np.mean(want), rel=1e-5)


def _row_of_item(batch, m, item):
    return int(batch.index[int(torch.nonzero(batch.item_of_row[m] == item)[0])])


def test_losses_that_cannot_use_negatives_are_named():
    scored = build_objective([{"loss": "cosent"}], PAIR)
    assert unused_negatives(scored, ["text->image"]) == [
        "no loss uses the negatives in text->image: objective[0] (cosent) cannot; add e.g. {loss: info_nce}"
    ]
    forward = build_objective([{"loss": "info_nce", "directions": "forward"}, {"loss": "triplet"}], PAIR)
    assert unused_negatives(forward, ["text->image", "image->text"]) == [
        "objective[0] (info_nce) does not use the negatives in text->image, the other losses do"
    ]


# --- training ------------------------------------------------------------------------------------------------------------


def recipe(shop, run, **data):
    return {
        "model": "tiny:clip",
        "data": {"train": str(shop), **data},
        "train": {"epochs": 3, "batch_size": 4, "lr": 1e-3, "precision": "fp32", "checkpoint_every": 1},
        "run": {"dir": str(run)},
    }


def weights(run):
    return (run / "artifact" / "weights.safetensors").read_bytes()


def test_trained_from_csv_and_resumed_with_the_same_negatives_only(shop, tmp_path, monkeypatch, capsys):
    from mmtune.training.loop import Trainer

    mmtune.train(recipe(shop, tmp_path / "whole"))
    said = capsys.readouterr().err
    assert "9 negatives used in text->image, 20 negatives used in image->text" in said
    mmtune.train(recipe(shop, tmp_path / "without", negatives=False), quiet=True)
    assert weights(tmp_path / "whole") != weights(tmp_path / "without")
    assert json.loads((tmp_path / "whole" / "negatives.json").read_text())["used"] == {"text->image": 9, "image->text": 20}
    step, done = Trainer.step, []

    def killed(self, batch):
        done.append(batch)
        if len(done) == 5:
            raise KeyboardInterrupt
        return step(self, batch)

    own = write_pairs(tmp_path / "own.csv", [("query_id", "negative_id"), (100, 104)])
    mmtune.train(recipe(shop, tmp_path / "more", negatives=str(own)), quiet=True)
    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(recipe(shop, tmp_path / "run", negatives=str(own)), quiet=True)
    monkeypatch.setattr(Trainer, "step", step)
    write_pairs(own, [("query_id", "negative_id"), (100, 105)])
    with pytest.raises(TrainingError, match="the run to resume had other negatives"):
        mmtune.train(recipe(shop, tmp_path / "run", negatives=str(own)), resume=True, quiet=True)
    write_pairs(own, [("query_id", "negative_id"), (100, 104)])
    mmtune.train(recipe(shop, tmp_path / "run", negatives=str(own)), resume=True, quiet=True)
    assert weights(tmp_path / "run") == weights(tmp_path / "more") != weights(tmp_path / "whole")


def test_mining_keeps_given_negatives_out_of_the_guards(shop, tmp_path):
    options = {
        "directions": ["text->image"],
        "negatives": 9,
        "guards": {"groups": False, "max_score": -1.0, "near_duplicates": False},
    }
    result = mmtune.mine("tiny:clip", str(shop), tmp_path / "t.parquet", options | {"guards": options["guards"]}, quiet=True)
    mined = {(r["query_id"], r["negative_id"]) for r in pq.read_table(result.table).to_pylist() if r["verdict"] == "mined"}
    assert (("100", "101") in mined) and len(mined) == 9, "only the given ones pass a guard that drops everything"


def test_text_triples_train_a_text_tower(tmp_path, capsys):
    rows = [{"anchor": f"query {i}", "positive": f"answer {i}", "negative": f"wrong {i}"} for i in range(12)]
    mmtune.pack(rows, tmp_path / "triples")
    recipe = {
        "model": "tiny:clip",
        "data": {"train": str(tmp_path / "triples"), "batches": {"groups": 4, "rows": 2}},
        "pairs": [["text", "text"]],
        "train": {"epochs": 4, "batch_size": 8, "lr": 3e-3, "precision": "fp32"},
        "run": {"dir": str(tmp_path / "run")},
    }

    def margin(model):
        """Mean over queries of cosine to the answer - cosine to the wrong answer."""
        q, a, w = (mmtune.load(model).encode([r[c] for r in rows]) for c in ("anchor", "positive", "negative"))
        return float(((q * a).sum(1) - (q * w).sum(1)).mean())

    out = mmtune.train(recipe)
    said = capsys.readouterr().err
    assert "12 negatives used in text->text" in said and "have a positive" not in said
    assert margin(out["artifact"]) > margin("tiny:clip") + 0.05
    random = recipe | {"data": {"train": str(tmp_path / "triples")}, "run": {"dir": str(tmp_path / "random")}}
    mmtune.train(random | {"train": {**recipe["train"], "epochs": 1, "batch_size": 4}})
    assert (
        "have a positive (a row of their group) in their batch; set data.batches={groups: 2, rows: 2}"
        in capsys.readouterr().err
    )
