"""Zero-shot, nearest neighbours and anomalies: against scikit-learn and plain loops, and through the real verb."""

import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import mmtune
from mmtune.cli.dispatch import dispatch
from mmtune.contracts import Embeddings
from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.demo.machines import write_machines
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError, MmtuneError
from mmtune.evaluation.group_pooling import pool_groups
from mmtune.evaluation.tasks.anomaly import AnomalyScoring, detect, distances
from mmtune.evaluation.tasks.classify import classifications
from mmtune.evaluation.tasks.knn import TEMPERATURE, classify_among_themselves, classify_by_reference, nearest
from mmtune.evaluation.tasks.roc import auroc, partial_auroc
from mmtune.evaluation.tasks.zero_shot import zero_shot
from mmtune.model import artifact
from tests.support import corpora


def units(rng, n, d=6):
    z = rng.normal(size=(n, d)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def embedded(z, groups=None, name="audio", start=0):
    n = len(z)
    labels = {name: np.arange(1 + start, n + 1 + start)}
    return Embeddings([f"r{start + i:03d}" for i in range(n)], groups or [None] * n, labels, z)


# --- areas under the curve -----------------------------------------------------------------------------------------------


def slow_partial(score, positive, max_fpr):
    """The curve drawn point by point in tiny steps of the false positive rate, each threshold tried."""
    points = {(0.0, 0.0)}
    for t in sorted(set(score)):
        predicted = score >= t
        points.add(
            (float((predicted & ~positive).sum() / (~positive).sum()), float((predicted & positive).sum() / positive.sum()))
        )
    points = sorted(points)
    area = 0.0
    for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
        if x0 >= max_fpr:
            break
        end = min(x1, max_fpr)
        y = y1 if x1 == x0 else y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y) / 2
    low, high = max_fpr**2 / 2, max_fpr
    return 0.5 * (1 + (area - low) / (high - low))


def test_areas_equal_scikit_learn_and_plain_loops():
    rng = np.random.default_rng(0)
    for _ in range(60):
        n = int(rng.integers(4, 60))
        score = rng.integers(0, int(rng.integers(2, 40)), n).astype(float)  # ties
        positive = rng.random(n) < 0.5
        positive[:2] = [True, False]
        wins = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
        assert auroc(score, positive) == pytest.approx(np.mean(wins), abs=1e-12)
        for top in (0.1, 0.3):
            assert partial_auroc(score, positive, top) == pytest.approx(slow_partial(score, positive, top), abs=1e-12)
        assert auroc(score, positive) == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
        assert partial_auroc(score, positive) == pytest.approx(roc_auc_score(positive, score, max_fpr=0.1), abs=1e-12)
    with pytest.raises(DataError, match="needs positives and negatives: 3 of 3"):
        auroc(np.arange(3.0), np.ones(3, bool))


# --- neighbours ----------------------------------------------------------------------------------------------------------


def test_neighbours_of_a_reference_equal_scikit_learn_and_plain_loops():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        reference, queries = units(rng, 50), units(rng, 30)
        names = [f"c{rng.integers(4)}" for _ in range(50)]
        predicted = classify_by_reference(queries, reference, names, 5)
        for q, predicted_class in zip(queries, predicted, strict=True):
            near = sorted(range(50), key=lambda i: -float(q.astype(float) @ reference[i]))[:5]
            votes: dict[str, float] = {}
            for i in near:
                votes[names[i]] = votes.get(names[i], 0) + np.exp(float(q.astype(float) @ reference[i]) / TEMPERATURE)
            assert predicted_class == max(votes, key=votes.__getitem__)
        sklearn = pytest.importorskip("sklearn.neighbors")
        classifier = sklearn.KNeighborsClassifier(5, metric="cosine", weights=lambda d: np.exp((1 - d) / TEMPERATURE))
        assert classifier.fit(reference, names).predict(queries).tolist() == predicted


def test_excluded_neighbours_are_never_returned():
    rng = np.random.default_rng(3)
    z, label = units(rng, 40), rng.integers(0, 6, 40)
    score, index = nearest(z, z, 7, (label, label))
    for i in range(40):
        allowed = [j for j in range(40) if label[j] != label[i] or label[i] == 0]
        best = sorted(allowed, key=lambda j: -float(z[i].astype(float) @ z[j]))[:7]
        assert index[i].tolist() == best and np.isfinite(score[i]).all()
    score, index = nearest(z[:3], z[:3], 2, (np.ones(3, int), np.ones(3, int)))
    assert (index == -1).all() and (score == -np.inf).all()


def test_clips_of_one_recording_do_not_vote_for_each_other():
    rng = np.random.default_rng(1)
    centre = units(rng, 12)
    z = np.repeat(centre, 3, 0) + 0.01 * rng.normal(size=(36, 6)).astype(np.float32)  # three clips of each of 12 recordings
    e = embedded(z / np.linalg.norm(z, axis=1, keepdims=True), [f"c{rng.integers(2)}" for _ in range(36)])
    e.groups[:] = [g for i in range(12) for g in [f"c{i % 2}"] * 3]
    recording = {r: f"rec{i // 3}" for i, r in enumerate(e.ids)}
    assert classify_among_themselves({"audio": e}, "audio", 1).accuracy == 1.0  # it hears its own recording again
    classified = classify_among_themselves({"audio": e}, "audio", 1, recording)
    correct = 0
    for i in range(36):
        others = [j for j in range(36) if j // 3 != i // 3]
        correct += e.groups[max(others, key=lambda j: float(e.vectors[i].astype(float) @ e.vectors[j]))] == e.groups[i]
    assert classified.accuracy == pytest.approx(correct / 36) and classified.accuracy < 1


# --- anomalies -----------------------------------------------------------------------------------------------------------


def test_anomaly_scores_equal_plain_loops():
    rng = np.random.default_rng(2)
    e = embedded(units(rng, 40))
    normal = {r: bool(rng.random() < 0.6) for r in e.ids}
    machine = {r: f"m{i % 2}" for i, r in enumerate(e.ids)}
    recording = {r: f"rec{i // 4}" for i, r in enumerate(e.ids)}
    part = {"loud": frozenset(e.ids[::2])}
    anomalies = detect("audio", e, normal, machine, source=recording, parts=part, scoring=AnomalyScoring(2))
    for i, row in enumerate(e.ids):
        refs = [
            j
            for j, other in enumerate(e.ids)
            if normal[other] and machine[other] == machine[row] and recording[other] != recording[row]
        ]
        near = sorted(1 - float(e.vectors[i].astype(float) @ e.vectors[j]) for j in refs)[:2]
        assert anomalies.scores[row] == pytest.approx(np.mean(near), abs=1e-6)
    for m, d in anomalies.machines.items():
        rows = [r for r in e.ids if machine[r] == m]
        score, anomalous = np.array([anomalies.scores[r] for r in rows]), np.array([not normal[r] for r in rows])
        assert d.auroc == pytest.approx(auroc(score, anomalous)) and d.partial_auroc == pytest.approx(
            partial_auroc(score, anomalous)
        )
        assert (d.normal, d.anomalous) == (int((~anomalous).sum()), int(anomalous.sum()))
    assert anomalies.mean.auroc == pytest.approx(np.mean([d.auroc for d in anomalies.machines.values()]))
    reference = embedded(units(rng, 10), start=100)
    reference_machine = {r: "m0" if i < 5 else "m1" for i, r in enumerate(reference.ids)}
    other = detect("audio", e, normal, machine, reference=reference, reference_machine=reference_machine)
    for i, row in enumerate(e.ids):
        references = reference.vectors[:5] if machine[row] == "m0" else reference.vectors[5:]
        assert other.scores[row] == pytest.approx(1 - float((references.astype(float) @ e.vectors[i]).max()), abs=1e-6)
    assert np.isnan(distances(e, e, 1, (np.ones(40, int), np.ones(40, int)))).all()


# --- the verb ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    root = tmp_path_factory.mktemp("machines")
    write_machines(root / "source", machines=2, train_recordings=1, val_recordings=1, clips=2, base_recordings=1)
    for split in ("train", "val"):
        pack(root / "source" / f"{split}.csv", root / split)
    return root


def run_eval(capsys, *argv):
    status = dispatch("eval", [*map(str, argv), "--quiet", "--json"])
    out = capsys.readouterr()
    return status, json.loads(out.out) if status == 0 else out.err


def test_zero_shot_classes_by_their_names(machines, capsys):
    status, document = run_eval(
        capsys,
        "tiny:clap",
        machines / "val",
        "--task",
        "zero_shot",
        "--label",
        "category",
        "--prompt",
        "a {}",
        "--prompt",
        "sound of a {}",
    )
    assert status == 0 and document["settings"]["prompts"] == ["a {}", "sound of a {}"]
    scores = document["results"]["audio"]
    model, data = mmtune.load("tiny:clap"), open_data(str(machines / "val"))
    names = sorted(set(data.column("category")))
    heads = {}
    for c in names:
        mean = model.encode(text=[f"a {c}", f"sound of a {c}"]).mean(0)
        heads[c] = mean / np.linalg.norm(mean)
    from mmtune.embedding.embed_rows import embed_data

    z = embed_data(model, data, ["audio"])["audio"].vectors
    guess = [max(names, key=lambda c, v=v: float(v @ heads[c])) for v in z]
    truth = data.column("category")
    assert scores["accuracy"] == pytest.approx(np.mean([g == t for g, t in zip(guess, truth, strict=True)]))
    metrics = pytest.importorskip("sklearn.metrics")
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(truth, guess, average="macro"))
    assert scores["confusion"] == metrics.confusion_matrix(truth, guess, labels=scores["classes"]).tolist()


def test_a_class_is_called_what_a_column_says(tmp_path):
    data = corpora.packed(tmp_path, 12, 0)
    plain = mmtune.evaluate("tiny:clip", data, task="zero_shot", class_names="text", prompts=["{}"])
    colours = {c: [f"a {c} square"] for c in corpora.COLOURS}
    from mmtune.evaluation.tasks.zero_shot import class_vectors

    model = mmtune.load("tiny:clip")
    want = {c: model.encode(text=names[0]) for c, names in colours.items()}
    got = class_vectors(model, colours, ["{}"])
    for c, z in zip(got.groups, got.vectors, strict=True):
        np.testing.assert_allclose(z, want[c], atol=1e-6)
    (by_hand,) = classifications({m: e for m, e in embed_data(model, open_data(data)).items() if m in ("image", "text")})
    assert plain.metric("accuracy") == by_hand.accuracy and by_hand.how == "descriptions"
    assert "accuracy" in str(plain) and list(plain.results) == ["image"]


def test_a_class_of_several_names_is_found_by_the_nearest():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        names = embedded(units(rng, 12), [f"c{i % 4}" for i in range(12)], "text")
        truth = [None if rng.random() < 0.1 else f"c{rng.integers(4)}" for _ in range(40)]
        rows = embedded(units(rng, 40), truth)
        classified = zero_shot(rows, names, "audio->text")
        best = [max(range(12), key=lambda j, z=z: float(z.astype(float) @ names.vectors[j])) for z in rows.vectors]
        pairs = [(t, f"c{j % 4}") for t, j in zip(truth, best, strict=True) if t is not None]
        assert classified.skipped == 40 - len(pairs) and classified.rows == len(pairs)
        for i, t in enumerate(classified.classes):
            for j, p in enumerate(classified.classes):
                assert classified.confusion[i, j] == pairs.count((t, p))
    same = embedded(np.ones((2, 4), np.float32) / 2, ["a", "b"], "text")
    assert zero_shot(embedded(np.ones((1, 4), np.float32) / 2, ["a"]), same, "x").confusion.tolist() == [[0, 1], [0, 0]]


def test_neighbours_and_anomalies_of_the_demos_machines(machines, capsys):
    status, knn = run_eval(
        capsys,
        "tiny:clap",
        machines / "val",
        "--task",
        "knn",
        "--label",
        "category",
        "--reference",
        machines / "train",
        "--exclude-same",
        "recording",
    )
    assert status == 0 and knn["results"]["audio"]["rows"] == len(open_data(str(machines / "val")))
    assert knn["results"]["audio"]["accuracy"] > 0.7  # a fan and a gearbox sound unlike even to seeded towers
    argv = [
        str(machines / "val"),
        "--task",
        "anomaly",
        "--normal",
        "defect=none",
        "--machine",
        "category",
        "--exclude-same",
        "recording",
    ]
    status, document = run_eval(capsys, "tiny:clap", *argv, "--reference", machines / "train", "--slice", "severity")
    assert status == 0
    scores = document["results"]["audio"]
    assert set(scores["machines"]) == {"fan", "gearbox"} and set(scores["parts"]) == {
        f"severity={s}" for s in ("light", "medium", "severe")
    }
    assert scores["parts"]["severity=severe"]["auroc"] > 0.6 and len(scores["scores"]) == len(open_data(str(machines / "val")))
    status, line = run_eval(capsys, "tiny:clap", *argv)
    assert status == 2 and "no normal row has another normal row as reference" in line  # one healthy recording a machine
    result = mmtune.evaluate("tiny:clap", str(machines / "val"), task="anomaly", normal="defect=none", machine="category")
    assert result.metric("auroc") == pytest.approx(np.mean([d.auroc for d in result.results["audio"].machines.values()]))
    assert "pAUROC@0.1" in str(result)


BAD = [
    (["--task", "zeroshot"], "unknown task 'zeroshot'; there are: retrieval, zero_shot, knn, anomaly"),
    (["--normal", "a=b"], "normal: is an option of task anomaly, not of retrieval"),
    (["--task", "knn", "--normal", "a=b"], "normal: is an option of task anomaly, not of knn"),
    (["--task", "anomaly", "--qrels", "x.txt"], "qrels: is an option of task retrieval, not of anomaly"),
    (["--task", "knn", "--label", "categry"], "did you mean 'category'"),
    (["--task", "knn", "--neighbours", "0"], "neighbours: 0 is not 1 or more"),
    (["--task", "knn", "--reference", "SELF"], "among the references (row "),
    (["--task", "anomaly"], 'state which rows are normal, as "COLUMN=VALUE"'),
    (["--task", "anomaly", "--normal", "defect=nne"], "no row has defect=nne; there are: crack, imbalance"),
    (["--task", "zero_shot", "--prompt", "a photo"], "must contain {} exactly once"),
    (["--task", "zero_shot", "--only", "text"], "choose another modality to classify"),
    (["--group-pooling", "max"], "group_pooling: unknown value 'max'; there is: mean"),
]


@pytest.mark.parametrize("argv, message", BAD, ids=[m[:30] for _, m in BAD])
def test_bad_input_is_one_line(machines, capsys, argv, message):
    argv = [str(machines / "val") if a == "SELF" else a for a in argv]
    status, line = run_eval(capsys, "tiny:clap", machines / "val", *argv)
    assert status == 2 and message in line and line.strip().count("\n") == 0


def test_a_recording_on_both_sides_is_refused(machines, tmp_path):
    data = open_data(str(machines / "val"))
    a, b = data.subset(np.arange(0, len(data), 2)), data.subset(np.arange(1, len(data), 2))  # clips in turn
    with pytest.raises(DataError, match="values of 'recording' are in .* too, e.g. 'fan-crack-light-r01'"):
        mmtune.evaluate("tiny:clap", a, task="knn", reference=b, label="category", exclude_same="recording")
    assert mmtune.evaluate("tiny:clap", a, task="knn", reference=b, label="category").metric("accuracy") > 0
    model = mmtune.load("tiny:clap")
    artifact.save(model, tmp_path / "trained", trained_on={k: data.labels[k][:5] for k in ("id", "audio")})
    with pytest.raises(DataError, match="the model was trained on 5 of these"):
        mmtune.evaluate(str(tmp_path / "trained"), data, task="knn", label="category")


def test_zero_shot_needs_a_text_tower(machines):
    with pytest.raises(MmtuneError, match="class names need a text modality"):
        mmtune.evaluate("tiny:audio", str(machines / "val"), task="zero_shot", label="category")


# --- group pooling ------------------------------------------------------------------------------------------


def test_pooled_rows_of_a_group_are_one_item(tmp_path):
    data = corpora.packed(tmp_path, 24, 0)
    result = mmtune.evaluate("tiny:clip", data, group_pooling="mean")
    assert result.directions["text->image"].candidates == 6 and result.directions["image->text"].queries == 6
    from mmtune.embedding.embed_rows import embed_data

    vectors = embed_data(mmtune.load("tiny:clip"), open_data(data))
    e = vectors["image"]
    got = pool_groups(vectors, "mean")["image"]
    for row, group, z in zip(got.ids, got.groups, got.vectors, strict=True):
        mine = [i for i, g in enumerate(e.groups) if g == group]
        mean = e.vectors[mine].mean(0)
        np.testing.assert_allclose(z, mean / np.linalg.norm(mean), atol=1e-6)
        assert row == min(e.ids[i] for i in mine)
    with pytest.raises(MmtuneError, match="judgments, which are about single rows"):
        pool_groups(vectors, "mean", {"a": {"b": 1}})


def test_help_names_every_task():
    done = subprocess.run([sys.executable, "-m", "mmtune", "eval", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and all(t in done.stdout for t in ("zero_shot", "knn", "anomaly", "--group-pooling"))
