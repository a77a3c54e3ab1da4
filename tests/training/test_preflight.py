"""Checks before the first step: each mistake in an objective is one line that names the recipe's key and the column."""

import csv

import pytest
import yaml

import mmtune
from mmtune.cli import main
from mmtune.data.pack.pack import pack
from mmtune.errors import DataError, RecipeError, TrainingError
from mmtune.training.recipe_preflight import check_disk_space, checkpoint_bytes
from tests.support import corpora
from tests.support.data_helpers import write_csv


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("demands")


@pytest.fixture(scope="module")
def rows(root):
    with open(corpora.source(root / "src", 16, 0, ("image", "text"))) as f:
        return list(csv.DictReader(f))


def packed(root, rows, name, **columns):
    changed = [r | {k: value(i) for k, value in columns.items()} for i, r in enumerate(rows)]
    pack(write_csv(root / "src" / f"{name}.csv", changed), root / name)
    return str(root / name)


def recipe(root, data, **keys):
    return {
        "model": "tiny:clip",
        "data": {"train": data},
        "pairs": [["image", "text"]],
        "train": {"epochs": 1, "batch_size": 8, "precision": "fp32"},
        "run": {"dir": str(root / "run")},
    } | keys


GRADED = {"loss": "info_nce", "weights": "score"}


@pytest.mark.parametrize(
    "name,score,term,says",
    [
        ("none", None, {"loss": "cosent"}, r"column: \S+none: no row has a column 'score'"),
        ("none", None, GRADED | {"weights": "w"}, r"weights: \S+none: no row has a column 'w'"),
        ("high", lambda i: 0.5 if i < 15 else 7, {"loss": "mse"}, "column: .*'score' of row '0-015' is 7, .*above 1"),
        ("gap", lambda i: "" if i == 3 else 0.5, {"loss": "mse"}, "column: .*'0-003' is nan, which is not a number"),
        ("wide", lambda i: "inf", {"loss": "cosent"}, "column: column 'score' of row '0-000' is inf, which is not"),
        ("word", lambda i: "good", {"loss": "cosine"}, r"column: \S+word: column 'score' of .* is 'good', not a number"),
        ("less", lambda i: -1, GRADED, "weights: .* is -1, which is below 0"),
        ("zero", lambda i: 0, GRADED, "weights: .* is 0 in every row that is used; nothing"),
    ],
)
def test_columns(root, rows, name, score, term, says):
    data = packed(root, rows, name, **({"score": score} if score else {}))
    with pytest.raises((DataError, RecipeError), match=rf"^objective\[0\].{says}"):
        mmtune.train(recipe(root, data, objective=[term]), quiet=True)
    assert not (root / "run" / "checkpoints").exists()


def test_rows_that_no_term_uses_may_lack_the_value(root, rows):
    data = packed(root, rows, "some", score=lambda i: 0.5 if i else "", text=lambda i: rows[i]["text"] if i else "")
    out = mmtune.train(recipe(root, data, objective=[{"loss": "mse"}], run={"dir": str(root / "some-run")}), quiet=True)
    assert out["pairs"] == 15


@pytest.mark.parametrize(
    "text,batches,term,says",
    [
        (lambda i: f"a thing {i}", "random", {}, None),
        (lambda i: f"a thing {i}", "spread", {}, "no batch has a positive pair for"),
        (lambda i: f"a thing of group {i % 6}", "random", {}, "no batch has a positive pair for"),
        (lambda i: f"a thing {i}", "random", {"positives": "mask"}, "only a row's own pair would be positive"),
    ],
)
def test_within_one_modality_some_batch_must_hold_two_values_of_a_group(root, rows, text, batches, term, says):
    name = f"within-{batches}-{len(text(0))}-{len(term)}"
    data = packed(root, rows[:12], name, text=text)
    asked = recipe(root, data, pairs=[["text", "text"]], objective=[{"loss": "info_nce", **term}])
    asked |= {"data": {"train": data, "batches": batches}, "run": {"dir": str(root / f"run-{name}")}}
    if says is None:
        assert mmtune.train(asked, quiet=True)["steps"] == 2
    else:
        with pytest.raises(RecipeError, match=rf"^objective\[0\].*{says}") as e:
            mmtune.train(asked, quiet=True)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("loss", ["auto", "triplet", "sigmoid"])
def test_a_run_in_which_no_query_has_a_negative_is_refused(root, rows, loss):
    data = packed(root, rows, "alike", text=lambda i: "one caption")
    asked = recipe(root, data, objective=[{"loss": loss}], run={"dir": str(root / f"alike-{loss}")})
    with pytest.raises(RecipeError, match=r"^objective\[0\]: no batch has a negative for \[image, text\]"):
        mmtune.train(asked, quiet=True)
    asked["memory"] = {"size": 8}  # earlier batches may hold some
    assert mmtune.train(asked, quiet=True)["steps"] == 2


def test_the_command_line_prints_one_line(root, rows, capsys):
    data = packed(root, rows, "line")
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(root, data)))
    assert main(["train", str(path), "objective=[{loss: cosent, column: grade}]", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mmtune train: objective[0].column: ") and err.count("\n") == 1 and "'grade'" in err


def test_a_run_whose_recipe_lacks_newer_keys_is_resumed(root, rows):
    data = packed(root, rows, "old")
    asked = recipe(root, data, run={"dir": str(root / "old-run")})
    first = mmtune.train(asked, quiet=True)
    path = root / "old-run" / "recipe.yaml"
    document = yaml.safe_load(path.read_text())
    for key in ("prompts", "mining", "gate"):
        del document[key]
    del document["train"]["ema"]
    path.write_text(yaml.safe_dump(document))
    assert mmtune.train(asked, resume=True, quiet=True)["fingerprint"] == first["fingerprint"]
    document["train"]["lr"] = 0.5
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(TrainingError, match="the run to resume has another value of train.lr"):
        mmtune.train(asked, resume=True, quiet=True)


# --- everything that can be known before the first step ------------------------------------------------------------------

KNOWN_BEFORE = [
    (["train.metric=mapp"], "train.metric: no metric 'mapp'; there are: "),
    (["train.metric=ndcg"], "train.metric: no metric 'ndcg'; write ndcg@K"),
    (["gate={metric: nope}"], "gate.metric: no metric 'nope'"),
    (["gate={direction: image->txt}"], "gate.direction: there is no direction 'image->txt'; did you mean 'image->text'?"),
    (["train.patience=2"], "train.patience: early stopping needs a validation metric: set data.val"),
    (["data.retention=OTHER"], "data.retention needs data.val"),
    (["data.val=SOUNDS"], "data.val: SOUNDS has no row for the trained directions image->text, text->image; it has audio"),
    (["data.val=OTHER", "data.retention=SOUNDS"], "data.retention: SOUNDS has no row for the trained directions"),
    (["train.warmup=2"], "train.warmup: 2 steps of warm-up do not fit into a run of 2 steps"),
    (["mining={rounds: 5}"], "mining.rounds: 5 rounds need as many epochs, each with its own negatives, but train.epochs is 1"),
    (["mining={directions: [text->imag]}"], "'text->imag' does not exist; did you mean 'text->image'?"),
    (
        ["mining={per_direction: [{direction: imge->text}]}"],
        "per_direction[0].direction: 'imge->text' is not mined here; did you",
    ),
    (["mining={directions: [image->text], per_direction: [{direction: text->image}]}"], "'text->image' is not mined here"),
    (["mining={judgments: nowhere.jsonl}"], "mining.judgments: nowhere.jsonl"),
    (["mining={sources: [neares]}"], "mining.sources: "),
    (["mining={guards: {extra: [nope]}}"], "mining.guards.extra: "),
    (["mining={sources: [siblings], siblings: {same: [brand]}}"], "mining.siblings.same: OWN: no row has a column 'brand'"),
    (["mining={sources: [siblings], siblings: {same: [shade], other: mark}}"], "mining.siblings.other: OWN: no row has a"),
    (["mining={table: nowhere.parquet}"], "mining.table: nowhere.parquet: no such negatives table"),
    (["mining={table: TABLE}"], "mining.table: TABLE: no column 'direction'"),
    (["mining={verifier: nope}"], "verifier nope: "),
    (["augment={image: {crop: 2}}"], "augment.image.crop: 2"),
    (["augment={image: {flip: maybe}}"], "augment.image.flip: "),
    (["augment={image: {erase: 3}}"], "augment.image.erase: 3"),
    (["augment={image: {blur: -1}}"], "augment.image.blur: -1"),
    (["augment={image: {color: -0.5}}"], "augment.image.color: -0.5"),
    (["augment={image: {rotate: -3}}"], "augment.image.rotate: -3"),
    (["augment={audio: {shift: true}}"], "augment.audio: audio is not trained here"),
    (["objective=[{loss: kl, teacher: big}]"], "objective[0].teacher: there is no teacher 'big'; the recipe has no `teachers`"),
    (
        ["objective=[{loss: info_nce, guide: bgi}]", "teachers={big: {model: tiny:clip}}"],
        "no teacher 'bgi'; did you mean 'big'?",
    ),
    (
        ["objective=[{loss: info_nce, guide: big}]", "teachers={big: {model: tiny:clap}}"],
        "objective[0].guide: 'big' has no image",
    ),
    (["objective=[{loss: feature, teacher: big}]", "teachers={big: {model: tiny:clap}}"], "objective[0].teacher: 'big' has no"),
    (["objective=[{loss: info_nce, weights: grade}]"], "objective[0].weights: OWN: no row has a column 'grade'"),
    (["objective=[{loss: info_nce, directions: foward}]"], "objective[0].directions: 'foward'; did you mean 'forward'?"),
    (["objective=[{loss: info_nce, pairs: [[text, image]]}]"], "objective[0].pairs: ['text', 'image'] is not among"),
    (["matryoshka={dims: [100000]}"], "matryoshka.dims: [100000] must be between 1 and the model's dimension"),
    (["tune={imge: full, text: full}"], "tune.imge: "),
]


def test_the_disk_needs_room_for_checkpoints_and_artifact(root, rows):
    """The estimate is at least what a run leaves behind, at most twice that; a disk with less is refused before step 1."""
    data, run = packed(root, rows, "disk"), root / "disk-run"
    keys = recipe(root, data, run={"dir": str(run)}) | {"data": {"train": data, "val": packed(root, rows[12:], "dv")}}
    keys["data"]["allow_trained"] = True
    mmtune.train(keys | {"train": {"epochs": 4, "batch_size": 8, "precision": "fp32", "ema": 0.9}}, quiet=True)
    left = sum(p.stat().st_size for p in run.rglob("*") if p.suffix in (".pt", ".safetensors"))
    model = mmtune.load("tiny:clip")
    needed = checkpoint_bytes(sum(p.numel() for p in model.parameters()), 0, keep=3, ema=True, validated=True)
    assert left < needed < 2 * left
    check_disk_space(root / "not" / "there" / "yet", 1)
    with pytest.raises(TrainingError, match=r"run.dir: .* needs about 1e\+09 GB .* free some"):
        check_disk_space(root, 10**18)


@pytest.fixture(scope="module")
def places(root, rows):
    """{word in KNOWN_BEFORE: path}"""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"query_id": ["a"]}), root / "table.parquet")
    sounds = corpora.source(root / "sounds-src", 6, 3, ("audio",))
    pack(sounds, root / "sounds")
    pack(corpora.source(root / "other-src", 8, 4, ("image", "text")), root / "other")
    own = {"OWN": packed(root, rows, "known"), "TABLE": str(root / "table.parquet")}
    return own | {"SOUNDS": str(root / "sounds"), "OTHER": str(root / "other")}


@pytest.mark.parametrize("keys,says", KNOWN_BEFORE, ids=[" ".join(keys) for keys, _ in KNOWN_BEFORE])
def test_what_can_be_known_before_the_first_step_is_one_line(root, tmp_path, places, capsys, keys, says):
    def with_paths(text):
        for word, place in places.items():
            text = text.replace(word, place)
        return text

    path, run = tmp_path / "before.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(recipe(root, places["OWN"])))
    assert main(["train", str(path), "--quiet", f"run.dir={run}", *map(with_paths, keys)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mmtune train: ") and err.count("\n") == 1 and with_paths(says) in err, err
    assert not (run / "checkpoints").exists() and not (run / "metrics.jsonl").exists()
