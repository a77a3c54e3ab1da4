"""Losses on class labels over streamed shards: classes, numbers and losses are those of random access; kills, processes, lists."""

import csv
import json
import shutil
import signal
import sys
import tarfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import mmtune
from mmtune.contracts import Batch
from mmtune.data.loader.row_classes import KnownClasses
from mmtune.data.pack.pack import pack
from mmtune.data.shards import merge_classes
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.shard_classes import ClassQuery
from mmtune.data.shards.shard_lru import ShardCache
from mmtune.data.shards.stream_classes import count_streamed_classes
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import DataError, DataWarning, RecipeError, TrainingError
from mmtune.recipe.recipe import Recipe
from mmtune.runtime.distributed import SINGLE_PROCESS
from mmtune.training.class_label_files import open_class_labels
from mmtune.training.class_labels import StreamedClassLabels, count_classes
from mmtune.training.loop import Trainer
from mmtune.training.training_inputs import open_inputs
from mmtune.training.unique_items import pair_items
from tests.support import corpora
from tests.support.dist_runs import TORCHRUN, done, end, launch, lines, wait_for_step, weights
from tests.support.http_server import http_server

pytest.importorskip("pytorch_metric_learning", reason="the extra pml")
PAIRS = [["image", "text"], ["image", "image"]]
PROXIES = {"loss": "pml:ProxyAnchorLoss", "pairs": [["image", "image"]], "label": "kind"}
TRIPLETS = {"loss": "pml:TripletMarginLoss", "pairs": [["image", "image"]], "label": "kind", "triplets_per_anchor": 2}
BOTH = {"loss": "pml:ArcFaceLoss", "pairs": [["image", "text"]], "label": "group", "margin": 20}
ROWS, USED = 60, 59


def table_of(out: Path, seed: int = 0, **columns: str) -> Path:
    """Pictures of `corpora`, with a column `kind` of 5 numbers. Some rows have none; some pictures are in rows of two kinds, or in a row
    with and in one without a kind; some rows have no picture. columns: names of columns in the table -> those here"""
    table = corpora.source(out, ROWS, seed, ("image", "text"))
    with open(table, newline="") as f:
        rows = list(csv.DictReader(f))
    for i, row in enumerate(rows):
        row["kind"] = "" if i % 11 == 0 else str(i % 5)
        if i in (7, 8):
            row["image"] = rows[0 if i == 7 else 1]["image"]  # a picture without a kind gets one; one has the kinds 1 and 3
        if i == 20:
            row["image"], row["kind"] = "", "only without a picture"
    names = {"id": "id", "image": "image", "text": "text", "group": "group", "kind": "kind"} | columns
    with open(table, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(names)
        writer.writerows([[row[names[n]] for n in names] for row in rows])
    return table


@pytest.fixture(scope="module")
def www(tmp_path_factory) -> Path:
    """The same rows packed, as plain tar files without an index, and compressed; other rows whose group column is called `kind`."""
    root = tmp_path_factory.mktemp("classes")
    pack(table_of(root / "source"), root / "packed", shard_size="20KB")
    pack(table_of(root / "other", 1, kind="group", brand="kind"), root / "alias", group="kind", shard_size="20KB")
    assert len(open_data(str(root / "packed")).shards) > 8
    for name in ("plain", "gz"):
        (root / name).mkdir()
    with tarfile.open(root / "whole.tar", "w") as whole:
        for tar in sorted((root / "packed").glob("*.tar")):
            shutil.copy(tar, root / "plain")
            with tarfile.open(tar) as old, tarfile.open(root / "gz" / f"{tar.name}.gz", "w:gz") as new:
                for member in old:
                    new.addfile(member, old.extractfile(member))
                    whole.addfile(member, old.extractfile(member))
    return root


def recipe(source: object, run: Path, *terms: dict, **changes: dict) -> dict:
    base: dict = {
        "model": "tiny:clip",
        "data": {"train": source, "read": "stream", "shuffle_buffer": 16, "workers": 1},
        "pairs": PAIRS,
        "objective": [{"loss": "info_nce", "pairs": [["image", "text"]]}, *terms],
        "train": {"samples": 2 * USED, "batch_size": 8, "lr": 1e-3, "precision": "fp32", "schedule": "constant"},
        "run": {"dir": str(run)},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
    return base


def steps(run: Path) -> list[dict]:
    return [r for r in lines(run) if "loss" in r]


def term_values(run: Path) -> list[list[float]]:
    """The values of all terms at each step."""
    return [[v for k, v in sorted(r.items()) if k == "loss" or ":" in k or "info_nce" in k] for r in steps(run)]


def opened(train: object, run: Path, *terms: dict, **data: object):
    checked = Recipe.read(recipe(train, run, *terms, data=data))
    return open_class_labels(checked, open_inputs(checked), True, SINGLE_PROCESS)


WAYS = {
    "tables": lambda root: str(root / "packed"),
    "plain tar files": lambda root: str(root / "plain"),
    "compressed": lambda root: f"{root}/gz/*.tar.gz",
    "one pipe": lambda root: f"pipe:cat {root}/whole.tar",
    "a mixture": lambda root: [str(root / "packed"), {"path": str(root / "alias"), "weight": 0.5}],
}


@pytest.mark.parametrize(
    ("way", "column"), [*((way, column) for way in WAYS for column in ("kind", "group", "id")), ("a mixture", "brand")]
)
def test_classes_and_their_numbers_are_those_of_random_access(www, tmp_path, way, column, monkeypatch):
    """Counted in tables, in streams, in compressed ones, in a mixture in which the column of one set is the group of the other."""
    monkeypatch.setattr("mmtune.data.shards.stream_classes.BLOCK_ROWS", 7)
    monkeypatch.setattr(merge_classes, "BUCKET_ROWS", 4)
    monkeypatch.setattr(merge_classes, "PENDING", 2)
    of = [{**PROXIES, "label": column}, {**BOTH, "label": column}]
    spec = WAYS[way](www)
    sets = [str(www / "packed"), *([str(www / "alias")] if way == "a mixture" else [])]
    labels = opened(spec, tmp_path / "run", *of)
    data = WeightedConcat([open_data(s) for s in sets], [1.0] * len(sets))
    for number, pairs in (("1", [("image", "image")]), ("2", [("image", "text")])):
        wanted = count_classes(data, column, pairs, f"objective[{number}].label")
        got = labels[number]
        assert got.count == wanted.count and got.notes == wanted.notes
        names = pq.read_table(tmp_path / "run" / "classes" / f"{number}.parquet")["class"].to_pylist()
        values = [str(v) for v in (data.groups if column == "group" else data.column(column))]
        for m, of_rows in wanted.classes.items():
            contents, numbers = got.contents[m]
            exceptions = dict(zip(contents.tolist(), numbers.tolist(), strict=True))
            for i in np.flatnonzero(data.present[m] & np.all([data.present[x] for x in pairs[0]], axis=0)):
                value = values[i] if values[i] in names else None
                mine = exceptions.get(int(data.labels[m][i]), -1 if value is None else names.index(value))
                assert mine == of_rows[i], (m, data.ids[i])
    if column == "kind" and way != "a mixture":
        assert any("with several classes" in note for note in got.notes) and "only without a picture" not in names
        assert len(labels["1"].contents["image"][0]) == 2  # a picture of two kinds, and one with and without a kind


def indexed_epochs(monkeypatch, batches_of_epoch: list[list[list[str]]]) -> None:
    """Make runs with random access train on these batches of row ids."""

    class Plan:
        notes: list[str] = []

        def __call__(self, epoch: int) -> list[np.ndarray]:
            return [np.array([self.row[i] for i in ids]) for ids in batches_of_epoch[epoch]]

    def plan(data, *others):
        made = Plan()
        made.row = {row_id: i for i, row_id in enumerate(data.ids)}
        return made

    monkeypatch.setattr("mmtune.run.plan_batches", plan)


def test_the_losses_are_those_of_random_access_on_the_same_batches(www, tmp_path, monkeypatch):
    """Proxies, sampled triplets and a loss over two modalities, two epochs, proxies trained."""
    terms = [PROXIES, TRIPLETS, BOTH]
    batches: list[list[list[str]]] = [[], []]
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, b: (batches[self.state.epoch].append(list(b.ids)), step(self, b))[1])
    mmtune.train(recipe(str(www / "plain"), tmp_path / "streamed", *terms), quiet=True)
    monkeypatch.setattr(Trainer, "step", step)
    assert [len(b) for b in batches] == [8, 8] and sum(map(len, batches[0])) == USED
    indexed_epochs(monkeypatch, batches)
    mmtune.train(recipe(str(www / "packed"), tmp_path / "indexed", *terms, data={"read": "index"}), quiet=True)
    one, other = term_values(tmp_path / "streamed"), term_values(tmp_path / "indexed")
    assert len(one) == 16 and len(one[0]) >= 4
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)
    for name in ("1.loss.proxies", "3.loss.W"):
        made = [
            torch.load(tmp_path / run / "checkpoints" / "last" / "state.pt")["objective"][f"class_losses.{name}"]
            for run in ("streamed", "indexed")
        ]
        torch.testing.assert_close(*made, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spec", ["packed", "plain"])
def test_stopped_and_resumed_is_bit_identical(www, tmp_path, spec, monkeypatch):
    """The classes are not counted again, even if the tables are gone."""
    changes = {"train": {"checkpoint_every": 2}}
    mmtune.train(recipe(str(www / spec), tmp_path / "whole", PROXIES, TRIPLETS, **changes), quiet=True)
    parts = recipe(str(www / spec), tmp_path / "parts", PROXIES, TRIPLETS, **changes)
    step = Trainer.step

    def interrupted(self, batch):
        if self.state.step == 5:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Trainer, "step", interrupted)
        mmtune.train(parts, quiet=True)
    assert not (tmp_path / "parts" / "classes.counting").exists()
    monkeypatch.setattr("mmtune.training.class_label_files.count_streamed_classes", None)
    mmtune.train(parts, resume=True, quiet=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert [r["loss"] for r in steps(tmp_path / "parts")] == [r["loss"] for r in steps(tmp_path / "whole")]


def test_a_count_that_ended_goes_on_with_the_shards_that_are_left(www, tmp_path, monkeypatch):
    plain = tmp_path / "plain"
    shutil.copytree(www / "plain", plain)
    shard = sorted(plain.glob("*.tar"))[-1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    queries, folder, read = [ClassQuery("kind", (("image", "text"),))], tmp_path / "counting", list[str]()
    original = StreamedSets.read
    monkeypatch.setattr(StreamedSets, "read", lambda self, s, *more: (read.append(s.name), original(self, s, *more))[1])

    def count(**options):
        return count_streamed_classes(StreamedSets([str(plain)], [1.0], ShardCache(0)), queries, folder, readers=1, **options)

    with pytest.raises(DataError, match=r"truncated"):
        count()
    n = len(list(plain.iterdir()))
    assert Counter(read) == {p.stem: 1 for p in plain.iterdir()} and len(list(folder.glob("*.npz"))) == n - 1
    shard.write_bytes(whole)
    read.clear()
    (counted,) = count()
    assert read == [shard.stem] and counted.names.to_pylist() and not list(folder.glob("pairs-*"))
    assert set(counted.names.to_pylist()) == {"0", "1", "2", "3", "4"}
    shard.write_bytes(whole[: len(whole) // 2])  # another file: it is counted again, as far as it goes
    assert len(count(skip_damaged=True)[0].labels) == 5 and len(list(folder.glob("*.npz"))) == n + 1


def test_listed_classes(www, tmp_path, capfd):
    """Their order is that of the list, in streams as with random access; nothing is read before the first step."""
    (tmp_path / "kinds.txt").write_text("4\r\n3\n\n2\n1\n0\n", encoding="utf-8-sig")
    ways = {"list": [4, 3, 2, 1, 0], "file": str(tmp_path / "kinds.txt")}
    for name, classes in ways.items():
        for read, spec in (("stream", "plain"), ("index", "packed")):
            term = {**PROXIES, "classes": classes}
            train = {"samples": USED, "batch_size": ROWS}
            data = {"read": read, "shuffle_buffer": 100}
            mmtune.train(recipe(str(www / spec), tmp_path / f"{name}-{read}", term, data=data, train=train))
            assert "objective[1]: 5 classes (column 'kind')" in capfd.readouterr().err
            assert pq.read_table(tmp_path / f"{name}-{read}" / "classes" / "1.parquet")["class"].to_pylist() == list("43210")
    values = [term_values(tmp_path / f"{name}-{read}") for name in ways for read in ("stream", "index")]
    np.testing.assert_allclose(values[1:], [values[0]] * 3, rtol=1e-4, atol=1e-5)  # one batch of all rows
    counted = recipe(str(www / "plain"), tmp_path / "counted", PROXIES, data={"shuffle_buffer": 100}, train=train)
    mmtune.train(counted, quiet=True)
    assert abs(np.array(term_values(tmp_path / "counted"))[0] - values[0][0]).max() > 1e-3  # other numbers, other proxies
    saved = {**PROXIES, "classes": str(tmp_path / "counted" / "classes" / "1.parquet")}
    mmtune.train(recipe(str(www / "plain"), tmp_path / "saved", saved, data={"shuffle_buffer": 100}, train=train), quiet=True)
    np.testing.assert_allclose(term_values(tmp_path / "saved"), term_values(tmp_path / "counted"), rtol=1e-6)


@pytest.mark.parametrize("read", ["stream", "index"])
def test_a_row_of_a_class_that_is_not_listed(www, tmp_path, read):
    def train(name, classes, **data):
        term = {**PROXIES, "classes": classes}
        spec = str(www / ("plain" if read == "stream" else "packed"))
        made = recipe(spec, tmp_path / name, term, data={"read": read, **data}, train={"samples": USED})
        return mmtune.train(made, quiet=True)

    wrong = r"objective\[1\]: row '0-\d+' of .* has the class '4' \(column 'kind'\), which objective\[1\]\.classes does not list; add it, or"
    with pytest.raises(DataError, match=wrong):
        train("refused", [0, 1, 2, 3])
    if read == "stream":
        with pytest.warns(DataWarning, match=r"1\d rows left out of objective\[1\]: their class is not listed"):
            assert train("left", [0, 1, 2, 3], skip_bad=True)["pairs"] == USED  # the other loss has them
    else:
        assert train("left", [0, 1, 2, 3], skip_bad=True)["pairs"] == USED
    assert np.isfinite(np.array(term_values(tmp_path / "left"))).all()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a"], r"objective\[1\]\.classes: lists 1 classes; .* at least 2"),
        (["a", "b", "a"], r"objective\[1\]\.classes: lists the class 'a' twice"),
        ("missing.txt", r"objective\[1\]\.classes: missing\.txt: .*No such file.*; write a text file with one class a line"),
    ],
)
def test_lists_that_cannot_be_used(www, tmp_path, classes, message):
    with pytest.raises(RecipeError, match=message):
        mmtune.train(recipe(str(www / "packed"), tmp_path / "run", {**PROXIES, "classes": classes}), quiet=True)


def test_what_cannot_be_learnt_is_refused_before_the_first_step(www, tmp_path):
    for spec, term, message in (
        (
            "plain",
            {**PROXIES, "label": "knd"},
            r"objective\[1\]\.label: .*none of the first rows has the column 'knd'; did you mean 'kind'",
        ),
        (
            "packed",
            {**PROXIES, "label": "knd"},
            r"objective\[1\]\.label: .*none of the first rows has the column 'knd'; did you mean 'kind'",
        ),
        ("packed", {**PROXIES, "label": "knd", "classes": [1, 2]}, r"objective\[1\]\.label: .*did you mean 'kind'"),
    ):
        run = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        with pytest.raises((RecipeError, DataError), match=message):
            mmtune.train(recipe(str(www / spec), run, term), quiet=True)
        assert not (run / "metrics.jsonl").exists() and not (run / "classes.counting").exists()
    corpora.source(tmp_path / "one", 8, 3, ("image", "text"))
    table = tmp_path / "one" / "rows.csv"
    table.write_text(table.read_text().replace("dark", "light"))
    pack(table, tmp_path / "one-packed")
    with pytest.raises(RecipeError, match=r"objective\[1\]\.label: column 'shade' of .* has 1 different values .* at least 2"):
        mmtune.train(recipe(str(tmp_path / "one-packed"), tmp_path / "one-run", {**PROXIES, "label": "shade"}), quiet=True)


def test_a_list_that_changes_under_a_run(www, tmp_path):
    """Proxies belong to class numbers: a run that has a checkpoint keeps its classes."""
    path = tmp_path / "kinds.txt"
    path.write_text("0\n1\n2\n3\n4\n")
    base = recipe(
        str(www / "packed"), tmp_path / "run", {**PROXIES, "classes": str(path)}, train={"samples": None, "epochs": 1}
    )
    mmtune.train(base, quiet=True)
    path.write_text("1\n0\n2\n3\n4\n")
    base["train"]["epochs"] = 2
    with pytest.raises(TrainingError, match=r"objective\[1\]\.classes: the run to resume has other classes .*restore the list"):
        mmtune.train(base, resume=True, quiet=True)
    path.write_text("0\n1\n2\n3\n4\n")
    assert mmtune.train(base, resume=True, quiet=True)["steps"] == 16


def test_shards_that_changed_before_the_first_checkpoint_are_counted_again(www, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    for tar in sorted((www / "plain").glob("*.tar"))[:2]:
        shutil.copy(tar, plain / tar.name)
    first = opened(str(plain), tmp_path / "run", {**PROXIES, "label": "id"})["1"]
    shutil.copy(sorted((www / "plain").glob("*.tar"))[3], sorted(plain.glob("*.tar"))[1])
    second = opened(str(plain), tmp_path / "run", {**PROXIES, "label": "id"})["1"]
    assert set(first.known.labels) != set(second.known.labels)


def test_remote_tables_are_counted_without_the_shards(www, tmp_path, monkeypatch):
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    local = opened(str(www / "packed"), tmp_path / "local", PROXIES)["1"]
    with http_server(www / "packed") as server:
        checked = Recipe.read(recipe(server.url, tmp_path / "remote", PROXIES))
        inputs, first_rows = open_inputs(checked), server.count(200, ".tar") + server.count(206, ".tar")
        remote = open_class_labels(checked, inputs, True, SINGLE_PROCESS)["1"]
        assert isinstance(remote, StreamedClassLabels) and server.count(200, ".arrow") == len(inputs.data.sets[0])
        assert server.count(200, ".tar") + server.count(206, ".tar") == first_rows
    assert (remote.known.labels == local.known.labels).all() and remote.notes == local.notes


def test_a_picture_of_two_listed_classes_is_left_out_of_a_batch_that_has_both():
    """Classes that are listed are not counted: whether a content has several is known within a batch only."""
    known = KnownClasses("objective[0]", "kind", (("image", "image"),), np.array([10, 20, 30]), are_listed=True)
    classes = StreamedClassLabels(known, np.array([2, 0, 1])).module()
    kinds, pictures = [20, 30, 10, 20, 20, 0, 40], [1, 1, 2, 3, 3, 3, 4]
    rows = torch.arange(len(kinds))
    labels = {"id": rows + 1, "group": rows * 0, "image": torch.tensor(pictures), "class kind": torch.tensor(kinds)}
    items = torch.tensor([p - 1 for p in pictures])
    batch = Batch([str(i) for i in rows], rows, torch.ones(len(rows), dtype=torch.bool), {}, {"image": items}, labels)
    made = pair_items(batch, ("image", "image"))
    of_item = dict(
        zip(batch.labels["image"][made.a.first_row].tolist(), classes.of_queries("image", made.a, batch).tolist(), strict=True)
    )
    assert of_item == {1: -1, 2: 2, 3: 0, 4: -1}


def test_data_that_change_after_the_first_checkpoint_are_noticed(www, tmp_path):
    """Nothing but the names of shards without an index.json tells them apart."""
    plain = tmp_path / "plain"
    shutil.copytree(www / "plain", plain)
    base = recipe(str(plain), tmp_path / "run", {**PROXIES, "label": "id"}, train={"checkpoint_every": 1})
    step = Trainer.step

    def interrupted(self, batch):
        if self.state.step == 3:
            raise KeyboardInterrupt
        return step(self, batch)

    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Trainer, "step", interrupted)
        mmtune.train(base, quiet=True)
    pack(table_of(tmp_path / "source", 5), tmp_path / "other", shard_size="20KB")
    for old, new in zip(sorted(plain.glob("*.tar")), sorted((tmp_path / "other").glob("*.tar")), strict=False):
        shutil.copy(new, old)
    with pytest.raises(DataError, match=r"objective\[1\]: row '5-\d+' of .* has the class '5-\d+' .*the data have changed"):
        mmtune.train(base, resume=True, quiet=True)
    (tmp_path / "run" / "classes" / "1.parquet").unlink()
    with pytest.raises(TrainingError, match=r"classes: cannot be read .*; delete it: the classes are then counted again"):
        mmtune.train(base, resume=True, quiet=True)


def test_a_loss_without_anything_to_compare_says_so(www, tmp_path):
    """With random access this is refused before the first step; the batches of a stream are not known then."""
    term = {**TRIPLETS, "label": "id"}
    with pytest.warns(
        UserWarning, match=r"objective\[1\]: pml:TripletMarginLoss .* none of the first 20 batches has two items of one class"
    ):
        mmtune.train(recipe(str(www / "packed"), tmp_path / "run", term, train={"samples": 3 * USED}), quiet=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*first 20 batches.*")
        mmtune.train(recipe(str(www / "packed"), tmp_path / "fine", TRIPLETS, train={"samples": 3 * USED}), quiet=True)


def test_the_loader_gets_no_labels_that_nobody_asked_for(www, tmp_path):
    checked = Recipe.read(
        recipe(str(www / "packed"), tmp_path / "run", {"loss": "mse", "pairs": [["image", "text"]], "column": "kind"})
    )
    assert open_class_labels(checked, open_inputs(checked), True, SINGLE_PROCESS) == {}
    assert not (tmp_path / "run" / "classes").exists()


@pytest.mark.slow
def test_killed_and_resumed_by_the_command_is_bit_identical(www, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        yaml.safe_dump(
            recipe(str(www / "plain"), tmp_path / "x", PROXIES, TRIPLETS, train={"samples": 6 * USED, "checkpoint_every": 1})
        )
    )
    done(launch([sys.executable], path, tmp_path / "whole"))
    for step in (5, 17):
        process = launch([sys.executable], path, tmp_path / "killed", "--resume")
        wait_for_step(tmp_path / "killed", step)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done(launch([sys.executable], path, tmp_path / "killed", "--resume"))
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert [r["step"] for r in steps(tmp_path / "killed")] == list(range(1, 49))


@pytest.mark.dist
@pytest.mark.parametrize("spec", ["packed", "plain"])
def test_two_processes_count_and_learn_what_one_does(www, tmp_path, spec):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe(str(www / spec), tmp_path / "x", PROXIES, TRIPLETS, BOTH)))
    done(launch([sys.executable], path, tmp_path / "one"))
    done(launch(TORCHRUN, path, tmp_path / "two"))
    for name in ("1.parquet", "1.image.parquet", "3.parquet", "3.text.parquet", "info.json"):
        assert (tmp_path / "one" / "classes" / name).read_bytes() == (tmp_path / "two" / "classes" / name).read_bytes()
    np.testing.assert_allclose(term_values(tmp_path / "two"), term_values(tmp_path / "one"), rtol=2e-4, atol=2e-5)
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}


@pytest.mark.dist
def test_resumed_on_another_number_of_processes(www, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        yaml.safe_dump(
            recipe(str(www / "plain"), tmp_path / "x", PROXIES, TRIPLETS, train={"samples": 4 * USED, "checkpoint_every": 1})
        )
    )
    done(launch([sys.executable], path, tmp_path / "one"))
    process = launch(TORCHRUN, path, tmp_path / "run")
    wait_for_step(tmp_path / "run", 10)
    end(process)
    done(launch([sys.executable], path, tmp_path / "run", "--resume"))
    np.testing.assert_allclose(term_values(tmp_path / "run"), term_values(tmp_path / "one"), rtol=2e-3, atol=2e-4)
    assert [r["step"] for r in steps(tmp_path / "run")] == list(range(1, 33))
    assert json.loads((tmp_path / "run" / "classes" / "info.json").read_text())["format"] == 1
