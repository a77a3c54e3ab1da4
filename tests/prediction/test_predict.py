"""Predictions against the evaluation of the same task, plain loops and sampled false alarms; files, folders, artifacts, watching."""

import json
import shutil
import threading

import numpy as np
import pytest
import soundfile

import mmtune
from mmtune.cli.dispatch import dispatch
from mmtune.data.shards.dataset import open_data
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError, DataWarning, ModelError, RecipeError
from mmtune.prediction.alarm_threshold import alarm_threshold
from mmtune.prediction.fit_predictors import PredictorOptions
from mmtune.prediction.predict import prepare
from mmtune.prediction.prediction_result import LocatedWindow, Prediction, Predictions
from mmtune.prediction.watch_folder import watch
from mmtune.reporting.prediction_page import write_prediction_page
from tests.support import corpora

COLUMNS = ("audio", "text")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    mmtune.load("tiny:clap").save(root / "artifact")
    return root


@pytest.fixture(scope="module")
def reference(root):
    return corpora.packed(root, 24, 0, COLUMNS)


@pytest.fixture(scope="module")
def files(root):
    """A folder of 12 sounds, and a broken one and a table."""
    table = corpora.source(root / "new", 12, 1, COLUMNS)
    (root / "new" / "broken.flac").write_bytes(b"no sound")
    return table.parent


def run_predict(capsys, *argv):
    status = dispatch("predict", [*map(str, argv), "--quiet", "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out) if status == 0 else err.strip(), err


def test_knn_predictions_are_those_that_the_evaluation_scores(root, reference):
    val = corpora.packed(root, 12, 1, COLUMNS)
    evaluated = mmtune.evaluate("tiny:clap", val, task="knn", reference=reference, label="shade").results["audio"]
    done = mmtune.predict("tiny:clap", val, reference=reference, label="shade")
    data, train = open_data(val), open_data(reference)
    truth = dict(zip(data.ids, data.column("shade"), strict=True))
    confusion = np.zeros((2, 2), int)
    for p in done.predictions:
        confusion[evaluated.classes.index(truth[p.file]), evaluated.classes.index(p.predicted_class)] += 1
    assert confusion.tolist() == evaluated.confusion.tolist() and len(done.predictions) == 12

    model = mmtune.load("tiny:clap")
    new, known = embed_data(model, data, ["audio"])["audio"], embed_data(model, train, ["audio"])["audio"]
    shade = dict(zip(train.ids, train.column("shade"), strict=True))
    for i, p in enumerate(done.predictions):
        cosines = {r: float(new.vectors[i].astype(float) @ v) for r, v in zip(known.ids, known.vectors, strict=True)}
        near = sorted(cosines, key=lambda r: -cosines[r])[:5]
        weight = {r: np.exp(cosines[r] / 0.07) for r in near}
        assert p.nearest == near and p.file == new.ids[i]
        assert p.cosines == pytest.approx([cosines[r] for r in near], abs=1e-6)
        same = sum(w for r, w in weight.items() if shade[r] == p.predicted_class)
        assert p.score == pytest.approx(same / sum(weight.values()), rel=1e-4)
        assert p.anomaly_score == pytest.approx(1 - max(cosines.values()), abs=1e-6)


def test_zero_shot_and_anomaly_predictions_are_those_of_the_evaluation(root, reference):
    val = corpora.packed(root, 12, 1, COLUMNS)
    evaluated = mmtune.evaluate("tiny:clap", val, task="zero_shot", label="group", prompts=["a {} square"])
    done = mmtune.predict("tiny:clap", val, task="zero_shot", classes=list(corpora.COLOURS), prompts=["a {} square"])
    truth = dict(zip(open_data(val).ids, open_data(val).groups, strict=True))
    right = np.mean([truth[p.file] == p.predicted_class for p in done.predictions])
    assert right == pytest.approx(evaluated.metric("accuracy"))
    assert all(p.nearest[0] == p.predicted_class and 1 / 6 <= p.score <= 1 for p in done.predictions)

    scores = (
        mmtune.evaluate("tiny:clap", val, task="anomaly", normal="shade=light", reference=reference).results["audio"].scores
    )
    done = mmtune.predict("tiny:clap", val, task="anomaly", normal="shade=light", reference=reference)
    assert {p.file: p.score for p in done.predictions} == pytest.approx(scores, abs=1e-9)


def test_the_stated_false_alarm_rate_and_interval_are_those_of_new_normal_items():
    """Over many draws of 50 normal scores, the rate among new ones has the stated mean and lies in the interval 95% of the time."""
    rng = np.random.default_rng(0)
    rates, inside = [], 0
    for _ in range(2000):
        t = alarm_threshold(rng.normal(size=50), 0.1)
        rates.append(float((rng.normal(size=2000) > t.value).mean()))
        inside += t.interval[0] - 0.005 <= rates[-1] <= t.interval[1] + 0.005
    assert t.false_alarm_rate == pytest.approx(5 / 51) and np.mean(rates) == pytest.approx(5 / 51, abs=0.003)
    assert 0.94 < inside / 2000 < 0.975
    auto = alarm_threshold(np.arange(50.0))
    assert auto.value == 49 and auto.false_alarm_rate == pytest.approx(1 / 51)
    assert alarm_threshold(np.arange(999.0)).value == 989 and alarm_threshold(np.arange(99.0), "0.01fpr").value == 98
    few = alarm_threshold(np.arange(50.0), 0.1, clusters=5)
    assert few.interval[1] > t.interval[1] and few.value == t.value * 0 + 45
    with pytest.raises(DataError, match="needs at least 99 normal references, there are 50; .* is 0.0196"):
        alarm_threshold(np.arange(50.0), "0.01fpr")
    with pytest.raises(RecipeError, match='write "auto"'):
        alarm_threshold(np.arange(50.0), "often")


def test_files_with_a_broken_one(files, reference, capsys, tmp_path):
    sounds = sorted(files.glob("*.flac"))
    page = tmp_path / "page.html"
    argv = ["tiny:clap", *sounds, "--task", "knn", "--reference", reference, "--label", "shade", "--out", page]
    status, document, err = run_predict(capsys, *argv)
    assert status == 0 and document["counts"] == {"inputs": 13, "predicted": 12, "errors": 1, "ignored": 0}
    assert [p["file"] for p in document["predictions"]] == [str(s) for s in sounds if s.stem != "broken"]
    assert {"file", "class", "score", "nearest"} <= set(document["predictions"][0])
    assert err.count("broken.flac") == 1 and err.count("\n") == 1
    html = page.read_text()
    assert html.count("<audio") >= 12 and "broken.flac" in html and "http" not in html.replace("http://www.w3.org", "")

    status, document, _ = run_predict(capsys, "tiny:clap", files, *argv[14:-2])
    assert status == 0 and document["counts"] == {"inputs": 13, "predicted": 12, "errors": 1, "ignored": 1}
    status, line, _ = run_predict(capsys, "tiny:clap", files / "broken.flac", files / "rows.csv", *argv[14:-2])
    assert status == 2 and line.endswith("none of the 2 inputs can be decoded")


def test_values_in_memory_and_the_method(reference):
    model = mmtune.load("tiny:clap")
    wave = (np.sin(np.arange(8000) / 5).astype(np.float32), 8000)
    done = model.predict([wave, wave], reference=reference)
    assert [p.file for p in done.predictions] == ["0", "1"] and done.predictions[0].nearest == done.predictions[1].nearest
    assert list(done.to_pandas()["class"]) == [done.predictions[0].predicted_class] * 2


def test_the_printed_rows_begin_with_the_alarms():
    """Of 40 files the first 20 were printed, and no line said that the last two were alarms."""
    threshold = alarm_threshold(np.arange(50.0), 0.1)
    made = [Prediction(f"f{i:02d}", "audio", None, float(i), [], [], float(i), i >= 38) for i in range(40)]
    done = Predictions("anomaly", "mark", made, thresholds={"audio": threshold})
    lines = [line for line in str(done).splitlines() if line.strip()[:2] in ("f0", "f3")]
    assert lines[0].split()[0] == "f38" and lines[1].split()[0] == "f39" and lines[2].split()[0] == "f00"
    assert "40 predicted, 2 of them alarms, 0 cannot be decoded" in str(done) and [p.file for p in done.predictions][0] == "f00"


def test_a_predictor_is_stored_in_the_artifact(root, reference, files, capsys):
    artifact = str(shutil.copytree(root / "artifact", root / "stored"))
    common = [artifact, files, "--task", "anomaly"]
    status, line, _ = run_predict(capsys, *common)
    assert status == 2 and "give reference data" in line
    given = run_predict(capsys, *common, "--reference", reference, "--normal", "shade=light", "--threshold", "auto", "--save")[
        1
    ]
    stored = run_predict(capsys, *common)[1]
    assert stored == given and stored["thresholds"]["audio"]["normal"] == 12
    assert stored["thresholds"]["audio"]["anomalous"] == 12 and stored["thresholds"]["audio"]["false_alarm_rate"] == 1 / 13
    assert all(p["alarm"] == (p["score"] > stored["thresholds"]["audio"]["value"]) for p in stored["predictions"])
    assert stored["counts"]["alarms"] == sum(p["alarm"] for p in stored["predictions"])
    with pytest.raises(ModelError, match="belongs to the model"):
        mmtune.predict(mmtune.load(artifact, dim=8), str(files), task="anomaly")
    with pytest.raises(ModelError, match="is no artifact"):
        mmtune.predict("tiny:clap", str(files), reference=reference, save=True)
    mmtune.load(artifact).save(artifact)  # replaces the artifact, with what is stored in it
    artifact = str(shutil.copytree(root / "artifact", root / "stored again"))
    common = [artifact, files, "--task", "anomaly"]
    run_predict(capsys, *common, "--reference", reference, "--save")
    for option in (("--neighbours", "2"), ("--exclude-same", "recording"), ("--normal", "shade=dark"), ("--label", "shade")):
        status, line, _ = run_predict(capsys, *common, *option)
        assert status == 2 and f"{option[0][2:].replace('-', '_')}: needs the reference data" in line


def test_class_names_come_from_a_file_too(files, tmp_path, capsys):
    names = ["Granny Smith, Apple", "red"]
    (tmp_path / "names.txt").write_text("\n".join([*names, "", ""]))
    common = ["tiny:clap", files, "--task", "zero_shot", "--classes"]
    found = run_predict(capsys, *common, f"@{tmp_path / 'names.txt'}")[1]["predictions"]
    assert found and all(sorted(p["nearest"]) == sorted(names) for p in found)
    status, line, _ = run_predict(capsys, *common, "@nowhere.txt")
    assert status == 2 and "--classes @nowhere.txt" in line and "one class name a line" in line


def test_each_machine_has_a_stored_predictor(root, reference, files):
    artifact = str(shutil.copytree(root / "artifact", root / "machines"))
    usual = {"task": "anomaly", "reference": reference, "save": True}
    given = {v: mmtune.predict(artifact, str(files), machine=f"shade={v}", **usual) for v in ("light", "dark")}
    assert given["light"].predictions != given["dark"].predictions
    for value, expected in given.items():
        stored = mmtune.predict(artifact, str(files), task="anomaly", machine=f"shade={value}")
        assert stored.predictions == expected.predictions
    with pytest.raises(RecipeError, match="reference"):
        mmtune.predict(artifact, str(files), task="anomaly", machine="shade=grey")


def test_the_window_that_stands_out_is_not_certain_background():
    classes = [("hum", 0.99), ("hum", 0.97), ("click", 0.6), ("hum", 0.98), ("click", 0.4)]
    windows = tuple(LocatedWindow(float(i), 1.0, c, s) for i, (c, s) in enumerate(classes))
    located = Prediction("a.wav", "audio", "hum", 0.9, [], [], windows=windows)
    assert located.peak.start == 2.0 and located.strengths == [0.0, 0.0, 0.6, 0.0, 0.4]
    alone = tuple(LocatedWindow(float(i), 1.0, "hum", s) for i, s in enumerate((0.5, 0.9, 0.7)))
    assert Prediction("a.wav", "audio", "hum", 0.9, [], [], windows=alone).peak.start == 1.0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--task", "sorting"], "unknown task 'sorting'"),
        (["--task", "zero_shot"], "name at least two classes"),
        (["--task", "zero_shot", "--classes", "a,b", "--threshold", "auto"], "zero_shot has no anomaly score"),
        (["--task", "knn", "--classes", "a,b"], "classes: knn takes its classes from the reference data"),
        (["--reference", "REF", "--threshold", "0.001fpr"], "needs at least 999 normal references, there are 24"),
        (["--reference", "REF", "--label", "weight"], "weight"),
        (["--reference", "REF", "--out", "page.txt"], "ends in .html or .json"),
        (["--reference", "REF", "--watch"], "--out FILE.jsonl"),
        (["--reference", "REF", "--only", "smell"], "this model has no smell tower"),
        (["--reference", "REF", "--scorer", "gmm"], "scorer: is an option of task anomaly, not of knn"),
        (["--reference", "REF", "--task", "anomaly", "--scorer", "gmmm"], "scorer: unknown 'gmmm'; there are: nearest, maha"),
        (["--reference", "REF", "--task", "anomaly", "--balance", "smote"], "balance: name the metadata column of the domains"),
        (
            ["--reference", "REF", "--task", "anomaly", "--known-anomalies"],
            "known_anomalies: state which references are normal",
        ),
    ],
)
def test_bad_input_is_one_line(files, reference, capsys, argv, message):
    status, line, _ = run_predict(capsys, "tiny:clap", files, *[reference if a == "REF" else a for a in argv])
    assert status == 2 and message in line and "\n" not in line


def test_watching_answers_each_file_once_also_after_a_kill(root, reference, files, tmp_path):
    model = mmtune.load("tiny:clap")
    predictors = prepare(model, "knn", reference, ["audio"], PredictorOptions(label="shade"))
    inbox, out = tmp_path / "inbox", tmp_path / "answers.jsonl"
    inbox.mkdir()

    def looks(n):
        left = iter(range(n - 1))
        return {"interval": 0.01, "stop": lambda: next(left, None) is None}

    for i in range(4):
        shutil.copy(files / f"{i}.flac", inbox)
    first = watch(model, predictors, inbox, out, **looks(3))
    assert [next(first)["file"], next(first)["file"]] == ["0.flac", "1.flac"]
    first.close()  # killed between two answers
    with open(out, "ab") as f:
        f.write(b'{"file": "2.fl')  # and in the middle of the third
    shutil.copy(files / "broken.flac", inbox)
    assert [a["file"] for a in watch(model, predictors, inbox, out, **looks(3))] == ["2.flac", "3.flac", "broken.flac"]
    assert not list(watch(model, predictors, inbox, out, **looks(3)))
    shutil.copy(files / "5.flac", inbox / "0.flac")  # another sound of the same name
    assert [a["file"] for a in watch(model, predictors, inbox, out, **looks(3))] == ["0.flac"]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [x["file"] for x in lines] == ["0.flac", "1.flac", "2.flac", "3.flac", "broken.flac", "0.flac"]
    assert (
        "error" in lines[4]
        and lines[1]["nearest"]
        == mmtune.predict(model, str(files / "1.flac"), reference=reference, label="shade").predictions[0].nearest
    )

    assert all(x["task"] == "knn" and x["fingerprint"] == model.fingerprint for x in lines)
    changed = mmtune.load("tiny:clap@3")
    others = prepare(changed, "knn", reference, ["audio"], PredictorOptions(label="shade"))
    with pytest.raises(DataError, match="has answers of another model .*another --out"):
        list(watch(changed, others, inbox, out, **looks(1)))
    others = prepare(model, "anomaly", reference, ["audio"], PredictorOptions(threshold="auto"))
    with pytest.raises(DataError, match=r"has answers of another task \(knn\)"):
        list(watch(model, others, inbox, out, **looks(1)))
    (answer, *_) = watch(model, others, inbox, tmp_path / "alarms.jsonl", **looks(2))
    assert answer["threshold"] == others["audio"].threshold.value and answer["task"] == "anomaly"

    holding, free = threading.Event(), threading.Event()

    def stop():
        holding.set()
        return free.wait(10)

    other = threading.Thread(target=lambda: list(watch(model, predictors, inbox, out, interval=0.01, stop=stop)))
    other.start()
    assert holding.wait(10)
    with pytest.raises(DataError, match="another process is writing"):
        list(watch(model, predictors, inbox, out, **looks(1)))
    free.set()
    other.join()


def test_windows_say_where_in_a_recording_the_event_is(root, tmp_path, capsys):
    """A burst of noise at 2.0 to 2.5 s of a tone; references are clips of the tone."""
    rate, rng = 16_000, np.random.default_rng(0)
    time = np.arange(4 * rate) / rate
    tone = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    burst = tone.copy()
    burst[2 * rate : 2 * rate + rate // 2] = rng.uniform(-0.9, 0.9, rate // 2)
    for folder in ("normal", "new"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        soundfile.write(tmp_path / "normal" / f"{i}.wav", tone[100 * i : 100 * i + rate // 2], rate)
    soundfile.write(tmp_path / "new" / "a.wav", burst, rate)
    soundfile.write(tmp_path / "new" / "short.wav", tone[: rate // 4], rate)
    rows = [{"audio": str(p), "machine": "fan", "label": "ok"} for p in sorted((tmp_path / "normal").iterdir())]
    page, options = tmp_path / "p.html", {"task": "anomaly", "reference": rows, "machine": "machine=fan", "locate": 0.5}
    done = mmtune.predict("tiny:clap", [str(tmp_path / "new")], **options)
    located, short = done.predictions
    assert [w.start for w in located.windows] == [0.25 * i for i in range(14)] + [3.5] and not short.windows
    assert located.peak.start in (1.75, 2.0, 2.25) and located.to_dict()["windows"][8]["start"] == 2.0
    calm = [w.score for w in located.windows if w.start + 0.5 <= 2.0 or w.start >= 2.5]
    assert max(calm) < located.peak.score
    write_prediction_page(done, [str(tmp_path / "new")], None, mmtune.load("tiny:clap"), None, page)
    assert page.read_text().count("<i style=") == 15 and "highest score from" in page.read_text()
    assert "highest at" in str(done)
    for bad, message in (
        ({"locate": 0.0}, "is not a length of windows"),
        ({"machine": "machine=fn"}, "no row has machine=fn; there are: fan"),
    ):
        with pytest.raises((RecipeError, DataError), match=message):
            mmtune.predict("tiny:clap", [str(tmp_path / "new")], **{**options, **bad})


def test_more_neighbours_than_references_are_said(reference, files, tmp_path):
    with pytest.warns(DataWarning, match="neighbours: there are 24 references for 100 neighbours"):
        mmtune.predict("tiny:clap", str(files / "1.flac"), reference=reference, label="shade", neighbours=100)
    val = corpora.packed(tmp_path, 12, 1, COLUMNS)
    with pytest.warns(DataWarning, match="24 references for 25 neighbours"):
        mmtune.evaluate("tiny:clap", val, task="knn", reference=reference, label="shade", neighbours=25)
