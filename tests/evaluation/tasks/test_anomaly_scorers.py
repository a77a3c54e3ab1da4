"""Scorers of anomalies, balanced domains, known anomalies, and the score of DCASE task 2, against plain loops and scikit-learn."""

import json

import numpy as np
import pytest
from scipy.stats import hmean
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

import mmtune
from mmtune.cli import main
from mmtune.contracts import Embeddings
from mmtune.data.pack.pack import pack
from mmtune.demo.machines import write_machines
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.tasks import anomaly_scorers
from mmtune.evaluation.tasks.anomaly import FOLDS, AnomalyScoring, detect
from mmtune.evaluation.tasks.anomaly_scorers import balance_domains, make_scorer, register_anomaly_scorer
from mmtune.evaluation.tasks.roc import auroc, partial_auroc


def units(rng: np.random.Generator, n: int, centre: float = 0.0) -> np.ndarray:
    x = rng.normal(size=(n, 6)) + centre * np.eye(6)[0]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def embedded(prefix: str, vectors: np.ndarray) -> Embeddings:
    n = len(vectors)
    return Embeddings([f"{prefix}{i}" for i in range(n)], [None] * n, {"audio": np.arange(1, n + 1)}, vectors)


def test_the_dcase_score_is_that_of_the_challenge():
    """The evaluator of the challenge: AUC by domain with all anomalies of the section, pAUC of both, harmonic mean of all."""
    rng = np.random.default_rng(0)
    e, reference = embedded("q", units(rng, 80)), embedded("r", units(rng, 30, 1.0))
    normal = {r: i % 2 == 0 for i, r in enumerate(e.ids)}
    machine = {r: "fan" if i < 40 else "pump" for i, r in enumerate(e.ids)}
    machines = {r: "fan" if i < 15 else "pump" for i, r in enumerate(reference.ids)}
    domain = {r: "target" if rng.random() < 0.3 else "source" for r in [*e.ids, *reference.ids]}
    found = detect(
        "audio", e, normal, machine, reference=reference, reference_machine=machines, scoring=AnomalyScoring(domain=domain)
    )
    values = []
    for m in ("fan", "pump"):
        rows = [r for r in e.ids if machine[r] == m]
        for d in ("source", "target"):
            some = [r for r in rows if domain[r] == d or not normal[r]]
            values.append(roc_auc_score([not normal[r] for r in some], [found.scores[r] for r in some]))
            assert found.domains[m][d] == pytest.approx(values[-1])
        values.append(roc_auc_score([not normal[r] for r in rows], [found.scores[r] for r in rows], max_fpr=0.1))
    assert found.metrics["dcase_score"] == pytest.approx(1 / np.mean([1 / v for v in values]))
    source, target, partial = values[0::3], values[1::3], values[2::3]
    whole = [
        roc_auc_score([not normal[r] for r in e.ids if machine[r] == m], [found.scores[r] for r in e.ids if machine[r] == m])
        for m in ("fan", "pump")
    ]
    for name, of in (("auroc_hmean", whole), ("partial_auroc_hmean", partial)):
        assert found.metrics[name] == pytest.approx(hmean(of))
    assert found.metrics["auroc[source]"] == pytest.approx(hmean(source))
    document = found.to_dict()["harmonic_mean"]
    assert document.pop("domains") == pytest.approx({"source": hmean(source), "target": hmean(target)})
    assert document == pytest.approx({"auroc": hmean(whole), "partial_auroc": hmean(partial)})
    table = [line.split() for line in str(found).split("\n") if line.strip()]
    assert table[0][-4:] == ["AUROC", "source", "AUROC", "target"]
    row = next(line for line in table if line[:1] == ["pump"])
    assert row[3:] == [f"{v:.4f}" for v in (whole[1], partial[1], source[1], target[1])]
    row = next(line for line in table if line[:2] == ["harmonic", "mean"])
    assert row[4:] == [f"{hmean(v):.4f}" for v in (whole, partial, source, target)]
    pump = found.of_machine("pump")
    assert pump.metrics["auroc"] == pytest.approx(whole[1]) and pump.metrics["auroc[target]"] == pytest.approx(target[1])
    assert len(pump.row_ids) == 40 and pump.weighted_metrics(np.ones(40)) == pytest.approx(pump.metrics)
    assert found.weighted_metrics(np.ones(80)) == pytest.approx(found.metrics)
    twice = np.where(np.arange(80) < 40, 2, 1)  # all rows of one machine twice: the same areas
    assert found.weighted_metrics(twice) == pytest.approx(found.metrics)
    assert f"DCASE score: {found.metrics['dcase_score']:.4f}" in str(found)


def test_areas_are_those_of_scikit_learn():
    rng = np.random.default_rng(11)
    for n in (2, 7, 60, 300):
        for ties in (False, True):
            positive = rng.permutation(np.arange(n) < max(1, n // 3))
            score = rng.normal(size=n) + positive
            score = score.round() if ties else score
            weight = rng.integers(0, 3, n)
            weight[np.flatnonzero(positive)[0]] = weight[np.flatnonzero(~positive)[0]] = 1
            for w in (None, weight):
                assert auroc(score, positive, w) == pytest.approx(roc_auc_score(positive, score, sample_weight=w))
                for max_fpr in (0.1, 0.5, 1.0):
                    expected = roc_auc_score(positive, score, max_fpr=max_fpr, sample_weight=w)
                    assert partial_auroc(score, positive, max_fpr, w) == pytest.approx(expected)


def test_mahalanobis_and_mixture():
    rng = np.random.default_rng(1)
    normal, query = units(rng, 60, 3.0), units(rng, 9)
    scorer = make_scorer("mahalanobis", 1)
    scorer.fit(normal, None)
    fitted = LedoitWolf().fit(normal.astype(np.float64))
    for q, score in zip(query.astype(np.float64), scorer.score(query), strict=True):
        away = q - normal.astype(np.float64).mean(0)
        assert score == pytest.approx(np.sqrt(away @ np.linalg.inv(fitted.covariance_) @ away))
    mixture, again = make_scorer("gmm", 1), make_scorer("gmm", 1)
    for m in (mixture, again):
        m.fit(normal, None)
    assert mixture.score(query).tolist() == again.score(query).tolist()
    assert mixture.score(normal).mean() < mixture.score(query).mean()
    for name in ("mahalanobis", "gmm"):
        with pytest.raises(DataError, match="at least 2 normal rows"):
            make_scorer(name, 1).fit(normal[:1], None)
        with pytest.raises(RecipeError, match="use the scorer nearest"):
            make_scorer(name, 1).fit(normal, query)


def test_known_anomalies_pull_the_scores_of_their_neighbours_up():
    rng = np.random.default_rng(2)
    normal, known, query = units(rng, 20), units(rng, 4), units(rng, 7)
    scorer = make_scorer("nearest", 2)
    scorer.fit(normal, known)
    for q, score in zip(query.astype(np.float64), scorer.score(query), strict=True):
        near, fault = (np.sort(1 - r.astype(np.float64) @ q)[:2].mean() for r in (normal, known))
        assert score == pytest.approx(near - fault, abs=1e-6)


@pytest.mark.parametrize("how", ["smote", "mixup"])
def test_balanced_domains_have_equally_many_embeddings_between_their_own(how):
    rng = np.random.default_rng(3)
    x = np.concatenate([units(rng, 20, 9.0), units(rng, 3, -9.0)])
    domain = np.array(["source"] * 20 + ["target"] * 3, object)
    got = balance_domains(x, domain, how)
    assert len(got) == 40 and got[:23].tolist() == x.tolist()
    assert np.linalg.norm(got, axis=1) == pytest.approx(np.ones(40), abs=1e-6)
    assert got.tolist() == balance_domains(x, domain, how).tolist()
    if how == "smote":
        assert (got[23:, 0] < -0.9).all()  # between embeddings of the target domain alone
    assert len(balance_domains(x[:20], domain[:20], how)) == 20


def test_rows_are_scored_without_those_of_their_own_recording():
    """Two clips of a recording are equal. Scored by each other, their distance would be 0."""
    rng = np.random.default_rng(4)
    x = np.repeat(units(rng, 40), 2, axis=0)
    e = embedded("q", x)
    normal = {r: i < 60 for i, r in enumerate(e.ids)}
    recording = {r: f"rec{i // 2}" for i, r in enumerate(e.ids)}
    domain = {r: "target" if i % 8 < 2 else "source" for i, r in enumerate(e.ids)}
    for scoring in (AnomalyScoring(balance="mixup", domain=domain), AnomalyScoring(scorer="mahalanobis")):
        found = detect("audio", e, normal, dict.fromkeys(e.ids, "fan"), source=recording, scoring=scoring)
        assert len(found.scores) == 80 and min(found.scores.values()) > 1e-3
        assert all(found.scores[e.ids[i]] == pytest.approx(found.scores[e.ids[i + 1]]) for i in range(0, 80, 2))
    assert FOLDS > 1


def test_a_scorer_from_outside(monkeypatch):
    class Length:
        def fit(self, normal_ND, known_MD):
            self.n = len(normal_ND)

        def score(self, query_QD):
            return query_QD[:, 0] + self.n

    monkeypatch.setattr(anomaly_scorers, "SCORERS", dict(anomaly_scorers.SCORERS))
    register_anomaly_scorer("length", Length)
    rng = np.random.default_rng(5)
    e, reference = embedded("q", units(rng, 10)), embedded("r", units(rng, 5))
    machine = dict.fromkeys([*e.ids, *reference.ids], "all")
    normal = {r: i < 5 for i, r in enumerate(e.ids)}
    options = {"reference": reference, "reference_machine": machine, "scoring": AnomalyScoring(scorer="length")}
    found = detect("audio", e, normal, machine, **options)
    assert list(found.scores.values()) == pytest.approx((e.vectors[:, 0] + 5).tolist())


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    root = tmp_path_factory.mktemp("machines")
    write_machines(root / "source", machines=2, train_recordings=2, val_recordings=2, clips=2, base_recordings=1, seconds=0.3)
    for split in ("train", "val"):
        pack(root / "source" / f"{split}.csv", root / split)
    return root


def test_the_verb(machines, capsys):
    argv = ["eval", "tiny:clap", str(machines / "val"), "--task", "anomaly", "--normal", "defect=none", "--machine", "category"]
    argv += ["--reference", str(machines / "train"), "--json", "--quiet"]
    assert main([*argv, "--scorer", "gmm", "--domain", "severity", "--balance", "smote"]) == 0
    document = json.loads(capsys.readouterr().out)
    result = document["results"]["audio"]
    assert document["settings"]["scorer"] == "gmm" and 0 < result["dcase_score"] <= 1
    assert result["domains"].keys() == result["machines"].keys() and "dcase_score" in document["intervals"]["audio"]
    assert document["intervals"]["audio"]["auroc_hmean"] and result["harmonic_mean"]["auroc"] <= result["mean"]["auroc"]
    of_machines = document["machine_intervals"]["audio"]
    assert of_machines.keys() == result["machines"].keys()
    for m, metrics in of_machines.items():
        assert metrics["auroc"][0] <= result["machines"][m]["auroc"] <= metrics["auroc"][1]
        assert set(metrics) == {"auroc", "partial_auroc", "dcase_score", *(f"auroc[{d}]" for d in result["domains"][m])}
    assert main([*(a for a in argv if a != "--json"), "--cluster", "recording"]) == 0
    text = capsys.readouterr().out
    assert "harmonic mean" in text and "audio: 95% intervals" in text
    assert main([*argv, "--known-anomalies"]) == 0
    by_python = mmtune.evaluate(
        "tiny:clap",
        str(machines / "val"),
        task="anomaly",
        normal="defect=none",
        machine="category",
        reference=str(machines / "train"),
        task_options={"known_anomalies": True},
    )
    assert json.loads(capsys.readouterr().out)["results"] == json.loads(json.dumps(by_python.to_dict()["results"]))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--scorer", "gmmm"], "scorer: unknown 'gmmm'; there are: nearest, mahalanobis, gmm"),
        (["--balance", "smote"], "balance: name the metadata column of the domains as well"),
        (["--balance", "smte", "--domain", "severity"], "balance: unknown 'smte'; there are: smote, mixup"),
        (["--known-anomalies", "--scorer", "gmm"], "known_anomalies: the scorer gmm is fitted to normal rows alone"),
        (["--known-anomalies"], "known_anomalies: they are rows of the reference data; give --reference DATA as well"),
    ],
)
def test_wrong_options_are_one_line(machines, capsys, extra, message):
    argv = ["eval", "tiny:clap", str(machines / "val"), "--task", "anomaly", "--normal", "defect=none", "--quiet", *extra]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
