"""Reports of real small runs: complete, self-contained, escaped, small, and right about what they say."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

import mmtune
from mmtune.cli.dispatch import dispatch
from mmtune.comparison.compare_models import compare
from mmtune.comparison.compare_tasks import compare_task
from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError
from mmtune.evaluation.tasks.roc import auroc
from mmtune.mining.mine_model import mine
from mmtune.modalities import get
from mmtune.reporting.confusion import confusion_sections
from mmtune.reporting.embedding_map import principal_components
from mmtune.reporting.examples import example_sections, most_changed
from mmtune.reporting.glossary import TERMS, explain
from mmtune.reporting.learning_curves import learning_curves
from mmtune.reporting.measured import measure
from mmtune.reporting.plots import ticks
from mmtune.reporting.report import headline, report
from mmtune.reporting.subject import report_subject
from mmtune.reporting.task_section import ReportedTask, TaskSection
from mmtune.reporting.value_cards import BUDGET, ValueCards
from tests.support import corpora
from tests.support.layer_calls import layer_calls
from tests.support.report_helpers import big_photo, long_corpus, long_sound, run

VOID = {"meta", "link", "img", "br", "input"}


class Checker(HTMLParser):
    """Tags close in order; collects ids, references and picture attributes."""

    def __init__(self):
        super().__init__()
        self.stack, self.ids, self.refs, self.pictures, self.players, self.words = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag not in VOID:
            self.stack.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        self.refs += [found[k] for k in ("src", "href", "action") if k in found]
        self.pictures += [found] if tag == "img" else []
        self.players += [found] if tag == "audio" else []

    def handle_startendtag(self, tag, attrs):
        self.refs += [v for k, v in attrs if k in ("src", "href")]
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if self.stack[-1:] not in (["style"], ["script"]):
            self.words.append(data)


def checked(path) -> Checker:
    """The page, which refers to nothing outside itself and repeats no id."""
    page = Checker()
    text = path.read_text()
    page.feed(text)
    page.close()
    assert not page.stack and len(page.ids) == len(set(page.ids))
    assert all(r.startswith(("data:", "#")) for r in page.refs), [r[:80] for r in page.refs if not r.startswith(("data:", "#"))]
    assert {r[1:] for r in page.refs if r.startswith("#")} <= set(page.ids)
    assert not re.search(r"url\(|@import|fetch\(|https?://", text)
    assert all(p.get("alt") and int(p["width"]) and int(p["height"]) for p in page.pictures)
    assert all(p.get("aria-label") for p in page.players)
    return page


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def pictures(root):
    return run(root, ("image", "text"))


def test_a_run_with_pictures(pictures, tmp_path, capsys):
    out = tmp_path / "r.html"
    assert dispatch("report", [str(pictures), "--out", str(out), "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    recipe = report_subject(pictures)
    found = compare(recipe.base, recipe.candidate, recipe.data, slices=["shade"])
    assert said == {"out": str(out), "verdict": found.verdict, "bytes": out.stat().st_size}
    page = checked(out)
    words = " ".join(" ".join(page.words).split())
    assert found.reason in words and headline(found.to_dict())[0] in words
    for heading in (
        "same searches",
        "Confusion matrices",
        "Scores of right",
        "A map of",
        "How training went",
        "How it was made",
    ):
        assert heading in words
    assert "shade=dark" in words and "image->text" in words and "text->image" in words
    lead = found.directions["image->text"]
    assert f"{lead.base:.3f} → {lead.candidate:.3f}" in words
    assert found.base.fingerprint in words and found.candidate.fingerprint in words
    assert page.pictures and "✓ right" in words and "✗ wrong" in words
    shown = [p["src"] for p in page.pictures]
    assert len(shown) == len(set(shown)), "a picture is embedded twice"
    assert said["bytes"] < 1_000_000


def test_a_run_with_sounds(root, tmp_path):
    out = tmp_path / "r.html"
    report(run(root, ("audio", "text"), "tiny:clap", epochs=3), out)
    page = checked(out)
    assert page.players and all(p["src"].startswith("data:audio/flac;base64,") for p in page.players)
    assert len(page.pictures) == len(page.players) and "Spectrogram of" in page.pictures[0]["alt"]
    assert len({p["src"] for p in page.players}) == len(page.players)


def test_a_task_beside_retrieval(pictures, tmp_path, capsys):
    subject = report_subject(pictures)
    options = {"label": "shade", "neighbours": 3}
    found = compare_task(subject.base, subject.candidate, subject.data, "knn", options, cluster="group")
    out = tmp_path / "r.html"
    argv = [str(pictures), "--out", str(out), "--quiet", "--task", "knn", "--label", "shade", "--neighbours", "3"]
    assert dispatch("report", [*argv, "--cluster", "group"]) == 0
    words = " ".join(" ".join(checked(out).words).split())
    d = found.differences["image"]["accuracy"]
    assert f"image accuracy {d.queries} {d.clusters} {d.base:.4f} {d.candidate:.4f} {d.difference:+.4f}" in words
    assert f"{d.interval[0]:+.4f} to {d.interval[1]:+.4f}" in words and "bootstrap over values of group" in words
    few = TaskSection("knn", "values of group", [("image", "accuracy", replace(d, clusters=4))], [])
    assert not few.intervals
    capsys.readouterr()
    assert dispatch("report", [str(pictures), "--out", str(out), "--neighbours", "3"]) == 2
    assert "need --task zero_shot, knn or anomaly" in capsys.readouterr().err


def test_the_intervals_of_the_verdict_resample_the_column_that_is_named(pictures, tmp_path):
    """The page itself advises `--cluster COLUMN` when there are too few groups."""
    assert dispatch("report", [str(pictures), "--out", str(tmp_path / "r.html"), "--cluster", "shade", "--quiet"]) == 0
    measured = measure(report_subject(pictures), cluster="shade")
    values = {measured.data.meta(i)["shade"] for i in range(len(measured.data))}
    assert {d.clusters for d in measured.comparison.directions.values()} == {len(values)}
    assert {d.clusters for d in measure(report_subject(pictures)).comparison.directions.values()} != {len(values)}


def test_a_task_takes_the_vectors_of_the_report(pictures, tmp_path):
    subject = report_subject(pictures)
    models = [mmtune.load(subject.base), mmtune.load(subject.candidate)]
    given = {"base": models[0], "candidate": models[1], "data": subject.data}
    # all rows; the rows that have a label; and a reference of its own, which is embedded for the task
    knn, anomaly = ReportedTask("knn", {"label": "shade"}), ReportedTask("anomaly", {"normal": "shade=dark"})
    with layer_calls(*models) as alone:
        report(None, tmp_path / "alone.html", **given)
    with layer_calls(*models) as both:
        report(None, tmp_path / "both.html", tasks=[knn, anomaly], **given)
    assert both == alone and min(sum(v for k, v in alone.items() if k[0] == side) for side in "01") > 0
    with layer_calls(*models) as once:
        found = compare_task(*models, subject.data, "anomaly", anomaly.options)
    assert once.total() > 0
    table = TaskSection("anomaly", "rows", [(m, n, d) for m, of in found.differences.items() for n, d in of.items()], [])
    shown = measure(report_subject(None, **given), tasks=[anomaly]).tasks[0]
    assert [(m, n, round(d.difference, 6)) for m, n, d in shown.rows] == [
        (m, n, round(d.difference, 6)) for m, n, d in table.rows
    ]


def test_anomalies_by_machine(pictures, tmp_path):
    task = ReportedTask("anomaly", {"normal": "shade=dark", "machine": "shade"})
    with pytest.raises(DataError, match="no machine can be evaluated"):  # every machine has one kind of row alone
        report(pictures, tmp_path / "r.html", tasks=[task])
    report(pictures, tmp_path / "r.html", tasks=[ReportedTask("anomaly", {"normal": "shade=dark"})])
    assert "AUROC by machine" in " ".join(checked(tmp_path / "r.html").words)


def test_examples_are_the_greatest_changes_and_hits_are_in_order(pictures):
    found = measure(report_subject(pictures))
    data = found.data
    for g in example_sections(found, 4):
        old, new = (r.directions[g.direction] for r in (found.comparison.base, found.comparison.candidate))
        change = new.values[g.metric] - old.values[g.metric]
        assert (g.gained, g.lost) == (sum(change > 1e-12), sum(change < -1e-12))
        assert len(g.improved) <= 4
        if g.improved:
            first = g.improved[0]
            assert np.isclose(first.value["after"] - first.value["before"], change.max())
        for e in [*g.improved, *g.harmed]:
            for side in ("before", "after"):
                hits = e.results[side]
                assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
                vectors = found.vectors[side]
                a = vectors[e.modality].vectors[vectors[e.modality].ids.index(data.ids[e.row])]
                every = vectors[hits[0].modality].vectors @ a
                assert np.isclose(hits[0].score, every.max(), atol=1e-5)
                for h in hits:
                    assert h.relevant == (data.groups[h.row] == data.groups[e.row])
                ranks = [h.rank for h in hits]
                assert ranks == sorted(ranks) and ranks[0] == 1 and len(hits) <= 6
                assert next(h.rank for h in hits if h.relevant) == e.first_relevant[side]  # wherever it ranks
                seen = sorted([*ranks, *(r for h in hits for r in h.copies)])
                assert seen[:-1] == list(range(1, len(seen)))  # none is left out but before the last, which may rank anywhere


def test_titles_numbers_legend_and_words(root, tmp_path):
    """By a column of three classes; titles from a column; copies of a recording once; all terms explained."""
    rows = corpora.source(root / "titled", 24, 7, ("audio", "text"))
    lines = rows.read_text().splitlines()
    kinds = ["thin", "broad", "odd"]
    lines = [f"{lines[0]},title,kind,recording"] + [
        f"{x},Fan number {n},{kinds[n % 3]},tape {n % 6}" for n, x in enumerate(lines[1:])
    ]
    rows.write_text("\n".join(lines) + "\n")
    pack(rows, root / "titled" / "packed", group="group")
    out = tmp_path / "r.html"
    about = report_subject(None, "tiny:clap", "tiny:clap@3", str(root / "titled" / "packed"))
    report(None, out, base=about.base, candidate=about.candidate, data=about.data, label="kind")
    text, words = out.read_text(), " ".join(" ".join(checked(out).words).split())
    assert "Classes are the values of kind" in words and "100% of the class, right" in words
    found = measure(about)
    (first, *_) = confusion_sections(found, "kind")
    assert first.names == ["broad", "odd", "thin"] and sum(c.count for c in first.matrices[0].cells) == first.rows
    for cell in first.matrices[1].cells:
        assert re.search(rf'<text class="n[^>]*>{cell.count}</text>', text)
    tapes = 0
    for g in example_sections(found, 4):
        for e in [*g.improved, *g.harmed]:
            for h in [h for side in ("before", "after") for h in e.results[side] if h.modality == "audio"]:
                assert f"Fan number {int(found.data.ids[h.row].split('-')[1])}" in words
                tapes += len(h.copies)
            for side in ("before", "after"):
                shown = [found.data.meta(h.row)["recording"] for h in e.results[side] if h.modality == "audio"]
                assert len(shown) == len(set(shown)) or len(shown) == 6
    assert tapes and "the same recording or a near duplicate: also at rank" in words
    for term in ("nDCG@k", "macro-F1", "AUROC", "95% confidence interval", "modality gap"):
        assert term in words
    assert (
        explain("ndcg@10") == TERMS["nDCG@k"] and explain("MAP") == explain("map") and explain("macro_f1") and not explain("x")
    )
    assert "<abbr title=" in text and "Spectrogram of" in text and "<i>4 kHz</i>" in text
    with pytest.raises(DataError, match="no row has a column 'nothing'"):
        report(None, out, base=about.base, candidate=about.candidate, data=about.data, label="nothing")


def test_the_most_changed_of_each_thing_come_first():
    gain = np.array([0.9, 0.8, 0.7, 0.0, -0.5, 0.1])
    things = np.array([1, 1, 1, 2, 3, 4])
    assert (
        most_changed(gain, things, 2) == [0, 5]
        and most_changed(gain, things, 4) == [0, 1, 2, 5]
        and most_changed(-gain, things, 4) == [4]
    )


def test_a_comparison_as_json(pictures, tmp_path, capsys):
    about = report_subject(pictures)
    assert dispatch("compare", [about.base, about.candidate, about.data, "--json"]) in (0, 1)
    document = tmp_path / "c.json"
    document.write_text(capsys.readouterr().out)
    said = report(document, tmp_path / "numbers.html")
    page = checked(tmp_path / "numbers.html")
    assert said.verdict == json.loads(document.read_text())["verdict"] and not page.pictures
    report(document, tmp_path / "all.html", base=about.base, candidate=about.candidate, data=about.data)
    assert checked(tmp_path / "all.html").pictures
    with pytest.raises(DataError, match="the comparison was made with the base"):
        report(document, tmp_path / "x.html", base=about.candidate, candidate=about.base, data=about.data)
    with pytest.raises(DataError, match="all of --base"):
        report(document, tmp_path / "x.html", base=about.base)


def test_the_audit_of_mined_negatives_is_shown(pictures, tmp_path):
    about = report_subject(pictures)
    mine(about.base, about.run.recipe["data"]["train"], pictures / "mining" / "round-0.parquet", {}, quiet=True)
    try:
        report(pictures, tmp_path / "r.html")
        words = " ".join(" ".join(checked(tmp_path / "r.html").words).split())
        assert "The negatives that were mined" in words and "round-0.parquet" in words and "Mined, the hardest" in words
    finally:
        for path in (pictures / "mining").iterdir():
            path.unlink()


def test_gate_of_the_recipe_and_of_a_file(pictures, tmp_path, capsys):
    (tmp_path / "gate.yaml").write_text("gate: {metric: 'hit@1', direction: 'text->image', min_gain: 5}")
    args = [str(pictures), "--out", str(tmp_path / "r.html"), "--gate", str(tmp_path / "gate.yaml"), "--json", "--quiet"]
    assert dispatch("report", args) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "fail"
    assert "Not better" in (tmp_path / "r.html").read_text()


def test_judgments_say_what_is_right(pictures, tmp_path, capsys):
    """Every picture is judged to be the answer of one text alone: that of the next colour. Groups no longer count."""
    about = report_subject(pictures)
    data = open_data(about.data)
    lines = [{"query": q, "item": data.ids[i - 1], "grade": 2, "judge": "ann"} for i, q in enumerate(data.ids)]
    (tmp_path / "j.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    args = [str(pictures), "--out", str(tmp_path / "r.html"), "--qrels", str(tmp_path / "j.jsonl"), "--json", "--quiet"]
    assert dispatch("report", args) == 0
    said = json.loads(capsys.readouterr().out)
    expected = compare(about.base, about.candidate, about.data, qrels=tmp_path / "j.jsonl")
    assert said["verdict"] == expected.verdict
    words = " ".join(" ".join(checked(tmp_path / "r.html").words).split())
    lead = expected.directions["mean"]
    assert f"{lead.base:.3f} → {lead.candidate:.3f}" in words and "from judgments, not from rows and groups" in words
    found = measure(about, qrels=tmp_path / "j.jsonl")
    where = {row: i for i, row in enumerate(data.ids)}
    shown = [
        (e, h) for g in example_sections(found, 3) for e in [*g.improved, *g.harmed] for h in e.results["after"] if h.relevant
    ]
    for e, h in shown:
        same = data.labels[h.modality][h.row]
        answers = {
            where[x["item"]] for x in lines if data.labels[e.modality][where[x["query"]]] == data.labels[e.modality][e.row]
        }
        assert same in {data.labels[h.modality][a] for a in answers}
    assert shown
    (tmp_path / "other.jsonl").write_text('{"query": "nobody", "item": "nothing"}\n')
    assert dispatch("report", [*args[:4], str(tmp_path / "other.jsonl")]) == 2
    assert "query and item must be row ids" in capsys.readouterr().err


def test_curves_of_every_kind_of_run():
    log = [
        {
            "step": s,
            "epoch": 0,
            "loss": 2 / s,
            "info_nce": 1 / s,
            "sigmoid": 1 / s,
            "lr": 0.1,
            "grad_norm": 1.0,
            "wait": 0.1,
            "pairs_per_second": 9.0,
        }
        for s in range(1, 5)
    ]
    val = {"val a->b map": 0.5, "val metric": 0.5, "val general a->b map": 0.7, "val general metric": 0.7}
    log += [{"step": 4, "epoch": 0, **val}]
    points = [{"coefficient": c, "domain": c, "general": 1 - c, "values": {}} for c in (0.0, 0.5, 1.0)]
    between = {"metric": "map", "rule": "the best", "chosen": 0.5, "points": points}
    charts = {c.title: c for c in learning_curves(log, between)}
    assert list(charts) == [
        "Training loss",
        "Terms of the loss, smoothed",
        "Validation after each epoch",
        "Retention after each epoch",
        "Interpolation between base and tuned model",
        "Domain against retention",
        "Learning rate",
        "Gradient norm",
    ]
    assert [k.name for k in charts["Terms of the loss, smoothed"].curves] == ["info_nce", "sigmoid"]
    assert [k.name for k in charts["Validation after each epoch"].curves] == ["a->b map"]
    assert [k.name for k in charts["Retention after each epoch"].curves] == ["a->b map"]
    assert [k.last for k in charts["Interpolation between base and tuned model"].curves] == ["1", "0"]
    assert "chosen coefficient: 0.5, the best." in charts["Interpolation between base and tuned model"].caption
    assert [c.title for c in learning_curves([r for r in log if "loss" in r][:1])] == [] and learning_curves([]) == []


def test_refusals_name_the_fix(pictures, tmp_path, capsys):
    for args, line in (
        ([str(tmp_path)], "not a run (it has no recipe.yaml)"),
        ([str(tmp_path / "nothing")], "no such run or comparison"),
        ([], "--base, --candidate and --data"),
        ([str(pictures), "--data", report_subject(pictures).run.recipe["data"]["train"]], "was trained on"),
    ):
        assert dispatch("report", [*args, "--out", str(tmp_path / "r.html"), "--quiet"]) == 2
        said = capsys.readouterr().err
        assert line in said and said.count("\n") == 1
    assert not (tmp_path / "r.html").exists()


def test_names_are_escaped(root, tmp_path):
    words = "<script>alert(1)</script> & \"quoted\" 'x'"
    source = tmp_path / "rows.jsonl"
    rows = [{"id": f"{i}<b>", "text": words + f" {i % 6}", "image": f"{i}.png", "group": f"<i>{i % 3}"} for i in range(12)]
    corpora.source(tmp_path, 12, 5, ("image",))
    source.write_text("".join(json.dumps(r) + "\n" for r in rows))
    pack(source, tmp_path / "packed")
    out = tmp_path / "r.html"
    report(None, out, base="tiny:clip", candidate="tiny:clip", data=str(tmp_path / "packed"))
    page = checked(out)
    assert out.read_text().count("<script>") == 1 and "<i>0" not in out.read_text()
    assert "<i>0" in "".join(page.words)


def test_a_card_once_and_none_past_the_budget(root):
    data = open_data(corpora.packed(root, 18, 1, ("image", "text")))
    cards = ValueCards(data, 3000)
    full = cards.show(0, "image")
    assert 'id="v0"' in full and 'data-same="v0"' in cards.show(0, "image")
    rest = [cards.show(i, "image") for i in range(1, 6)]
    assert any("unshown" in r and data.ids[5] in rest[4] for r in rest) and cards.left >= 0
    assert cards.show(0, "text") == cards.show(6, "text")  # the same words: repeated, they are short


def test_a_card_is_small_whatever_it_shows():
    """As many as a page shows fit its budget: 2 directions, 12 searches each, a query and 10 answers."""
    rng = np.random.default_rng(0)
    room = BUDGET / (2 * 12 * 11)
    for seconds, rate in ((60, 48000), (30, 8000), (6, 44100), (1, 12000), (0.4, 96000)):
        card = get("audio").thumbnail_html(long_sound(rng, seconds, rate), "hum")
        kind = re.search('src=.data:audio/([a-z]+);base64,([^"]+)', card)
        heard, at = soundfile.read(io.BytesIO(base64.b64decode(kind[2])))
        assert len(card) <= room and len(heard) / at == pytest.approx(min(seconds, 5), abs=0.15)  # MP3 pads to whole frames
        assert ("plays the first 5 s" in card) == (seconds > 5) and ("as MP3" in card) == (kind[1] == "mpeg")
    assert kind[1] == "flac", "a short clip is heard as it is"
    assert len(get("image").thumbnail_html(big_photo(rng, (4000, 3000)), "boot")) <= room
    assert len(get("text").thumbnail_html(b"word " * 5000, "words")) <= 400


@pytest.mark.slow
def test_five_hundred_queries_of_long_sounds_and_big_photos(tmp_path):
    data, out = long_corpus(tmp_path / "d", 500), tmp_path / "r.html"
    said = report(None, out, base="tiny:all", candidate="tiny:all@3", data=data, examples=30)
    page = checked(out)
    assert said.bytes < 15_000_000 and len(page.players) > 60 and 'class="unshown"' not in out.read_text()
    words = " ".join(" ".join(page.words).split())
    assert "30 s, up to 8 kHz; plays the first 5 s as MP3" in words
    assert re.search("the same, of 1,000", words), "500 in each direction"
    print(said, len(page.players), len(page.pictures))


def test_small_numbers():
    rng = np.random.default_rng(0)
    good, bad = rng.integers(0, 5, 40) / 4, rng.integers(0, 5, 60) / 4
    naive = np.mean([(g > b) + 0.5 * (g == b) for g in good for b in bad])
    assert np.isclose(auroc(np.concatenate([good, bad]), np.repeat([True, False], [len(good), len(bad)])), naive)
    x = rng.normal(size=(50, 6)) * [5, 3, 1, 1, 1, 1]
    x -= x.mean(0)
    flat, kept = principal_components(x)
    spectrum = np.linalg.eigvalsh(x.T @ x)[::-1]
    assert np.isclose(kept, spectrum[:2].sum() / spectrum.sum()) and np.allclose((flat**2).sum(0), spectrum[:2])
    assert ticks(0, 1) == pytest.approx([0, 0.5, 1.0]) or len(ticks(0, 1)) >= 3
    assert all(-0.3 <= t <= 0.7 for t in ticks(-0.3, 0.7))
