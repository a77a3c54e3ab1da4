"""Callbacks see every step, validation and mining round; the trackers get them too, each in its own offline mode."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmtune
from mmtune.errors import MissingExtra, RecipeError
from mmtune.training import Callback
from mmtune.training.loop import Trainer
from tests.support import corpora


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("trackers")


def recipe(root: Path, directory: Path, run: dict, **blocks) -> dict:
    return {
        "model": "tiny:clip",
        "data": {"train": corpora.packed(root), "val": corpora.packed(root, 12, 1)},
        "train": {"epochs": 2, "batch_size": 12, "lr": 1e-3, "precision": "fp32"},
        "run": {"dir": str(directory), **run},
        **blocks,
    }


class Recorder(Callback):
    """What was called, in order."""

    calls: list = []

    def __init__(self, note: str = ""):
        self.note = note

    def on_start(self, context):
        self.calls.append((self.note, "start", context.step, context.total_steps))

    def on_step(self, context, metrics):
        self.calls.append((self.note, "step", context.step, context.epoch, metrics["loss"] > 0))

    def on_validation(self, context, metrics):
        assert not context.model.training or metrics["metric"] > 0
        self.calls.append((self.note, "validation", context.step, "metric" in metrics))

    def on_mining(self, context, result):
        self.calls.append((self.note, "mining", context.step, result.mined > 0 and result.table.exists()))

    def on_end(self, context, result):
        self.calls.append((self.note, "end", context.step, result.steps))

    def close(self):
        self.calls.append((self.note, "close"))


def test_callbacks_of_the_recipe_and_of_the_caller_are_called_in_order(root, tmp_path):
    Recorder.calls = []
    mmtune.register_callback("recorder", "tests.training.test_trackers:Recorder")
    own = {"trackers": [], "callbacks": [{"name": "recorder", "note": "recipe"}]}
    config = recipe(root, tmp_path / "run", own, mining={"rounds": 1, "negatives": 2})
    mmtune.train(config, quiet=True, callbacks=[Recorder("caller")])
    expected = [
        ("start", 0, 4),
        ("step", 1, 0, True),
        ("step", 2, 0, True),
        ("validation", 2, True),
        ("mining", 2, True),
        ("step", 3, 1, True),
        ("step", 4, 1, True),
        ("validation", 4, True),
        ("end", 4, 4),
        ("close",),
    ]
    for note in ("recipe", "caller"):
        assert [c[1:] for c in Recorder.calls if c[0] == note] == expected
    assert [c[0] for c in Recorder.calls[:2]] == ["recipe", "caller"]


def test_a_callback_does_not_change_the_run_and_is_closed_after_an_error(root, tmp_path, monkeypatch):
    def failing(self, batch):
        raise ZeroDivisionError

    Recorder.calls = []
    monkeypatch.setattr(Trainer, "step", failing)
    with pytest.raises(ZeroDivisionError):
        mmtune.train(recipe(root, tmp_path / "run", {"trackers": []}), quiet=True, callbacks=[Recorder()])
    assert Recorder.calls == [("", "start", 0, 4), ("", "close")]


BAD = [
    ({"callbacks": ["nothing"]}, r"run\.callbacks\[0\]\.name: no callback 'nothing'"),
    ({"callbacks": [{"note": "x"}]}, r"run\.callbacks\[0\]: needs the key `name`"),
    ({"callbacks": ["pathlib:Path"]}, r"run\.callbacks\[0\]: pathlib:Path is no subclass of mmtune\.training\.Callback"),
    (
        {"callbacks": [{"name": "tests.training.test_trackers:Recorder", "nota": 1}]},
        r"run\.callbacks\[0\]\.nota: .* has no such option; did you mean 'note'",
    ),
    ({"trackers": ["wandbb"]}, r"run\.trackers\[0\]: 'wandbb'; did you mean 'wandb'"),
]


@pytest.mark.parametrize("run, message", BAD)
def test_wrong_callbacks_and_trackers_are_refused_before_anything_is_opened(root, tmp_path, run, message):
    with pytest.raises(RecipeError, match=message):
        mmtune.train(recipe(root, tmp_path / "run", run) | {"data": {"train": "none"}}, quiet=True)


def test_a_missing_tracker_names_its_extra(root, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'run\.trackers: wandb is not installed: pip install "mmtune\[trackers\]"'):
        mmtune.train(recipe(root, tmp_path / "run", {"trackers": ["wandb"]}), quiet=True)


def test_tensorboard_gets_metrics_and_pictures_once_also_after_a_resume(root, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    step = Trainer.step

    def killed(self, batch):
        if self.state.step == 3:
            raise KeyboardInterrupt
        return step(self, batch)

    config = recipe(root, tmp_path / "run", {"pictures": 3, "figures": True}, mining={"rounds": 1, "negatives": 2})
    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(config, quiet=True)
    monkeypatch.undo()
    mmtune.train(config, resume=True, quiet=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss", "lr", "val/metric", "val/text->image/map"} <= set(tags["scalars"])
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [e.step for e in events.Scalars("val/metric")] == [2, 4]
    assert {"retrieval/text->image/0", "retrieval/image->text/2"} <= set(tags["images"])
    assert any(t.startswith("mined/") for t in tags["images"])
    assert [e.step for e in events.Images("retrieval/text->image/0")] == [2, 4]
    figures = {"figures/loss/terms/0", "figures/scores/image-text/0", "figures/similarity/image-text/0"}
    assert figures <= set(tags["images"]) and any(t.startswith("figures/confusion/") for t in tags["images"])
    assert all([e.step for e in events.Images(tag)] == [2, 4] for tag in figures)


OFFLINE = """
import sys, mmtune
from tests.training.test_trackers import recipe
from pathlib import Path
root, out = Path(sys.argv[1]), Path(sys.argv[2])
mmtune.train(recipe(root, out, {"trackers": [sys.argv[3]], "pictures": 2, "figures": True, "project": "shop"}), quiet=True)
"""


def offline(root: Path, tmp_path: Path, tracker: str, code: str) -> str:
    """Train with a tracker in a process of its own, offline; returns what `code` prints about what the tracker kept."""
    places = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "TRACKIO_DIR": str(tmp_path)}
    places |= {
        "WANDB_SILENT": "true",
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "0",
    }
    environment = {**os.environ, **places, "PYTHONPATH": str(Path(__file__).parents[2])}
    for script, arguments in ((OFFLINE, [str(root), str(tmp_path / "run"), tracker]), (code, [str(tmp_path)])):
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=250)
        assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_mlflow_keeps_metrics_recipe_and_pictures(root, tmp_path):
    pytest.importorskip("mlflow")
    code = """
import mlflow
client = mlflow.MlflowClient()
experiment = client.get_experiment_by_name("shop")
run, = client.search_runs([experiment.experiment_id])
assert run.info.run_name == "run", run.info.run_name
assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4]
assert [m.step for m in client.get_metric_history(run.info.run_id, "val/text_to_image/map")] == [2, 4]
assert run.data.params["train.batch_size"] == "12" and run.data.params["train.optimizer.name"] == "adamw"
folders = ("retrieval/text_to_image/0", "figures/scores/image-text/0")
files = [f.path for folder in folders for f in client.list_artifacts(run.info.run_id, folder)]
print(sorted(files))
"""
    assert offline(root, tmp_path, "mlflow", code).count("step-0000002.png") == 2


@pytest.mark.slow
def test_wandb_keeps_metrics_recipe_and_pictures(root, tmp_path):
    pytest.importorskip("wandb")
    code = """
import glob, re, sys
from pathlib import Path
file, = glob.glob(sys.argv[1] + "/run/wandb/offline-run-*/*.wandb")
kept = Path(file).read_bytes()  # a log of protobuf records; keys and JSON values stand in it as they are
for key in (b"loss", b"grad_norm", b"val/text->image/map", b"retrieval/text->image", b"figures/loss/terms", b"figures/scores/image-text", b"train.batch_size", b"shop"):
    assert key in kept, key
assert len(re.findall(b"grad_norm", kept)) >= 4
print(len(glob.glob(sys.argv[1] + "/run/wandb/offline-run-*/files/media/**/retrieval/**/*.png", recursive=True)))
"""
    assert int(offline(root, tmp_path, "wandb", code)) == 2 * 2 * 2  # validations x directions x queries


@pytest.mark.slow
def test_trackio_keeps_metrics_and_recipe(root, tmp_path):
    pytest.importorskip("trackio")
    code = """
from trackio.sqlite_storage import SQLiteStorage
run, = SQLiteStorage.get_runs("shop")
rows = SQLiteStorage.get_logs("shop", run)
assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3, 4], rows
assert any("val/text->image/map" in r for r in rows) and any("retrieval/text->image/0" in r for r in rows)
assert any("figures/scores/image-text/0" in r for r in rows) and any("figures/loss/terms/0" in r for r in rows)
print(SQLiteStorage.get_run_config("shop", run)["train.batch_size"])
"""
    assert offline(root, tmp_path, "trackio", code).strip() == "12"
