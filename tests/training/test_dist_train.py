"""Whole runs under torchrun and accelerate launch: the same recipe; processes are killed, interrupted and resumed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from tests.support import corpora
from tests.support.dist_runs import TORCHRUN, done, end, launch, lines, near, wait_for_step, weights

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("dist-train")


def recipe(root: Path, path: Path, **changes) -> Path:
    base = {
        "model": "tiny:clip",
        "data": {"train": corpora.packed(root), "val": corpora.packed(root, 12, 1)},
        "train": {"epochs": 3, "batch_size": 7, "lr": 1e-3, "precision": "fp32", "checkpoint_every": 2},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and key in base else value
    path.write_text(yaml.safe_dump(base))
    return path


def worker(launcher: subprocess.Popen, rank: int) -> psutil.Process:
    found = [p for p in psutil.Process(launcher.pid).children(recursive=True) if p.environ().get("RANK") == str(rank)]
    assert found
    return found[0]


@pytest.fixture(scope="module")
def whole(root) -> Path:
    """An uninterrupted run of two processes with augmented images."""
    path = recipe(root, root / "r.yaml", train={"epochs": 12}, augment={"image": {"flip": True}})
    done(launch(TORCHRUN, path, root / "whole"))
    return root / "whole"


def test_the_same_recipe_on_two_processes_logs_the_same_losses(root, tmp_path):
    """Batches of which a process may have no image; gradient caching; one log, one artifact."""
    sets = [corpora.packed(root, 6, 0), corpora.packed(root, 18, 3, ("audio", "text"))]
    path = recipe(
        root,
        tmp_path / "r.yaml",
        model="tiny:all",
        data={"train": sets},
        pairs=[["text", "image"], ["text", "audio"]],
        memory={"size": 16},
        train={"micro_batch_size": 2},
    )
    one = done(launch([sys.executable], path, tmp_path / "one"))
    two = done(launch(TORCHRUN, path, tmp_path / "two"))
    assert two["pairs"] == one["pairs"] == 3 * 24 and two["steps"] == one["steps"] == 12
    a, b = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [(r["step"], r["epoch"], "loss" in r) for r in a] == [(r["step"], r["epoch"], "loss" in r) for r in b]
    for x, y in zip(a, b, strict=True):
        for key in set(x) - {"pairs_per_second", "wait"}:
            assert y[key] == pytest.approx(x[key], rel=2e-4, abs=2e-5), (x["step"], key)
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1
    for direction, values in one["metrics"]["directions"].items():
        assert two["metrics"]["directions"][direction]["metrics"]["map"] == pytest.approx(values["metrics"]["map"], abs=0.05)


@pytest.mark.parametrize("rank", [1, 0])
def test_a_killed_process_is_restarted_and_the_result_is_the_same(root, whole, tmp_path, rank):
    run = tmp_path / "run"
    process = launch([*TORCHRUN, "--max-restarts", "2"], root / "r.yaml", run)
    wait_for_step(run, 11)
    worker(process, rank).send_signal(signal.SIGKILL)
    assert done(process)["steps"] == 48
    assert len(list((run / "tensorboard").iterdir())) == 2  # it did start again
    assert weights(run) == weights(whole)
    assert [r["step"] for r in lines(run)] == [r["step"] for r in lines(whole)]


def test_all_are_killed_and_resumed(root, whole, tmp_path):
    run = tmp_path / "run"
    process = launch(TORCHRUN, root / "r.yaml", run)
    wait_for_step(run, 17)
    end(process)
    done(launch(TORCHRUN, root / "r.yaml", run, "--resume"))
    assert weights(run) == weights(whole)


def test_ctrl_c_saves_the_same_step_everywhere(root, whole, tmp_path):
    run = tmp_path / "run"
    process = launch(TORCHRUN, root / "r.yaml", run)
    wait_for_step(run, 12)
    begin = len(lines(run))
    for p in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:  # as a terminal does
        p.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    place = json.loads((run / "checkpoints" / "last" / "trainer_state.json").read_text())
    assert place["step"] == max(r["step"] for r in lines(run) if "loss" in r) < 48 and begin > 10
    done(launch(TORCHRUN, root / "r.yaml", run, "--resume"))
    assert weights(run) == weights(whole)


def test_seeds_on_two_processes(root, tmp_path):
    """Rank 0 alone has the scores and writes them; the others must not write theirs over them."""
    path = recipe(root, tmp_path / "r.yaml", train={"epochs": 1})
    two = done(launch(TORCHRUN, path, tmp_path / "run", "--seeds", "2"))
    assert two["seeds"] == [0, 1] and {len(v) for v in two["scores"].values()} == {2} and "text->image map" in two["scores"]
    for i in range(2):
        stored = json.loads((tmp_path / "run" / f"seed-{i}" / "scores.json").read_text())
        assert stored == {k: v[i] for k, v in two["scores"].items()}


def test_mining_rounds_on_two_processes(root, tmp_path):
    """Rank 0 mines, both train on its table; the mined rows are those of one process."""
    import pyarrow.parquet as pq

    mining = {"rounds": 1, "negatives": 2, "use": {"negatives_per_query": 1, "confusable": 0.5}}
    path = recipe(root, tmp_path / "r.yaml", mining=mining, train={"epochs": 2})
    done(launch([sys.executable], path, tmp_path / "one"))
    done(launch(TORCHRUN, path, tmp_path / "two"))
    one, two = (pq.read_table(tmp_path / n / "mining" / "round-0.parquet").to_pandas() for n in ("one", "two"))
    assert len(one) and one["query_id"].tolist() == two["query_id"].tolist()
    assert np.mean(one["negative_id"] == two["negative_id"]) > 0.9  # near ties may fall the other way
    assert len([r for r in lines(tmp_path / "two") if "loss" in r]) == len([r for r in lines(tmp_path / "one") if "loss" in r])


@pytest.fixture(scope="module")
def cut(root) -> tuple[Path, Path]:
    """A recipe with blocks sharded among the processes, and an uninterrupted run of it: batches of which a process may have no
    image, gradient caching, weight EMA, L2-SP."""
    sets = [corpora.packed(root, 6, 0), corpora.packed(root, 18, 3, ("audio", "text"))]
    path = recipe(
        root,
        root / "cut.yaml",
        model="tiny:all",
        data={"train": sets},
        pairs=[["text", "image"], ["text", "audio"]],
        train={"micro_batch_size": 2, "shard": True, "ema": 0.9, "l2_start": 0.1, "epochs": 6},
    )
    done(launch(TORCHRUN, path, root / "cut"))
    return path, root / "cut"


def test_sharded_blocks_learn_the_weights_of_one_process(cut, tmp_path):
    path, run = cut
    done(launch([sys.executable], path, tmp_path / "one"))  # alone there is nothing to cut
    for x, y in zip(lines(tmp_path / "one"), lines(run), strict=True):
        for key in set(x) - {"pairs_per_second", "wait"}:
            assert y[key] == pytest.approx(x[key], rel=2e-3, abs=2e-4), (x["step"], key)
    near(run, tmp_path / "one", 2e-3)
    assert {p.name for p in run.iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}


def test_token_budgets_with_sharded_blocks(root, tmp_path):
    """The processes have unlike numbers of texts, and so of micro-batches, but must run each tower equally often."""
    path = recipe(root, tmp_path / "r.yaml", train={"micro_batch_tokens": {"text": 3}, "micro_batch_size": 2, "epochs": 2})
    one = done(launch([sys.executable], path, tmp_path / "one"))
    two = done(launch(TORCHRUN, path, tmp_path / "two", "train.shard=true"))
    assert two["steps"] == one["steps"] == 8
    for x, y in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert "loss" not in x or y["loss"] == pytest.approx(x["loss"], rel=1e-3), x["step"]
    near(tmp_path / "one", tmp_path / "two", 2e-3)


@pytest.mark.parametrize("count", [2, 1, 3])
def test_sharded_runs_resume_on_any_number_of_processes(cut, tmp_path, count):
    """The same number: bit for bit."""
    path, whole = cut
    process = launch(TORCHRUN, path, tmp_path / "run")
    wait_for_step(tmp_path / "run", 9)
    end(process)
    launcher = [sys.executable] if count == 1 else [*TORCHRUN[:-1], str(count)]
    done(launch(launcher, path, tmp_path / "run", f"train.shard={str(count > 1).lower()}", "--resume"))
    assert [r["step"] for r in lines(tmp_path / "run")] == [r["step"] for r in lines(whole)]
    if count == 2:
        assert weights(tmp_path / "run") == weights(whole)
    else:
        near(tmp_path / "run", whole, 2e-3)


def test_sharded_blocks_with_adapters_and_mining(root, tmp_path):
    """Adapters in sharded blocks; mining reads the unsharded model between epochs; what is written is unsharded."""
    mining = {"rounds": 1, "negatives": 2, "use": {"negatives_per_query": 1, "confusable": 0.5}}
    tuning = {"image": {"how": "lora", "rank": 1}, "text": "full"}
    path = recipe(root, tmp_path / "r.yaml", mining=mining, tune=tuning, train={"epochs": 2, "shard": True})
    one, two = done(launch([sys.executable], path, tmp_path / "one")), done(launch(TORCHRUN, path, tmp_path / "two"))
    assert two["trainable"] == one["trainable"] and (tmp_path / "two" / "adapters").exists()
    for x, y in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert "loss" not in x or y["loss"] == pytest.approx(x["loss"], rel=1e-3), x["step"]
    near(tmp_path / "one", tmp_path / "two", 2e-3)


def test_a_model_that_cannot_be_sharded_is_refused_in_one_line(root, tmp_path):
    path = recipe(root, tmp_path / "r.yaml", tune={"image": "frozen", "text": "qlora"}, train={"shard": True})
    process = launch(TORCHRUN, path, tmp_path / "run")
    _, err = process.communicate(timeout=240)
    assert process.returncode != 0 and "mmtune train: train.shard: 4-bit weights (qlora) cannot be sharded" in err


def test_a_frozen_tower_and_a_run_directory_in_use(root, tmp_path):
    """Stored features on two processes; an error on rank 0 ends all processes."""
    path = recipe(root, tmp_path / "r.yaml", tune={"image": "head", "text": "frozen"})
    assert done(launch(TORCHRUN, path, tmp_path / "run"))["trainable"]["image"]["how"] == "head"
    process = launch(TORCHRUN, path, tmp_path / "run", "train.metric=mapp")
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "add --resume" in err


def test_accelerate_launch(root, tmp_path):
    path = recipe(root, tmp_path / "r.yaml", train={"epochs": 1})
    one = done(launch([sys.executable], path, tmp_path / "one"))
    accelerate = str(Path(sys.executable).parent / "accelerate")
    multi = [accelerate, "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    multi += ["--dynamo_backend", "no", "--main_process_port", "0"]
    two = done(launch(multi, path, tmp_path / "two"))
    assert two["steps"] == one["steps"]
    losses = [[r["loss"] for r in lines(tmp_path / n) if "loss" in r] for n in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
