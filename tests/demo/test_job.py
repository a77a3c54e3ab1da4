"""`mmtune demo`: the whole chain for real, at a size that proves that it runs; the slow tier proves that it learns."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmtune.demo.job import CORPORA, METRICS, SMALL, DemoSize, demo, table
from mmtune.errors import DataError
from mmtune.runtime import files

# enough epochs that a kill falls into training
KILLED = dataclasses.replace(SMALL, base_epochs=6, tune_epochs=6)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return demo(tmp_path_factory.mktemp("demo") / "out", seed=5, size=SMALL, quiet=True).to_dict()


def test_document(small: dict) -> None:
    wanted = {"text->image", "image->text", "text->audio", "audio->text"}
    for when in ("before", "after"):
        assert wanted <= set(small[when])
        assert not {"image->audio", "audio->image"} & set(small[when])  # no row has both
        assert all(0 <= v <= 1 for metrics in small[when].values() for v in metrics.values())
    assert small["seed"] == 5 and small["seconds"] > 0 and json.loads(json.dumps(small)) == small


def test_base_and_tuned_are_two_artifacts_of_one_trainer(small: dict) -> None:
    import mmtune

    base, tuned = mmtune.load(small["base"]), mmtune.load(small["artifact"])
    assert base.fingerprint != tuned.fingerprint and tuned.info["base"] == small["base"]
    out = Path(small["out"])
    for corpus in CORPORA:
        trained = {(r["id"]) for r in _rows(out / "data" / corpus / "train")}
        held = {(r["id"]) for r in _rows(out / "data" / corpus / "val")}
        assert trained and held and not trained & held
    assert (
        '"val"' not in (out / "tuned" / "recipe.yaml").read_text() and "/val" not in (out / "tuned" / "recipe.yaml").read_text()
    )


def _rows(data: Path) -> list[dict]:
    import mmtune

    return [{"id": i} for i in mmtune.open_data(str(data)).ids]


def test_pictures_and_page(small: dict) -> None:
    from PIL import Image

    page = Path(small["page"])
    assert page.name == "index.html" and "<audio controls" in page.read_text()
    sheets = sorted(page.parent.glob("search-*.png"))
    with Image.open(page.parent / "before_after.png") as picture:
        assert picture.size[0] > 700
    assert len(sheets) == 4 and all(Image.open(p).size[0] > 700 for p in sheets)


def test_the_search_was_cut_over_and_back(small: dict) -> None:
    """The story's own telling, the page, and the collection that it leaves, agree."""
    import mmtune

    told, page = small["release"], Path(small["page"]).read_text()
    with mmtune.Collection(told["collection"]) as shop:
        events = [(x["what"], x["version"]) for x in shop.journal() if x["what"] in ("promote", "rollback")]
        assert events == [("promote", "v1"), ("promote", "v2"), ("rollback", "v1"), ("promote", "v2")]
        assert shop.live == told["live"] == "v2"
        models = [shop.layout.record(v)["fingerprint"] for v in ("v1", "v2")]
        assert models == [mmtune.load(small[k]).fingerprint for k in ("base", "artifact")]
        rows = mmtune.open_data(str(Path(small["out"]) / "data" / "catalog" / "val"))
        for a in told["answers"]:
            for v in ("v1", "v2"):
                assert shop.search(text=rows.read(a["query"], "text").decode(), k=5, version=v).ids == a[v]
    assert told["forced"] == (told["verdict"] != "pass") and f"verdict: <b>{told['verdict']}</b>" in page
    assert page.count("<em>v1</em>") == page.count("<em>v2</em>") == len(told["answers"]) > 0
    assert page.count("<li><code>mmtune index ") == len(told["steps"]) and "to see that it works" in page
    shown = table(demo(small["out"], seed=5, size=SMALL, quiet=True))
    assert "rolled back to v1 in" in shown and f"mmtune index search {told['collection']}" in shown


def test_a_second_call_reads_everything_back(small: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {p: p.stat().st_mtime_ns for p in Path(small["out"]).rglob("*.safetensors")}
    monkeypatch.setattr("mmtune.training.loop.Trainer.step", lambda *_: pytest.fail("it trains again"))
    assert demo(small["out"], seed=5, size=SMALL, quiet=True).to_dict() == small
    assert files and {p: p.stat().st_mtime_ns for p in Path(small["out"]).rglob("*.safetensors")} == files


def test_another_demo_in_the_same_folder_is_refused(small: dict, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="seed=5"):
        demo(small["out"], seed=6, size=SMALL, quiet=True)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        demo(tmp_path, size=SMALL, quiet=True)


def test_table_shows_before_and_after(small: dict) -> None:
    shown = table(demo(small["out"], seed=5, size=SMALL, quiet=True))
    for name, metrics in small["after"].items():
        line = next(x for x in shown.splitlines() if f" {name} " in x)
        assert f"{small['before'][name]['mrr']:.3f} -> {metrics['mrr']:.3f}" in line
    assert small["page"] in shown and all(m in shown for m in METRICS)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_numbers(tmp_path: Path) -> None:
    """SIGKILL again and again, each time a little later, in every stage; then compared with a run that nobody disturbed."""
    code = f"import sys; from mmtune.demo.job import *; print(json.dumps(demo(sys.argv[1], seed=2, size={KILLED!r}).to_dict()))"
    calm = json.loads(
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "calm")], capture_output=True, check=True).stdout
    )
    kills, patience = 0, 3.0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "hunted")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=patience)
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills, patience = kills + 1, patience + 0.7
    assert process.returncode == 0, err
    hunted = json.loads(out)
    assert kills >= 3
    assert (hunted["before"], hunted["after"]) == (calm["before"], calm["after"])
    a, b = (files.read_json(Path(d["artifact"]) / "mmtune.json")["fingerprint"] for d in (calm, hunted))
    assert a == b


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_keeps_its_promise(tmp_path: Path) -> None:
    """The command itself, full size: large and real gains in every direction between two modalities."""
    code = "import sys; from mmtune.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "demo", "--json", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert "[9/9]" in done.stderr
    for m in CORPORA.values():
        for d in (f"text->{m}", f"{m}->text"):
            before, after = document["before"][d]["hit@1"], document["after"][d]["hit@1"]
            assert before < 0.35 and after > 0.8, (d, before, after)
    assert DemoSize() == DemoSize(**{k: v for k, v in files.read_json(tmp_path / "out" / "demo.json").items() if k != "seed"})
