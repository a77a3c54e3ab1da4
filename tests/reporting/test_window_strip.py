"""Strips below the players of long recordings: where in the recording is what was searched for."""

import csv
import io

import numpy as np
import pytest
import soundfile

import mmtune
from mmtune.data.pack.pack import pack
from mmtune.reporting import window_strip
from mmtune.reporting.examples import example_sections
from mmtune.reporting.measured import measure
from mmtune.reporting.subject import report_subject
from mmtune.reporting.window_strip import LocatedRows, opacities, strip

RATE = 8000
PITCHES = {"low": 220, "mid": 600, "high": 1500, "shrill": 3000}


def packed(root, name, rows, seconds):
    """Tones of 1.2 s at second 1, 2, 3 or 4 of noise; shorter sounds are tones alone."""
    rng = np.random.default_rng(0)
    (root / name).mkdir()
    with open(root / name / "rows.csv", "w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["id", "audio", "text", "group"])
        for i in range(rows):
            pitch, x = list(PITCHES)[i % 4], rng.normal(0, 0.02, int(seconds * RATE))
            at, length = ((1 + i % 4) * RATE, int(1.2 * RATE)) if seconds > 1.5 else (0, len(x))
            x[at : at + length] += 0.4 * np.sin(2 * np.pi * PITCHES[pitch] * np.arange(length) / RATE)
            soundfile.write(root / name / f"{i}.flac", x.astype(np.float32), RATE)
            table.writerow([f"{name}-{i:03d}", f"{i}.flac", f"a {pitch} tone, take {i}", pitch])
    pack(root / name / "rows.csv", root / f"packed-{name}")
    return str(root / f"packed-{name}")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("strips")
    train, long = packed(root, "train", 24, 1.0), packed(root, "long", 12, 6.0)
    mmtune.train(
        {
            "model": "tiny:clap",
            "data": {"train": train},
            "train": {"epochs": 8, "batch_size": 8, "lr": 1e-3, "precision": "fp32"},
            "run": {"dir": str(root / "run")},
        },
        quiet=True,
    )
    return str(root / "run" / "artifact"), train, long


def test_the_strips_of_a_report_are_the_cosines_of_windows(made, tmp_path):
    artifact, _, long = made
    measured = measure(report_subject(None, "tiny:clap", artifact, long, None))
    models = {"before": mmtune.load("tiny:clap"), "after": mmtune.load(artifact)}
    found = {"query": 0, "result": 0}
    for section in example_sections(measured, 4):
        for example in (*section.improved, *section.harmed):
            for side, results in example.results.items():
                model = models[side]
                query = model.encode(**{example.modality: [value(measured.data, example.row, example.modality)]})[0]
                for r in results:
                    assert (r.strip is not None) == (r.modality == "audio")
                    if r.strip is not None:
                        check(r.strip, model, measured.data, r.row, query)
                        found["result"] += 1
            assert (example.strip is not None) == (example.modality == "audio")
            right = next((r for r in example.results["after"] if r.relevant), None)
            if example.strip is not None and right is not None:
                target = models["after"].encode(**{right.modality: [value(measured.data, right.row, right.modality)]})[0]
                check(example.strip, models["after"], measured.data, example.row, target)
                found["query"] += 1
    assert min(found.values()) > 0
    mmtune.report(None, str(tmp_path / "r.html"), base="tiny:clap", candidate=artifact, data=long)
    html = (tmp_path / "r.html").read_text()
    assert "most like the query from" in html and "after: most like the first right result from" in html
    assert html.count('class="strip"') > 4 and html.count("<i style=") == 11 * html.count('class="strip"')


def value(data, row, modality):
    content = data.read(row, modality)
    return content.decode() if modality == "text" else content


def check(strip, model, data, row, vector):
    samples, rate = soundfile.read(io.BytesIO(data.read(row, "audio")), dtype="float32")
    starts = [w.start for w in strip.windows]
    assert starts == [0.5 * i for i in range(11)] and {w.seconds for w in strip.windows} == {1.0}
    windows = [(samples[int(s * rate) : int((s + 1) * rate)], rate) for s in starts]
    cosines = model.encode(audio=windows) @ vector
    assert [w.note for w in strip.windows] == [f"cosine {c:.2f}" for c in cosines]
    assert strip.peak == starts[int(np.argmax(cosines))]
    assert [w.opacity for w in strip.windows] == pytest.approx(opacities(cosines.tolist()), abs=1e-3)


def test_the_tuned_model_finds_the_tone_in_the_recording(made):
    artifact, _, long = made
    measured = measure(report_subject(None, "tiny:clap", artifact, long, None))
    model = mmtune.load(artifact)
    tones = {p: model.encode(text=[f"a {p} tone, take {i}" for i in range(4)]).mean(0) for p in PITCHES}
    right = 0
    for row in range(12):
        pitch = measured.data.groups[row]
        peak = measured.located.strip("after", "audio", row, tones[pitch]).peak
        right += abs(peak - (1 + list(PITCHES).index(pitch))) <= 0.5
    assert right >= 6  # by chance 3 of 11 windows


def test_values_that_are_no_longer_than_a_window_have_no_strip(made, monkeypatch):
    artifact, train, long = made
    model = mmtune.load(artifact)
    short = LocatedRows({"after": model}, mmtune.open_data(train))
    vector = np.eye(model.dim, dtype=np.float32)[0]
    assert short.strip("after", "audio", 0, vector) is None and short.strip("after", "text", 0, vector) is None
    monkeypatch.setattr(window_strip, "MAX_WINDOWS", 4)
    few = LocatedRows({"after": model}, mmtune.open_data(long)).strip("after", "audio", 0, vector)
    assert [w.start for w in few.windows] == [0.0, 1.5, 3.0, 5.0]
    assert strip([], 1.0, [], []) is None and opacities([2.0, 2.0]) == [0.05, 0.05]


@pytest.mark.parametrize("name", ["tiny:clap"])
def test_towers_state_the_length_of_their_window(name):
    preprocess = mmtune.load(name).towers["audio"].preprocess
    for seconds, windows in ((preprocess.window_seconds, 1), (preprocess.window_seconds + 0.1, 2)):
        sound = mmtune.modalities.get("audio").coerce((np.ones(round(seconds * 8000), np.float32), 8000))
        assert preprocess.windows(preprocess(sound)) == windows
