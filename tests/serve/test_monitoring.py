"""What the server knows about its searches: history, probes, the page /monitoring, metrics, and the alert rules that ask for them."""

import json
import time
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mmtune.data.shards.dataset import open_data
from mmtune.index.collection import Collection
from mmtune.index.monitoring.gate_queries import read_gate_queries, store_gate_queries
from mmtune.index.monitoring.probe_log import last_probe, run_probe
from mmtune.index.monitoring.traffic_counts import total
from mmtune.index.monitoring.traffic_history import TrafficHistory
from tests.serve.test_rest import refused, wait_ready
from tests.support.corpora import packed
from tests.support.serve_helpers import BEARER, TOKEN, client, collection, copy_of, picture

ALERTS = Path(__file__).parents[2] / "deploy/alerts.yaml"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return collection(tmp_path_factory)


@pytest.fixture
def path(shelf, tmp_path):
    return copy_of(shelf, tmp_path)


def test_searches_are_counted_by_version_and_kind(path):
    with Collection(path) as coll:
        rows = open_data(packed(path.parent / "held", 24, 1))
        store_gate_queries(coll.layout, coll.open("v1"), rows, "held")
    begin = time.time()
    with client(path) as web:
        wait_ready(web)
        for n in range(12):
            assert web.post("/search", json={"text": f"query {n}", "k": 3}).status_code == 200
        web.post("/search", json={"text": "x", "version": "v2"})
        web.post("/search", json={"text": "x", "filter": "group = 'nothing'"})
        web.post("/search", json={"text": "red", "hybrid": True})
        web.post("/search", files={"image": ("x.png", picture("green"))})
        web.post("/search", json={"item": "0-000"})
        refused(web.post("/search", json={"item": "unknown"}), 404)
        web.service.traffic.flush()
        before = TrafficHistory(path).read()
        web.post("/search", json={"text": "the last one is written when the server stops"})
    counts = TrafficHistory(path).read()
    assert sum(c.searches for c in before) == 17 and sum(c.searches for c in counts) == 18
    by = {}
    for c in counts:
        by[c.key.version, c.key.by] = by.get((c.key.version, c.key.by), 0) + c.searches
    assert by == {("v1", "text"): 15, ("v2", "text"): 1, ("v1", "image"): 1, ("v1", "item"): 1, ("v1", ""): 0}
    whole = total(counts)
    assert whole.empty == 1 and whole.refused == 1 and whole.errors == 0
    assert sum(whole.latency.values()) == 18
    assert sum(whole.scores.values()) == 16  # neither the empty nor the hybrid one
    assert all(begin - 300 <= c.key.start <= time.time() for c in counts)
    # features: sums of the queries' embeddings under the kernel of the gate's queries, of at least five queries at a time
    with Collection(path) as coll:
        gate = read_gate_queries(coll.layout, "v1").samples["text"]
        texts = [*(f"query {n}" for n in range(12)), "x", "red"]
        expected = gate.features_of(coll.open("v1").encode("text", texts)).sum(0)
    summed = [c for c in before if c.features is not None]
    assert [(c.key.by, c.embedded, c.key.reference) for c in summed] == [("text", 14, gate.id)]
    assert np.abs(summed[0].features - expected).max() < 0.01
    # nothing that was searched for, no id
    for file in (path / "history").iterdir():
        text = file.read_text()
        assert not any(word in text for word in ("query", "unknown", "0-000", "nothing", "testclient"))


def test_no_history_if_it_is_turned_off(path):
    with client(path, history=False) as web:
        wait_ready(web)
        assert web.post("/search", json={"text": "red"}).status_code == 200
    assert not (path / "history").exists()


def test_an_error_of_the_server_is_counted(path, monkeypatch):
    with client(path) as web:
        wait_ready(web)
        web.post("/search", json={"text": "x"})
        monkeypatch.setattr(type(web.service), "_answer", lambda *_: 1 / 0)
        assert web.post("/search", json={"text": "x"}).status_code == 500
    assert total(TrafficHistory(path).read()).errors == 1


def test_a_full_disk_costs_no_search_and_no_count(path, monkeypatch, caplog):
    with client(path) as web:
        wait_ready(web)
        real = TrafficHistory.append
        monkeypatch.setattr(TrafficHistory, "append", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        for _ in range(3):
            assert web.post("/search", json={"text": "x"}).status_code == 200
            web.service.traffic.flush()
        monkeypatch.setattr(TrafficHistory, "append", real)
        web.service.traffic.flush()
    assert sum(c.searches for c in TrafficHistory(path).read()) == 3


def test_the_server_probes_and_reports(path, monkeypatch):
    from mmtune.serve import traffic_watch

    monkeypatch.setattr(traffic_watch, "FLUSH_SECONDS", 0.05)
    with client(path, probe=0.1, token=TOKEN) as web:
        web.headers.update(BEARER)
        wait_ready(web)
        end = time.monotonic() + 120
        while (line := last_probe(path)) is None:
            assert time.monotonic() < end
            time.sleep(0.05)
        families = {f.name: f for f in text_string_to_metric_families(web.get("/metrics").text)}
        (ok,) = families["mmtune_probe_ok"].samples
        assert ok.value == 1 and ok.labels == {"version": "v1"}
        recall = {
            s.labels["index"]: s.value for s in families["mmtune_probe_recall"].samples if s.labels["bound"] == "estimate"
        }
        assert recall == {m: i["recall"] for m, i in line["indexes"].items()} and set(recall) == {"image", "audio"}
        # a failed probe is reported, and /ready does not change
        store = web.service.collection.open("v1").stores["image"]
        ids = store.ids()
        store.upsert(ids, np.roll(store.fetch(ids), 1, axis=0), [{} for _ in ids])
        end = time.monotonic() + 120
        while last_probe(path)["indexes"]["image"]["ok"]:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert 'mmtune_probe_ok{version="v1"} 0.0' in web.get("/metrics").text
        assert web.get("/ready").status_code == 200
        report = web.get("/monitoring/report").json()
        (line,) = [x for x in report["lines"] if x["name"] == "recall of the index"]
        assert report["verdict"] == line["verdict"] == "attention" and "the image index finds 0." in line["reason"]
        assert str(path.parent) not in json.dumps(report) and "`mmtune index verify shelf`" in line["action"]


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data


def test_the_page_is_for_the_admin_and_has_no_scripts(path):
    with client(path, token=TOKEN) as web:
        assert web.get("/monitoring").status_code == 401 and web.get("/monitoring/report").status_code == 401
        found = web.get("/monitoring", headers=BEARER)
        assert found.status_code == 200 and found.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in found.headers["content-security-policy"]
        page = Page(found.text)
        assert "Nothing to say yet" in page.words and "recall of the index" in page.words.lower()
        assert not [t for t, a in page.tags if t in ("script", "img", "link") or any(k.startswith("on") for k in a)]
    from mmtune.serve.auth import required_role

    assert required_role("GET", "/monitoring") == required_role("GET", "/monitoring/report") == "admin"


def metric_names(text: str) -> dict[str, set[str]]:
    """{name of a series that the server exposes: names of its labels}."""
    ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    out = {}
    for family in text_string_to_metric_families(text):
        labels = {label for s in family.samples for label in s.labels}
        out |= {family.name + end: labels for end in ends[family.type]}
    return out


def selectors(node) -> list:
    """All vector selectors of a parsed PromQL expression."""
    found = [node] if isinstance(node, promql_parser.VectorSelector) else []
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        child = getattr(node, name, None)
        found += selectors(child) if child is not None else []
    args = getattr(node, "args", None)
    return found + [s for child in (args if isinstance(args, list) else []) for s in selectors(child)]


def test_the_alerts_ask_for_metrics_that_the_server_exposes(path):
    with Collection(path) as coll:
        store_gate_queries(coll.layout, coll.open("v1"), open_data(packed(path.parent / "held", 24, 1)))
        history = TrafficHistory(path)
        gate = read_gate_queries(coll.layout, "v1").samples["text"]
        from tests.index.monitoring.test_query_drift import traffic

        rows = traffic(np.random.default_rng(0), gate_like(gate))
        now = time.time()
        for n, c in enumerate(rows):
            c.key = type(c.key)(int(now - 80_000 + 300 * (n // 2)), "v1", "text", gate.id if c.features is not None else "")
        history.append(rows, now)
        assert run_probe(coll.layout, coll.catalog, coll.pool).ok
    with client(path) as web:
        wait_ready(web)
        web.post("/search", json={"text": "x"})
        web.post("/search", json={"text": "x", "filter": "group = 'nothing'"})
        web.post("/search", json={})
        exposed = metric_names(web.get("/metrics").text)
    assert exposed["mmtune_query_drift"] == {"version", "by", "of", "bound"}
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert len(rules) >= 12 and len({r["alert"] for r in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in ("page", "warn") and rule["annotations"]["summary"]
        asked = selectors(promql_parser.parse(rule["expr"]))
        assert asked, rule["alert"]
        for selector in asked:
            if selector.name == "up":
                continue
            assert selector.name in exposed, (rule["alert"], selector.name)
            for matcher in selector.matchers.matchers:
                assert matcher.name in exposed[selector.name], (rule["alert"], matcher.name)


def gate_like(gate):
    """The gate's features for vectors of the width that the tests' traffic has."""
    from mmtune.index.monitoring.gate_queries import GateSample, kernel_frequencies
    from tests.index.monitoring.test_query_drift import draw

    vectors, scores = draw(np.random.default_rng(1), 100)
    return GateSample(scores, gate.features, kernel_frequencies(vectors), gate.id)


def test_the_time_of_a_probe_is_unix_time(path):
    with Collection(path) as coll:
        line = run_probe(coll.layout, coll.catalog, coll.pool)
    assert abs(datetime.fromisoformat(line.at).timestamp() - time.time()) < 60
