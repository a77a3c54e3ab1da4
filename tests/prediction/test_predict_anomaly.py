"""Predictions by every scorer of anomalies: those of the evaluation, stored ones, and thresholds that hold for new inputs."""

import json
import shutil
import warnings

import numpy as np
import pytest

import mmtune
from mmtune.contracts import Embeddings
from mmtune.errors import DataError, DataWarning, ModelError, RecipeError
from mmtune.evaluation.tasks import anomaly_scorers
from mmtune.evaluation.tasks.anomaly import AnomalyScoring
from mmtune.prediction import stored_predictors
from mmtune.prediction.fit_predictors import _threshold
from mmtune.relevance.items import take_rows
from tests.support import corpora

COLUMNS = ("audio", "text")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("predict")
    mmtune.load("tiny:clap").save(root / "artifact")
    return root


SCORERS = (
    {"scorer": "mahalanobis"},
    {"scorer": "gmm"},
    {"neighbours": 3},
    {"domain": "group", "balance": "smote"},
    {"scorer": "mahalanobis", "domain": "group", "balance": "mixup"},
    {"known_anomalies": True, "neighbours": 2},
)


@pytest.mark.parametrize("options", SCORERS, ids=str)
def test_every_scorer_predicts_what_the_evaluation_scores_also_when_it_is_stored(root, options):
    val, reference = corpora.packed(root, 12, 1, COLUMNS), corpora.packed(root, 21, 0, COLUMNS)  # domains of 4, 4 and 3 rows
    common = {"task": "anomaly", "normal": "shade=light", "reference": reference}
    scoring = {k: v for k, v in options.items() if k != "neighbours"}
    evaluated = mmtune.evaluate("tiny:clap", val, **common, neighbours=options.get("neighbours"), task_options=scoring)
    scores = evaluated.results["audio"].scores
    artifact = str(shutil.copytree(root / "artifact", root / "scorer", dirs_exist_ok=True))
    done = mmtune.predict(artifact, val, **common, **options, threshold="auto", save=True)
    assert {p.file: p.score for p in done.predictions} == pytest.approx(scores, abs=1e-6)
    stored = mmtune.predict(artifact, val, task="anomaly")
    assert stored.predictions == done.predictions and stored.thresholds == done.thresholds
    threshold = stored.thresholds["audio"]
    assert threshold.normal == 11 and sorted(threshold.domains) == (["blue", "red", "white"] if "domain" in options else [])
    with pytest.raises(RecipeError, match=f"{next(iter(options))}: needs the reference data"):
        mmtune.predict(artifact, val, task="anomaly", **{k: v for k, v in options.items() if k == next(iter(options))})


@pytest.mark.parametrize("scorer", ["nearest", "mahalanobis", "gmm"])
def test_the_stated_false_alarm_rate_holds_for_every_scorer(scorer):
    """References of 30 recordings, 4 clips each: scores of references by themselves would make nearly all new clips alarms."""
    rng, dim, rates = np.random.default_rng(7), 24, []
    spread = np.exp(-np.arange(dim) / 6)

    def clips(recordings):
        at = rng.normal(size=(recordings, 1, dim)) + 0.2 * rng.normal(size=(recordings, 4, dim))
        x = (at * spread).reshape(-1, dim) + 0.5
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    for _ in range(12):
        x = clips(30)
        ids = [f"r{i}" for i in range(len(x))]
        items = Embeddings(ids, [None] * len(x), {"audio": np.arange(1, len(x) + 1)}, x)
        source = {row: str(i // 4) for i, row in enumerate(ids)}
        scoring = AnomalyScoring(1, scorer)
        found = _threshold("audio", items, 0.1, source, scoring)
        new = clips(100)
        rates.append(float((scoring.fit(items).score(new) > found.value).mean()))
    assert found.clusters == 30 and found.normal == 120 and found.false_alarm_rate == pytest.approx(12 / 121)
    assert 0.05 < np.mean(rates) < 0.13
    own = float(np.quantile(scoring.fit(items).score(x), 0.9))
    assert (scoring.fit(items).score(new) > own).mean() > 0.15  # what the references say of themselves is not honest


def test_known_anomalies_are_found_by_the_others_never_by_themselves():
    """Three recordings of a fault, two clips each. A clip would be found by itself, or by the other clip of its recording."""
    rng = np.random.default_rng(3)
    normal, fault = rng.normal(size=(40, 8)) + 2 * np.eye(8)[0], np.repeat(rng.normal(size=(3, 8)) - 2 * np.eye(8)[0], 2, 0)
    x = np.concatenate([normal, fault + 0.01 * rng.normal(size=fault.shape)])
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    e = Embeddings([f"r{i}" for i in range(46)], [None] * 46, {"audio": np.arange(1, 47)}, x)
    source = {row: f"n{i}" if i < 40 else f"f{(i - 40) // 2}" for i, row in enumerate(e.ids)}
    items, faults = take_rows(e, np.arange(40)), take_rows(e, np.arange(40, 46))
    found = _threshold("audio", items, 0.1, source, AnomalyScoring(), faults, use_known=True)
    away = 1 - x.astype(float) @ x.T.astype(float)
    score = [
        min(away[i, j] for j in range(40) if j != i)
        - min(away[i, j] for j in range(40, 46) if j != i and source[e.ids[j]] != source[e.ids[i]])
        for i in range(46)
    ]
    assert found.value == pytest.approx(sorted(score[:40])[-4], abs=1e-6)
    assert found.detection_rate == pytest.approx(np.mean(np.array(score[40:]) > found.value)) and found.anomalous == 6
    from scipy.stats import binomtest

    by_recording = round(3 * found.detection_rate)
    assert by_recording == pytest.approx(3 * found.detection_rate)  # here the clips of a recording agree
    exact = binomtest(by_recording, 3).proportion_ci(method="exact")
    assert found.detection_interval == pytest.approx((exact.low, exact.high))
    alone = _threshold("audio", items, 0.1, source, AnomalyScoring(), take_rows(e, np.array([40, 41])), use_known=True)
    assert alone.detection_rate is None and alone.normal == 40  # one recording of a fault says nothing about finding it
    with pytest.raises(DataError, match="all 40 normal references have one value of the column --exclude-same"):
        _threshold("audio", items, 0.1, dict.fromkeys(e.ids, "one"), AnomalyScoring())


def test_known_anomalies_count_for_scorers_that_are_fitted_too():
    """All known anomalies may be in one of the parts; the normal rows of this part are scored all the same."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(23, 6)).astype(np.float32)
    e = Embeddings([f"r{i}" for i in range(23)], [None] * 23, {}, x / np.linalg.norm(x, axis=1, keepdims=True))
    label = np.array([*range(1, 21), 100, 100, 100])
    domain = dict.fromkeys(e.ids, "source")
    is_normal = np.arange(23) < 20
    scoring = AnomalyScoring(balance="smote", domain=domain)
    fitted = scoring.among_themselves(e, is_normal, (label, label[is_normal]), use_known=True, folds=20)
    plain = AnomalyScoring().among_themselves(e, is_normal, (label, label[is_normal]), use_known=True)
    assert fitted[:20] == pytest.approx(plain[:20], abs=1e-6) and np.isnan(fitted[20:]).all() and np.isnan(plain[20:]).all()


def test_a_scorer_that_is_not_registered_is_not_stored(root, monkeypatch, tmp_path):
    (tmp_path / "own_anomaly_scorer.py").write_text(
        "class Sum:\n    def fit(self, normal_ND, known_MD): pass\n    def score(self, q): return q.sum(1)\n"
    )
    monkeypatch.chdir(tmp_path)
    artifact, reference = str(shutil.copytree(root / "artifact", root / "own")), corpora.packed(root, 21, 0, COLUMNS)
    files = corpora.source(tmp_path / "new", 3, 1, COLUMNS).parent
    options = {"task": "anomaly", "reference": reference}
    by_path = mmtune.predict(artifact, str(files), **options, scorer="own_anomaly_scorer:Sum")
    with pytest.raises(ModelError, match="is stored by name; register it first"):
        mmtune.predict(artifact, str(files), **options, scorer="own_anomaly_scorer:Sum", save=True)
    monkeypatch.setattr(anomaly_scorers, "SCORERS", dict(anomaly_scorers.SCORERS))
    monkeypatch.setattr(stored_predictors, "SCORERS", anomaly_scorers.SCORERS)
    mmtune.register_anomaly_scorer("sum", "own_anomaly_scorer:Sum")
    assert mmtune.predict(artifact, str(files), **options, scorer="sum", save=True).predictions == by_path.predictions
    assert mmtune.predict(artifact, str(files), task="anomaly").predictions == by_path.predictions
    del anomaly_scorers.SCORERS["sum"]
    with pytest.raises(ModelError, match="its scorer 'sum' is not registered"):
        mmtune.predict(artifact, str(files), task="anomaly")


def test_the_plain_predictor_is_stored_so_that_earlier_versions_read_it(root):
    from safetensors import safe_open

    artifact, val = shutil.copytree(root / "artifact", root / "old"), corpora.packed(root, 12, 1, COLUMNS)
    options = {"task": "anomaly", "reference": corpora.packed(root, 21, 0, COLUMNS), "normal": "shade=light", "save": True}
    for more, number in (({}, 1), ({"known_anomalies": True}, 2), ({"scorer": "gmm"}, 2)):
        mmtune.predict(str(artifact), val, **options, **more)
        with safe_open(artifact / "predictors" / "anomaly.audio.safetensors", framework="np") as f:
            document = json.loads(f.metadata()["predictor"])
        assert document["format"] == number and ("scorer" in document) == (number == 2)


def test_a_threshold_from_clips_of_one_recording_is_warned_of(root):
    """As without --exclude-same the clips of a recording vouch for each other."""
    data = mmtune.open_data(corpora.packed(root, 21, 0, COLUMNS))
    rows = [{"audio": data.read(i, "audio"), "recording": f"r{i // 3}"} for i in range(12)]
    val = corpora.packed(root, 12, 1, COLUMNS)
    with pytest.warns(DataWarning, match="12 references are of 4 values of 'recording'.* --exclude-same recording"):
        mmtune.predict("tiny:clap", val, task="anomaly", reference=rows, threshold="auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        found = mmtune.predict("tiny:clap", val, task="anomaly", reference=rows, threshold="auto", exclude_same="recording")
        mmtune.predict("tiny:clap", val, task="anomaly", reference=rows)
    assert found.thresholds["audio"].clusters == 4
