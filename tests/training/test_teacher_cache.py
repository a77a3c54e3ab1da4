"""Outputs of teachers: computed once, stored next to the shards, identical when read again."""

import json
import shutil

import numpy as np
import pytest
import torch

from mmtune.backbones import scorers
from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError, RecipeError
from mmtune.model.artifact import load
from mmtune.training import teacher_scoring
from mmtune.training.teacher_cache import build_teachers
from tests.support.data_helpers import catalog, write_csv

PAIR = ("image", "text")
CALLS = []


class Lengths:
    """Scores a pair by its sizes and counts the pairs it has scored."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def score(self, pairs):
        CALLS.append(len(pairs))
        return [self.factor * (x.size[0] + len(y)) for x, y in pairs]


class Broken:
    def score(self, pairs):
        return [float("nan")] * len(pairs)


@pytest.fixture()
def data(tmp_path):
    pack(catalog(tmp_path / "src"), tmp_path / "train", group="sku")
    return WeightedConcat([open_data(str(tmp_path / "train"))], [1.0])


def build(spec, data, pairs=(PAIR,)):
    return build_teachers({"big": spec}, data, list(pairs), quiet=True)["big"]


def test_vectors_are_the_models_own_and_computed_once(data, tmp_path, monkeypatch):
    teacher = build({"model": "tiny:clip@5"}, data)
    model = load("tiny:clip@5")
    assert teacher.fingerprint == model.fingerprint and teacher.dim == model.dim
    for m, embedded in embed_data(model, data.sets[0]).items():
        rows = torch.tensor([7, 0, 11])
        assert np.allclose(teacher.at(m, rows).numpy(), embedded.vectors[rows.numpy()], atol=1e-6)
    folder = tmp_path / "train" / "teachers" / model.fingerprint[:16]
    assert json.loads((folder / "meta.json").read_text())["fingerprint"] == model.fingerprint
    assert len(open_data(str(tmp_path / "train"))) == 12  # the shards are still what they were
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.parquet")}
    again = build({"model": "tiny:clip@5"}, data)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.parquet")} == before
    assert torch.equal(again.vectors["text"], teacher.vectors["text"])


def test_vectors_of_two_sets_keep_their_rows(data, tmp_path):
    shutil.copytree(tmp_path / "src", tmp_path / "src2")
    rows = [{"image": f"img/{i:04d}.png", "text": f"other {i}", "sku": "s"} for i in range(5)]
    pack(write_csv(tmp_path / "src2" / "rows.csv", rows), tmp_path / "more", group="sku")
    mix = WeightedConcat([data.sets[0], open_data(str(tmp_path / "more"))], [1.0, 1.0])
    teacher, model = build({"model": "tiny:clip", "out": str(tmp_path / "kept")}, mix), load("tiny:clip")
    want = model.encode(text=["thing 3", "other 0", "other 4"])
    rows = torch.tensor([3, 12, 16])
    assert np.allclose(teacher.at("text", rows).numpy(), want, atol=1e-6)
    assert not (tmp_path / "train" / "teachers").exists()


def test_two_sets_in_one_folder_keep_their_vectors(data, tmp_path):
    """Sets named by their shards, e.g. by braces, may lie in one folder; neither removes the other's vectors."""
    rows = [{"image": f"img/{i:04d}.png", "text": f"other {i}", "sku": "s"} for i in range(5)]
    pack(write_csv(tmp_path / "src" / "more.csv", rows), tmp_path / "more", group="sku")
    (tmp_path / "both").mkdir()
    for name, folder in (("a", "train"), ("b", "more")):
        shutil.copy(next((tmp_path / folder).glob("*.tar")), tmp_path / "both" / f"{name}-0.tar")
    mix = WeightedConcat([open_data(str(tmp_path / "both" / f"{n}-0.tar")) for n in "ab"], [1.0, 1.0])
    want = load("tiny:clip").encode(text=["thing 3", "other 4"])
    written = []
    for _ in range(2):
        teacher = build({"model": "tiny:clip"}, mix)
        assert np.allclose(teacher.at("text", torch.tensor([3, 16])).numpy(), want, atol=1e-6)
        written.append({p: p.stat().st_mtime_ns for p in (tmp_path / "both").rglob("part-*.parquet")})
    assert written[0] == written[1] and len(written[0]) == 4


def test_scores_are_stored_with_a_fingerprint_and_a_killed_job_continues(data, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_scoring, "PAIRS_PER_PART", 50)
    CALLS.clear()
    spec = {"scorer": "tests.training.test_teacher_cache:Lengths", "candidates": "all", "options": {"factor": 2.0}}
    teacher = build(spec, data)
    assert sum(CALLS) == 144 and len(CALLS) == 3
    rows = np.arange(12)
    labels = {m: torch.from_numpy(data.labels[m][rows]) for m in PAIR}
    found = teacher.between(PAIR, labels["image"], labels["text"])
    assert found[2, 3] == 2 * (24 + len("thing 3")) and found[2, 11] == 2 * (24 + len("thing 11"))
    (folder,) = (tmp_path / "train" / "teachers").iterdir()
    parts = sorted(folder.rglob("*.parquet"))
    assert len(parts) == 3
    parts[1].unlink()  # as if the job had been killed
    CALLS.clear()
    assert torch.equal(build(spec, data).between(PAIR, labels["image"], labels["text"]), found) and CALLS == [50]
    CALLS.clear()
    build({**spec, "options": {"factor": 3.0}}, data)  # another teacher, other outputs
    assert sum(CALLS) == 144


def test_all_pairs_come_in_tiles_that_have_few_values(data, monkeypatch):
    monkeypatch.setattr(teacher_scoring, "TILE", 3)
    left, right = teacher_scoring.candidate_rows("all", data, PAIR, "key")
    assert {*zip(left.tolist(), right.tolist(), strict=True)} == {(i, j) for i in range(12) for j in range(12)} and len(
        left
    ) == 144
    for start in range(0, 144, 9):
        assert len({*left[start : start + 9]}) == len({*right[start : start + 9]}) == 3


def test_candidates_from_a_negatives_table(data, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    CALLS.clear()
    table = {
        "direction": ["text->image", "image->text"],
        "query_id": [data.ids[0], data.ids[4]],
        "negative_id": [data.ids[5], data.ids[6]],
    }
    pq.write_table(pa.table(table), tmp_path / "negatives.parquet")
    teacher = build(
        {"scorer": "tests.training.test_teacher_cache:Lengths", "candidates": str(tmp_path / "negatives.parquet")}, data
    )
    assert sum(CALLS) == 14
    labels = {m: torch.from_numpy(data.labels[m]) for m in PAIR}
    found = teacher.between(PAIR, labels["image"], labels["text"])
    known = {tuple(x) for x in torch.nonzero(torch.isfinite(found)).tolist()}
    assert known == {(i, i) for i in range(12)} | {(5, 0), (4, 6)}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_file_of_scores(data, tmp_path, suffix):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"direction": "text->image", "query_id": data.ids[1], "item_id": data.ids[2], "score": 0.25}]
    rows += [{"direction": "image->text", "query_id": data.ids[3], "item_id": data.ids[3], "score": 0.75}]
    path = tmp_path / f"scores.{suffix}"
    if suffix == "csv":
        write_csv(path, rows)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    teacher = build({"scores": str(path)}, data)
    labels = {m: torch.from_numpy(data.labels[m]) for m in PAIR}
    found = teacher.between(PAIR, labels["image"], labels["text"])
    assert found[2, 1] == 0.25 and found[3, 3] == 0.75 and int(torch.isfinite(found).sum()) == 2


@pytest.mark.parametrize(
    "spec,says",
    [
        ({"modle": "tiny:clip"}, "teachers.big: needs one of the keys model: MODEL, scorer: NAME, or scores: FILE"),
        ({"model": "tiny:clip", "batchsize": 3}, "teachers.big.batchsize: there is no such key; did you mean 'batch_size'"),
        ({"scorer": "cross_encodr"}, "teachers.big.scorer: no scorer 'cross_encodr'; did you mean 'cross_encoder'"),
        (
            {"scorer": "tests.training.test_teacher_cache:Nothing"},
            "teachers.big.scorer: scorer 'tests.training.test_teacher_cache:Nothing': tests.training.test_teacher_cache has no 'Nothing'",
        ),
        ({"scorer": "json:JSONDecoder"}, "json:JSONDecoder has no method score(pairs)"),
        (
            {"scorer": "tests.training.test_teacher_cache:Lengths", "candidates": "nope"},
            "teachers.big.candidates: 'nope' must be own, all, or an existing file",
        ),
        (
            {"scorer": "tests.training.test_teacher_cache:Broken"},
            "teachers.big: the scorer returned 12 scores for 12 pairs, or scores",
        ),
        ({"scores": "nowhere.csv"}, "nowhere.csv"),
        ({"scores": "nowhere.txt"}, "use .parquet, .jsonl, .csv or .tsv"),
    ],
)
def test_mistakes_name_their_key(data, spec, says):
    with pytest.raises((RecipeError, DataError)) as e:
        build(spec, data)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_a_score_file_that_does_not_fit_names_its_line(data, tmp_path):
    path = write_csv(tmp_path / "s.csv", [{"query_id": data.ids[0], "item_id": "who", "score": 1}])
    with pytest.raises(DataError, match="line 1: the training data have no row 'who' with text"):
        build({"scores": str(path)}, data)
    path = write_csv(tmp_path / "t.csv", [{"query_id": data.ids[0], "item": "who", "score": 1}])
    with pytest.raises(DataError, match="has no column 'item_id'; it has query_id, item, score"):
        build({"scores": str(path)}, data)


def test_too_many_pairs_are_refused(data, monkeypatch):
    monkeypatch.setattr(teacher_scoring, "MOST_PAIRS", 100)
    with pytest.raises(RecipeError, match="all means 12 x 12 pairs, more than the limit"):
        build({"scorer": "tests.training.test_teacher_cache:Lengths", "candidates": "all"}, data)


def test_a_scorer_from_outside_by_name_and_by_file_in_the_working_directory(data, tmp_path, monkeypatch):
    source = "class Same:\n    def __init__(self, value=0.5):\n        self.value = value\n"
    source += "    def score(self, pairs):\n        return [self.value] * len(pairs)\n"
    (tmp_path / "outside_scorer.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    labels = {m: torch.from_numpy(data.labels[m]) for m in PAIR}
    found = build({"scorer": "outside_scorer:Same", "options": {"value": 0.25}}, data).between(PAIR, *labels.values())
    assert set(found[torch.isfinite(found)].tolist()) == {0.25}
    monkeypatch.setattr(scorers, "TABLE", dict(scorers.TABLE))
    scorers.register("same", "outside_scorer:Same")
    found = build({"scorer": "same"}, data).between(PAIR, *labels.values())
    assert set(found[torch.isfinite(found)].tolist()) == {0.5}


def test_an_id_that_two_training_sets_have_is_refused_in_a_file_of_scores(data, tmp_path):
    rows = [{"image": "img/0000.png", "text": "other", "sku": "s"}] * 2
    pack(write_csv(tmp_path / "src" / "more.csv", rows), tmp_path / "more", group="sku")
    both = WeightedConcat([data.sets[0], open_data(str(tmp_path / "more"))], [1.0, 1.0])
    shared = next(i for i in both.sets[1].ids if i in data.ids)
    path = write_csv(tmp_path / "s.csv", [{"query_id": shared, "item_id": shared, "score": 1}])
    with pytest.raises(DataError, match=f"line 1: several training sets have a row with id '{shared}'"):
        build({"scores": str(path)}, both)
    assert build({"scores": str(path)}, data)
