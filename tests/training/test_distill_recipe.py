"""Distillation by recipes: every kind of teacher, and error messages."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mmtune
from mmtune.backbones.cross_encoders import CrossEncoder, Matcher
from mmtune.cli import main
from mmtune.data.pack.pack import pack
from mmtune.errors import DataError, RecipeError
from mmtune.training.teacher_cache import build_teachers
from tests.support import checkpoints, corpora
from tests.support.data_helpers import write_csv
from tests.support.scorer_helpers import cross_encoder, matcher

RECIPE = Path(__file__).parents[2] / "recipes" / "distill.yaml"
QUICK = ["train.epochs=2", "train.batch_size=12", "train.precision=fp32", "train.warmup=2"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("distill")


@pytest.fixture(scope="module")
def data(root):
    return corpora.packed(root, 36, 0, ("image", "text"))


def steps(directory):
    return [json.loads(line) for line in (Path(directory) / "metrics.jsonl").read_text().splitlines()]


def train(root, data, name, pairs=(("image", "text"),), **keys):
    recipe = {
        "model": "tiny:clip",
        "data": {"train": data},
        "pairs": [list(p) for p in pairs],
        "train": {"epochs": 1, "batch_size": 12, "precision": "fp32"},
        "run": {"dir": str(root / name)},
        **keys,
    }
    return mmtune.train(recipe, quiet=True)


def test_the_recipe_distils_a_large_model_into_a_small_one(root, data, capsys):
    val = corpora.packed(root, 18, 1, ("image", "text"))
    small = checkpoints.clip(root / "small")
    asked = [f"model=hf:{small}", "teachers.big.model=tiny:clip@3", f"data.train={data}", f"data.val={val}", *QUICK]
    asked.append("objective=[{loss: info_nce}, {loss: feature, teacher: big}, {loss: kl, teacher: big, temperature: 0.1}]")
    assert main(["train", str(RECIPE), *asked, f"run.dir={root / 'one'}", "--quiet", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    logged = [s for s in steps(root / "one") if "feature" in s]
    assert logged[-1]["feature"] < 0.95 * logged[0]["feature"] and logged[-1]["kl"] < logged[0]["kl"]
    student, teacher = mmtune.load(out["artifact"]), mmtune.load("tiny:clip@3")
    assert student.dim == 24 and not student.heads  # the projection to the teacher's 64 is not part of it

    folder = Path(data) / "teachers" / teacher.fingerprint[:16]
    assert json.loads((folder / "meta.json").read_text())["fingerprint"] == teacher.fingerprint
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.parquet")}
    assert before and main(["train", str(RECIPE), *asked, f"run.dir={root / 'two'}", "--quiet", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.parquet")} == before  # nothing was computed anew
    assert again["fingerprint"] == out["fingerprint"]


def test_a_matcher_as_teacher_gives_its_own_scores(root, data):
    place = matcher(root / "matcher")
    spec = {"scorer": "matcher", "options": {"model": place, "device": "cpu"}, "candidates": "all"}
    out = train(root, data, "matched", teachers={"judge": spec}, objective=[{"loss": "margin_mse", "teacher": "judge"}])
    assert out["steps"] == 3 and all(np.isfinite(s["loss"]) and s["loss"] > 0 for s in steps(root / "matched"))
    rows = mmtune.open_data(data)
    from mmtune.data.decode import decode_row
    from mmtune.data.shards.weighted_concat import WeightedConcat

    teacher = build_teachers({"judge": spec}, WeightedConcat([rows], [1.0]), [("image", "text")], quiet=True)["judge"]
    asked = [(decode_row(rows, i, "image"), decode_row(rows, j, "text")) for i, j in ((0, 0), (0, 1), (7, 2))]
    labels = {m: torch.from_numpy(rows.labels[m]) for m in ("image", "text")}
    found = teacher.between(("image", "text"), labels["image"], labels["text"])
    want = Matcher(place, device="cpu").score(asked)
    np.testing.assert_allclose([found[0, 0], found[0, 1], found[7, 2]], want, atol=1e-4)
    assert teacher.fingerprint == Matcher(place, device="cpu").fingerprint


def test_a_cross_encoder_as_teacher_of_text_pairs(root):
    rows = [
        {"text": f"a {c} {t}", "group": c} for c in ("red", "green", "blue") for t in ("shoe", "bag", "square", "round bag")
    ]
    pack(write_csv(root / "words" / "rows.csv", rows), root / "texts")
    data, place = str(root / "texts"), cross_encoder(root / "reader")
    spec = {"scorer": "cross_encoder", "options": {"model": place, "device": "cpu"}, "candidates": "all"}
    for loss in ("margin_mse", "kl"):
        train(
            root,
            data,
            f"read-{loss}",
            pairs=[("text", "text")],
            teachers={"judge": spec},
            objective=[{"loss": loss, "teacher": "judge"}],
        )
        assert all(s["loss"] > 0 for s in steps(root / f"read-{loss}"))
    from mmtune.data.shards.weighted_concat import WeightedConcat

    opened = mmtune.open_data(data)
    teacher = build_teachers({"judge": spec}, WeightedConcat([opened], [1.0]), [("text", "text")], quiet=True)["judge"]
    label = torch.from_numpy(opened.labels["text"])
    found = teacher.between(("text", "text"), label[:3], label[:5])
    texts = [r["text"] for r in rows]
    want = CrossEncoder(place, device="cpu").score([(a, b) for a in texts[:3] for b in texts[:5]])
    np.testing.assert_allclose(found.flatten(), want, atol=1e-5)


class Brightness:
    """A scorer from outside: the brightness of the image, whatever the caption."""

    asked = 0

    def score(self, pairs):
        Brightness.asked += len(pairs)
        return [float(np.asarray(picture).mean()) / 255 for picture, _ in pairs]


def test_a_scorer_of_ones_own_and_a_file_of_scores(root, data):
    spec = {"scorer": "tests.training.test_distill_recipe:Brightness", "candidates": "all"}
    for name, loss in (("own-1", "score_mse"), ("own-2", "kl")):
        train(root, data, name, teachers={"mine": spec}, objective=[{"loss": loss, "teacher": "mine"}])
    assert Brightness.asked == 36 * 6  # pictures times distinct words, once for both runs
    ids = mmtune.open_data(data).ids
    lines = [{"query_id": a, "item_id": b, "score": 0.9 if a == b else 0.1} for a in ids[:12] for b in ids[:6]]
    write_csv(root / "told.csv", lines)
    told = {"told": {"scores": str(root / "told.csv")}}
    for loss in ("kl", "margin_mse", "score_mse"):
        train(root, data, f"told-{loss}", teachers=told, objective=[{"loss": "info_nce"}, {"loss": loss, "teacher": "told"}])
        assert any(s[loss] > 0 for s in steps(root / f"told-{loss}"))


def test_a_teacher_without_a_trained_modality_is_refused(root, data):
    spec = {"scorer": "tests.training.test_distill_recipe:Brightness"}
    with pytest.raises(
        RecipeError, match=r"^objective\[1\]: kl compares a query's candidates, but teacher 'mine' scored only one"
    ):
        own = corpora.source(root / "own", 12, 3, ("image", "text"))
        rows = own.read_text().splitlines()
        own.write_text("\n".join([rows[0], *(r.replace(" square", f" square {i}") for i, r in enumerate(rows[1:]))]))
        pack(own, root / "own-data")
        objective = [{"loss": "info_nce"}, {"loss": "kl", "teacher": "mine"}]
        train(root, str(root / "own-data"), "nothing", teachers={"mine": spec}, objective=objective)
    ids = mmtune.open_data(data).ids
    write_csv(root / "wild.csv", [{"query_id": a, "item_id": b, "score": 7} for a in ids for b in ids[:6]])
    with pytest.raises(
        DataError, match=r"^objective\[0\]: teacher 'told' gives a score of 7, outside the range \[-1, 1\] of a cosine"
    ):
        told = {"told": {"scores": str(root / "wild.csv")}}
        train(root, data, "wild", teachers=told, objective=[{"loss": "score_mse", "teacher": "told"}])
    write_csv(root / "nan.csv", [{"query_id": ids[0], "item_id": ids[0], "score": "nan"}])
    with pytest.raises(
        DataError, match=r"^teachers.told.scores: \S+nan.csv: column 'score' of line 1 is None, which is not a finite number$"
    ):
        told = {"told": {"scores": str(root / "nan.csv")}}
        train(root, data, "nan", teachers=told, objective=[{"loss": "kl", "teacher": "told"}])
    with pytest.raises(RecipeError, match=r"^teachers.big.model: .*nowhere"):
        train(root, data, "none", teachers={"big": {"model": "nowhere:x"}}, objective=[{"loss": "kl", "teacher": "big"}])
