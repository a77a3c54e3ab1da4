"""`data.read: stream`: the same trainer on streamed shards; kills, processes, lengths in samples, and what is refused."""

import json
import math
import signal
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml

import mmtune
from mmtune.data.decode import decode_row
from mmtune.data.pack.pack import pack
from mmtune.data.remote import retry as retry_module
from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError, DataWarning, RecipeError
from mmtune.training.loop import Trainer
from tests.support import corpora
from tests.support.http_server import http_server
from tests.training.test_dist_train import TORCHRUN, done, end, launch, lines, wait_for_step, weights


@pytest.fixture(scope="module")
def www(tmp_path_factory) -> Path:
    """48 rows in shards of a few rows each, beside which other files may be served."""
    root = tmp_path_factory.mktemp("www")
    pack(corpora.source(root / "source", 48, 0, ("image", "text")), root / "packed", shard_size="20KB")
    assert len(open_data(str(root / "packed")).shards) > 8
    return root


def recipe(source: object, run: Path, **changes: dict) -> dict:
    base: dict = {
        "model": "tiny:clip",
        "data": {"train": source, "read": "stream", "shuffle_buffer": 16, "workers": 1},
        "train": {"epochs": 3, "batch_size": 7, "lr": 1e-3, "precision": "fp32"},
        "run": {"dir": str(run)},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
    return base


def steps(run: Path) -> list[dict]:
    return [r for r in lines(run) if "loss" in r]


def test_an_epoch_over_a_slow_failing_server_has_every_row_once(www, tmp_path, monkeypatch):
    """50 ms, 1% failures and cut connections, 5 MB/s; the batches are those of the local files."""
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retry_module, "FIRST_DELAY", 0.05)
    seen: list[str] = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, batch: (seen.extend(batch.ids), step(self, batch))[1])
    local = mmtune.train(recipe(str(www / "packed"), tmp_path / "local", train={"epochs": 1}), quiet=True)
    here, seen[:] = list(seen), []
    assert sorted(here) == sorted(open_data(str(www / "packed")).ids)
    with http_server(www, delay=0.05, failures=0.01, cuts=0.01, rate=5e6) as server:
        address = f"{server.url}/packed"
        options = {"read": "stream", "cache_size": "1MB"}
        there = mmtune.train(recipe(address, tmp_path / "remote", data=options, train={"epochs": 1}), quiet=True)
    assert seen == here and there["pairs"] == local["pairs"] == 48
    assert weights(tmp_path / "remote") == weights(tmp_path / "local")
    assert sum(p.stat().st_size for p in (tmp_path / "cache" / "streamed").iterdir()) <= 1_000_000


@pytest.mark.parametrize("stop_after", [pytest.param(1, marks=pytest.mark.slow), 9])
def test_stopped_and_resumed_is_bit_identical(www, tmp_path, stop_after, monkeypatch):
    changes = {"augment": {"image": {"flip": True}}, "train": {"checkpoint_every": 2}}
    mmtune.train(recipe(str(www / "packed"), tmp_path / "whole", **changes), quiet=True)
    step = Trainer.step

    def interrupted(self, batch):
        if self.state.step == stop_after:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", interrupted)
    parts = recipe(str(www / "packed"), tmp_path / "parts", **changes)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(parts, quiet=True)
    monkeypatch.undo()
    mmtune.train(parts, resume=True, quiet=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert [r["loss"] for r in steps(tmp_path / "parts")] == [r["loss"] for r in steps(tmp_path / "whole")]


def test_the_length_of_a_run_in_samples(www, tmp_path):
    """Less than an epoch, and more; the schedule follows the pairs; a set whose rows are unknown needs it."""
    for samples, n_steps, warmup, before_last in ((20, 3, 0, 14), ("0.1K", 15, 1, 96)):
        run = tmp_path / f"run-{samples}"
        result = mmtune.train(recipe(str(www / "packed"), run, train={"samples": samples}), quiet=True)
        wanted = 100 if samples == "0.1K" else samples
        assert wanted <= result["pairs"] < wanted + 7 and result["steps"] == n_steps
        share = (before_last / 7 - warmup) / (n_steps - warmup)  # of the cosine, by the pairs seen before the last step
        assert steps(run)[-1]["lr"] == pytest.approx(0.5e-3 * (1 + math.cos(math.pi * share)))
    pipe = f"pipe:cat {www}/packed/shard-00000{{0..3}}.tar"
    with pytest.raises(RecipeError, match="train.samples: .*unknown; set"):
        mmtune.train(recipe(pipe, tmp_path / "unknown"), quiet=True)
    assert mmtune.train(recipe(pipe, tmp_path / "pipe", train={"samples": 40}), quiet=True)["pairs"] >= 40
    indexed = recipe(str(www / "packed"), tmp_path / "indexed", data={"read": "index"}, train={"samples": 96})
    assert mmtune.train(indexed, quiet=True)["pairs"] == 96


def test_groups_mask_and_validation_and_frozen_towers_work_on_streams(www, tmp_path):
    data = {"val": corpora.packed(tmp_path, 12, 1, ("image", "text"))}
    tune = {"image": "frozen", "text": "full"}
    result = mmtune.train(recipe(str(www / "packed"), tmp_path / "run", data=data, tune=tune, train={"epochs": 2}), quiet=True)
    assert result["metrics"]["directions"] and len([r for r in lines(tmp_path / "run") if "loss" not in r]) == 2
    info = json.loads((tmp_path / "run" / "artifact" / "mmtune.json").read_text())
    assert info["info"]["data"] == str(www / "packed")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mining": {"rounds": 1}}, "mining: needs any row"),
        ({"data": {"batches": "spread"}}, "data.batches: spread needs any row.*; set data.batches=random, or data.read=index"),
        ({"augment": {"audio": {"mixup": 0.3}}}, r"augment\.audio\.mixup: needs any row"),
        ({"teachers": {"t": {"model": "tiny:clip"}}}, r"teachers\.t: the cache of its outputs needs any row"),
        (
            {"pairs": [["text", "text"]], "objective": [{"loss": "cosent"}]},
            r"objective\[0\]: looking up the score of two rows \(\[text, text\]\) needs any row",
        ),
    ],
)
def test_what_needs_random_access_is_refused_before_the_first_step(www, tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        mmtune.train(recipe(str(www / "packed"), tmp_path / "run", **changes), quiet=True)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_losses_get_columns_of_streamed_rows(tmp_path):
    """Batches hold the values of the rows, as indexed ones do; weights of 0 and 1 are trained as they are read from an index."""
    table = corpora.source(tmp_path / "source", 24, 0, ("image", "text"))
    header, *rows = table.read_text().strip().split("\n")
    numbered = [f"{row},{i % 2},{'x' if i == 0 else ''}" for i, row in enumerate(rows)]
    table.write_text("\n".join([f"{header},weight,bad", *numbered]))
    packed = str(tmp_path / "packed")
    pack(table, packed, shard_size="20KB")
    assert len(open_data(packed).shards) > 3

    def run(name, column, **data):
        changes = {"objective": [{"loss": "info_nce", "weights": column}], "train": {"epochs": 1, "batch_size": 24}}
        return mmtune.train(recipe(packed, tmp_path / name, data=data, **changes), quiet=True)

    run("streamed", "weight", shuffle_buffer=64)
    run("indexed", "weight", read="index")
    first = [steps(tmp_path / name)[0]["loss"] for name in ("streamed", "indexed")]
    assert first[0] == pytest.approx(first[1], abs=1e-5)  # one batch of all rows, in another order
    plain = mmtune.train(recipe(packed, tmp_path / "plain", train={"epochs": 1, "batch_size": 24}), quiet=True)
    assert plain and steps(tmp_path / "plain")[0]["loss"] != pytest.approx(first[0], abs=1e-3)
    with pytest.raises(DataError, match="weights: .*none of the first rows has the column 'weigth'; did you mean 'weight'"):
        run("missing", "weigth")
    with pytest.raises(DataError, match=r"weights: .*packed: column 'bad' of row '0-000' is 'x', not a number"):
        run("text", "bad")


def test_heads_are_fitted_to_the_first_streamed_pairs(www, tmp_path):
    """With as many pairs as there are rows the heads are those of the indexed run; with fewer, shards that are not needed stay unread."""
    towers = {"image": "tiny:image@1", "text": "tiny:text@2"}

    def fitted(name, pairs, **data):
        changes = {
            "model": towers,
            "heads": {"image": {"init": "ridge", "pairs": pairs}},
            "tune": "head",
            "train": {"epochs": 1},
        }
        mmtune.train(recipe(str(www / "packed"), tmp_path / name, data=data, **changes), quiet=True)
        return mmtune.load(str(tmp_path / name / "fitted_heads"))

    streamed, indexed = fitted("streamed", 48), fitted("indexed", 48, read="index")
    pictures = [decode_row(open_data(str(www / "packed")), i, "image") for i in range(6)]
    np.testing.assert_allclose(streamed.encode(image=pictures), indexed.encode(image=pictures), atol=1e-4)
    few = fitted("few", 5)
    assert np.abs(few.encode(image=pictures) - indexed.encode(image=pictures)).max() > 1e-2
    assert np.isfinite(few.encode(image=pictures)).all()


def test_heads_are_trained_first_on_streams(www, tmp_path, monkeypatch):
    """The first stage is that of random access on the same batch of all rows; its length must be known."""
    changes = {
        "tune": {"image": {"how": "full", "head_first": 2, "head_lr": 1e-2}, "text": "full"},
        "train": {"epochs": 1, "batch_size": 48},
    }
    for name, data in (("streamed", {"shuffle_buffer": 64}), ("indexed", {"read": "index"})):
        mmtune.train(recipe(str(www / "packed"), tmp_path / name, data=data, **changes), quiet=True)
    for stage in ("head_first", "."):
        streamed, indexed = ([r["loss"] for r in steps(tmp_path / name / stage)] for name in ("streamed", "indexed"))
        assert len(streamed) == (2 if stage == "head_first" else 1) and streamed == pytest.approx(indexed, rel=1e-4, abs=1e-5)
    pipe = f"pipe:cat {www}/packed/shard-00000{{0..3}}.tar"
    with pytest.raises(
        RecipeError, match=r"tune\.image\.head_first: counts epochs, but the number of rows of pipe:.* is unknown"
    ):
        mmtune.train(recipe(pipe, tmp_path / "unknown", **{**changes, "train": {"samples": 40}}), quiet=True)


def test_validation_rows_among_streamed_rows_are_found(www, tmp_path):
    """They were checked for indexed data alone: validation on training rows chose the checkpoint without a word."""
    packed = str(www / "packed")
    with pytest.raises(RecipeError, match=r"data\.val: its row '0-\d+' is trained on, .*data\.allow_trained=true"):
        mmtune.train(recipe(packed, tmp_path / "same", data={"val": packed}, train={"epochs": 1}), quiet=True)
    with pytest.warns(UserWarning, match="data.val: 48 of its rows are trained on"):
        data = {"val": packed, "allow_trained": True}
        mmtune.train(recipe(packed, tmp_path / "allowed", data=data, train={"epochs": 1}), quiet=True)
    table = www / "source" / "rows.csv"
    (www / "source" / "renamed.csv").write_text(table.read_text().replace("\n0-", "\nother-"))
    pack(www / "source" / "renamed.csv", tmp_path / "renamed")
    with pytest.warns(
        UserWarning, match=r"data\.val: 48 of its rows are trained on \(row 'other-000': its image was trained on"
    ):
        mmtune.train(
            recipe(packed, tmp_path / "contents", data={"val": str(tmp_path / "renamed")}, train={"epochs": 1}), quiet=True
        )
    other = corpora.packed(tmp_path, 12, 1, ("image", "text"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*trained on")
        mmtune.train(recipe(packed, tmp_path / "other", data={"val": other}, train={"epochs": 2}), quiet=True)
    with pytest.warns(UserWarning, match="trained on streamed rows, of which no record is kept"):
        mmtune.evaluate(str(tmp_path / "other" / "artifact"), packed)


def test_heads_are_fitted_without_the_rest_of_a_damaged_shard(tmp_path):
    """data.skip_bad did not reach the fit of heads, which ended the run before its first step."""
    pack(corpora.source(tmp_path / "source", 24, 0, ("image", "text")), tmp_path / "packed", shard_size="20KB")
    shard = sorted((tmp_path / "packed").glob("*.tar"))[0]
    with tarfile.open(shard) as tar:
        header = tar.getmembers()[4].offset
    damaged = bytearray(shard.read_bytes())
    damaged[header : header + 512] = b"x" * 512
    shard.write_bytes(damaged)
    towers = {"image": "tiny:image@1", "text": "tiny:text@2"}
    changes = {"model": towers, "heads": {"image": {"init": "ridge"}}, "tune": "head", "train": {"epochs": 1}}
    with pytest.raises(DataError, match="damaged"):
        mmtune.train(recipe(str(tmp_path / "packed"), tmp_path / "ends", **changes), quiet=True)
    with pytest.warns(DataWarning):
        mmtune.train(recipe(str(tmp_path / "packed"), tmp_path / "run", data={"skip_bad": True}, **changes), quiet=True)
    assert (tmp_path / "run" / "fitted_heads" / "adapters.json").is_file()


def test_a_bad_picture_costs_its_row_and_is_counted(www, tmp_path):
    from tests.data.loader.test_stream_loader import shards

    folder = shards(tmp_path / "bad", [10, 12], bad=[3, 17])
    with pytest.warns(DataWarning, match="2 rows left out, because a value cannot be decoded"):
        result = mmtune.train(recipe(folder, tmp_path / "run", train={"samples": 20}), quiet=True)
    assert result["pairs"] == 20


@pytest.mark.slow
def test_killed_and_resumed_over_a_server_is_bit_identical(www, tmp_path):
    """SIGKILL of the real command in the middle of epochs, with a cache on disk that evicts."""
    with http_server(www, delay=0.05, failures=0.01, rate=5e6) as server:
        path = tmp_path / "r.yaml"
        data = {"read": "stream", "cache_size": "50KB"}
        path.write_text(
            yaml.safe_dump(
                recipe(f"{server.url}/packed", tmp_path / "x", data=data, train={"epochs": 8, "checkpoint_every": 1})
            )
        )
        done(launch([sys.executable], path, tmp_path / "whole"))
        for step in (5, 17, 31):
            process = launch([sys.executable], path, tmp_path / "killed", "--resume")
            wait_for_step(tmp_path / "killed", step)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        done(launch([sys.executable], path, tmp_path / "killed", "--resume"))
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert [r["step"] for r in steps(tmp_path / "killed")] == list(range(1, 57))


@pytest.mark.dist
@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_shards_and_learn_what_one_learns(www, tmp_path, count):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe(str(www / "packed"), tmp_path / "x", train={"epochs": 4})))
    done(launch([sys.executable], path, tmp_path / "one"))
    result = done(launch([*TORCHRUN[:-1], str(count)], path, tmp_path / "many"))
    assert result["pairs"] == 4 * 48
    one, many = steps(tmp_path / "one"), steps(tmp_path / "many")
    assert [r["step"] for r in one] == [r["step"] for r in many]
    assert [r["loss"] for r in many] == pytest.approx([r["loss"] for r in one], rel=2e-4, abs=2e-5)


@pytest.mark.dist
def test_resumed_on_another_number_of_processes(www, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe(str(www / "packed"), tmp_path / "x", train={"epochs": 8, "checkpoint_every": 1})))
    done(launch([sys.executable], path, tmp_path / "one"))
    process: subprocess.Popen = launch(TORCHRUN, path, tmp_path / "run")
    wait_for_step(tmp_path / "run", 10)
    end(process)
    process = launch([*TORCHRUN[:-1], "3"], path, tmp_path / "run", "--resume")
    wait_for_step(tmp_path / "run", 25)
    end(process)
    done(launch([sys.executable], path, tmp_path / "run", "--resume"))
    one, run = steps(tmp_path / "one"), steps(tmp_path / "run")
    assert [r["step"] for r in run] == [r["step"] for r in one]
    assert [r["loss"] for r in run] == pytest.approx([r["loss"] for r in one], rel=2e-3, abs=2e-4)


def test_streamed_validation_gives_the_scores_of_random_access(www, tmp_path, monkeypatch):
    """After each epoch, at the end, and with a base model whose training rows are refused; nothing is copied to the cache."""
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    val = corpora.packed(tmp_path, 24, 1, ("image", "text"))
    names = sorted(p.name for p in Path(val).glob("*.tar"))
    runs = {}
    with http_server(Path(val)) as server:
        address = f"{server.url}/{names[0]}" if len(names) == 1 else server.url
        ways = {"index": (val, None), "stream": (address, "stream"), "pipe": (f"pipe:cat {val}/*.tar", None)}
        for name, (spec, read) in ways.items():
            data = {"val": spec, "retention": spec, "val_read": read}
            done = mmtune.train(recipe(str(www / "packed"), tmp_path / name, data=data, train={"epochs": 2}), quiet=True)
            runs[name] = [r for r in lines(tmp_path / name) if "loss" not in r], done["metrics"]
        assert [p for p in (tmp_path / "cache").rglob("*.tar")] == []
    assert len(runs["index"][0]) == 2 and any("retention" in k for k in runs["index"][0][0])
    assert runs["stream"] == runs["pipe"] == runs["index"]
    again = {"model": str(tmp_path / "index" / "artifact"), "data": {"train": val, "val": f"pipe:cat {val}/*.tar"}}
    trained = mmtune.train({**recipe(val, tmp_path / "base", data={"read": "index"}), "train": {"epochs": 1}}, quiet=True)
    again["model"] = trained["artifact"]
    with pytest.raises(RecipeError, match="data.val: .* rows of .* were trained on by the base model"):
        mmtune.train(recipe(str(www / "packed"), tmp_path / "again", **again), quiet=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {"read": "index"}},
            r"data\.val: pipe:.*can only be streamed if the training data are; set data\.read=stream",
        ),
        ({"pictures": 2}, r"run\.pictures: needs single values of data\.val"),
        ({"data": {"val_read": "stream", "read": "index"}}, r"data\.val_read: stream: data\.val can only be streamed if"),
    ],
)
def test_what_streamed_validation_cannot_do_is_refused(www, tmp_path, changes, message):
    changed = recipe(str(www / "packed"), tmp_path / "run", data={"val": f"pipe:cat {www}/packed/shard-000000.tar"})
    changed["data"] |= changes.get("data", {})
    changed["run"] |= {"pictures": changes.get("pictures", 0)}
    with pytest.raises(RecipeError, match=message):
        mmtune.train(changed, quiet=True)
