"""REST over the real application and a real collection: answers, limits, refusals, tokens, paths and URLs, upserts, cutover."""

import base64
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
from pydantic import TypeAdapter

from mmtune import modalities
from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError, Rejected
from mmtune.index.collection import Collection
from mmtune.index.query.rerank import load_rerank
from mmtune.runtime.files import read_jsonl
from mmtune.serve.request import FORM, JSON
from mmtune.serve.schemas import (
    ErrorDocument,
    ItemDocument,
    LimitsDocument,
    ReadyDocument,
    SearchDocument,
    SearchFields,
    VersionsDocument,
)
from mmtune.serve.settings import Settings
from tests.support.serve_helpers import BEARER, LOCAL, TOKEN, client, collection, copy_of, picture, sound

SMALL = {"max_pixels": 10_000, "max_seconds": 2.0, "max_chars": 100}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return collection(tmp_path_factory)


@pytest.fixture(scope="module")
def web(shelf):
    """One application for the tests that change nothing."""
    with client(shelf, max_bytes=300_000, max_k=20, values=SMALL) as found:
        wait_ready(found)
        yield found


def wait_ready(web, version=None):
    for _ in range(600):
        found = web.get("/ready")
        if found.status_code == 200 and version in (None, found.json()["version"]):
            return
        time.sleep(0.05)
    raise AssertionError(found.text)


def refused(response, status, *words):
    error = response.json()["error"]
    assert response.status_code == status, response.text
    assert error["code"] and all(w in error["message"] for w in words), error
    return error


# --- answers ---------------------------------------------------------------------------------------------------------


def test_every_way_to_ask_gives_what_the_collection_gives(shelf, web):
    with Collection(shelf) as c:
        five, coded = {"k": "5"}, base64.b64encode(picture()).decode()
        see, hear = {"image": picture()}, {"audio": sound()}
        ways = {
            "words as JSON": (web.post("/search", json={"text": "a red square", "k": 5}), {"text": "a red square"}),
            "words in a form": (web.post("/search", data={"text": "a red square", "k": "5"}), {}),
            "a picture's field": (web.post("/search", files={"image": ("x", picture())}, data=five), see),
            "a picture's ending": (web.post("/search", files={"file": ("x.PNG", picture())}, data=five), see),
            "a sound's field": (web.post("/search", files={"audio": ("x", sound())}, data=five), hear),
            "a sound's ending": (web.post("/search", files={"file": ("x.wav", sound())}, data=five), hear),
            "base64": (web.post("/search", json={"image": {"base64": coded}, "k": 5}), see),
        }
        refused(ways.pop("words in a form")[0], 415)  # urlencoded, not multipart
        for way, (found, query) in ways.items():
            assert found.status_code == 200, (way, found.text)
            document, wanted = found.json(), c.search(k=5, **query)
            assert document["version"] == "v1" and document["fingerprint"] == wanted.fingerprint, way
            assert [r["id"] for r in document["results"]] == wanted.ids, way
            assert [r["score"] for r in document["results"]] == pytest.approx([r["score"] for r in wanted.results], abs=1e-5)
            assert document["query"] == wanted.query and document["results"][0]["meta"] == wanted.results[0]["meta"]
        item = web.post("/search", json={"item": "0-003", "k": 4}).json()
        assert [r["id"] for r in item["results"]] == c.search(item="0-003", k=4).ids and len(item["results"]) == 4
        words = web.post("/search", files={"text": (None, "a red square")}, data={"k": "5"})
        assert [r["id"] for r in words.json()["results"]] == c.search(text="a red square", k=5).ids


def test_a_server_reranks_every_search(shelf):
    with Collection(shelf) as c, client(shelf, rerank=load_rerank("tiny:all@3", 8)) as web:
        wait_ready(web)
        found = web.post("/search", json={"text": "a red square", "k": 5, "target": ["image"]}).json()["results"]
        plain = c.search(text="a red square", k=5, target=["image"])
        expected = c.search(text="a red square", k=5, target=["image"], rerank="tiny:all@3", rerank_depth=8)
        assert [r["id"] for r in found] == expected.ids != plain.ids
        assert [r["score"] for r in found] == pytest.approx([r.score for r in expected.results], abs=1e-5)


def test_versions_filters_and_targets(shelf, web):
    with Collection(shelf) as c:
        staged = web.post("/search", json={"text": "a red square", "version": "staged"}).json()
        assert (
            staged["version"] == "v2"
            and [r["id"] for r in staged["results"]] == c.search(text="a red square", version="v2").ids
        )
        assert web.post("/search", json={"text": "x", "version": "live"}).json()["version"] == "v1"
        assert web.post("/search", json={"text": "x", "version": "v2"}).json()["version"] == "v2"
        dark = web.post("/search", json={"text": "a red square", "filter": "shade = 'dark'"}).json()["results"]
        assert dark and {r["meta"]["shade"] for r in dark} == {"dark"}
        found = web.post("/search", json={"text": "a red square", "target": ["audio"]}).json()["results"]
        assert {r["modality"] for r in found} == {"audio"}
        each = web.post("/search", json={"text": "a red square", "group_by": "group", "k": 3}).json()["results"]
        assert [r["id"] for r in each] == c.search(text="a red square", group_by="group", k=3).ids
        old = web.post("/search", json={"text": "a red square", "per": "group", "k": 3}).json()["results"]
        assert old == each  # the earlier name of group_by
    refused(web.post("/search", json={"text": "x", "group_by": "colour"}), 422, "colour")
    refused(web.post("/search", json={"text": "x", "group_by": 3}), 422, "group_by")
    refused(web.post("/search", json={"text": "x", "per": 3}), 422, "group_by")
    refused(web.post("/search", json={"text": "x", "per": "group", "group_by": "group"}), 422, "group_by", "twice")
    refused(web.post("/search", json={"text": "x", "version": "v9"}), 404, "v9")
    refused(web.post("/search", json={"text": "x", "version": "../../etc"}), 404)
    refused(web.post("/search", json={"text": "x", "filter": "shade ="}), 422, "filter")
    refused(web.post("/search", json={"text": "x", "target": ["depth"]}), 422, "target")


def test_hybrid_searches_by_an_item_and_with_a_target(shelf, web):
    with Collection(shelf) as c:
        for ask in ({"item": "0-003"}, {"item": "0-003", "target": ["image"]}, {"text": "a red square", "target": ["image"]}):
            found = web.post("/search", json={**ask, "hybrid": True, "k": 6}).json()["results"]
            assert [r["id"] for r in found] == c.search(**ask, hybrid=True, k=6).ids
            assert found != web.post("/search", json={**ask, "k": 6}).json()["results"]


def test_shadow_reads_a_bounded_part_of_the_logs(shelf, tmp_path, monkeypatch):
    from mmtune.serve import service

    path = copy_of(shelf, tmp_path)
    line = {"live": "v1", "staged": "v2", "k": 3, "query": "q", "moved": None, "top": True, "empty_live": False}
    line |= {"empty_staged": False, "seconds_live": 0.1, "seconds_staged": 0.1}
    lines = [json.dumps({**line, "overlap": float(n >= 900)}) for n in range(1000)]
    (path / "shadow.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(service, "REPORT_BYTES", 50 * (len(lines[0]) + 1))
    with client(path) as web:
        told = web.get("/shadow?version=v2").json()
        assert (told["searches"], told["overlap"]) == (50, 1.0)
    with Collection(path) as c:
        assert (c.shadow_report("v2").searches, c.shadow_report("v2").overlap) == (1000, 0.1)


def test_an_item_and_its_values(web):
    found = web.get("/items/0-003").json()
    assert found["id"] == "0-003" and found["group"] == "yellow" and set(found["values"]) == {"image", "audio", "text"}
    kinds = {m: web.get(url).headers["content-type"] for m, url in found["values"].items()}
    assert kinds == {"image": "image/png", "audio": "audio/flac", "text": "text/plain; charset=utf-8"}
    value = web.get(found["values"]["image"])
    assert PIL.Image.open(io.BytesIO(value.content)).size == (40, 40)
    assert value.headers["x-content-type-options"] == "nosniff" and "sandbox" in value.headers["content-security-policy"]
    refused(web.get("/items/nothing"), 404, "nothing")
    refused(web.get("/items/0-003/value/depth"), 404)
    refused(web.get("/nowhere"), 404)
    refused(web.get("/search"), 405)


def test_what_openapi_tells_is_what_there_is(web):
    told = web.get("/openapi.json").json()
    assert {
        "/search",
        "/items/{id}",
        "/items/{id}/value/{modality}",
        "/feedback",
        "/health",
        "/ready",
        "/metrics",
        "/versions",
    } <= set(told["paths"])
    form = told["paths"]["/search"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert set(modalities.names()) <= set(form) and form["image"]["format"] == "binary"
    assert web.get("/health").json() == {"status": "ok"}
    versions = web.get("/versions").json()
    assert (
        versions["live"] == "v1" and versions["staged"] == "v2" and [v["version"] for v in versions["versions"]] == ["v1", "v2"]
    )


def test_openapi_is_made_from_the_models_and_answers_match_it(web):
    told = web.get("/openapi.json").json()
    search = told["paths"]["/search"]["post"]
    bodies = [search["requestBody"]["content"][kind]["schema"]["properties"] for kind in (JSON, FORM)]
    for body in bodies:
        assert set(SearchFields.model_fields) <= set(body) and body["k"]["default"] == 10
    assert bodies[0]["image"]["required"] == ["base64"] and bodies[0]["text"] == bodies[1]["text"] == {"type": "string"}
    assert "file" in bodies[1] and "file" not in bodies[0]
    kinds = told["paths"]["/feedback"]["post"]["requestBody"]["content"][JSON]["schema"]["properties"]["kind"]["enum"]
    assert kinds == ["click", "match", "not_a_match"]
    for status, name in (("200", "SearchDocument"), ("4XX", "ErrorDocument")):
        assert search["responses"][status]["content"][JSON]["schema"]["$ref"].endswith("/" + name)
    answers = {
        SearchDocument: web.post("/search", json={"text": "a red square"}),
        ItemDocument: web.get("/items/0-003"),
        VersionsDocument: web.get("/versions"),
        ReadyDocument: web.get("/ready"),
        LimitsDocument: web.get("/limits"),
        ErrorDocument: web.get("/items/nothing"),
    }
    for document, answer in answers.items():
        fields = {**document.__annotations__}
        assert set(answer.json()) == set(fields), document
        TypeAdapter(document).validate_python(answer.json(), strict=True)


def test_metrics_count_what_happened(web):
    def read():
        lines = web.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    before = read()
    web.post("/search", json={"text": "counted once"})
    web.post("/search", json={"text": "x", "k": 1000})
    web.get("/nobody/made/this/route")
    after = read()

    def gained(name):
        return after.get(name, 0) - before.get(name, 0)

    assert gained('mmtune_searches_total{by="text",version="v1"}') == 1
    assert gained('mmtune_requests_total{route="/search",status="200"}') == 1
    assert gained('mmtune_top_score_count{version="v1"}') == 1
    assert gained('mmtune_requests_total{route="/search",status="422"}') == 1
    assert gained('mmtune_requests_total{route="other",status="404"}') == 1
    assert gained('mmtune_refused_total{code="invalid"}') == 1 and gained("mmtune_batch_size_count") == 1
    assert after["mmtune_items"] == 24 and any(k.startswith("mmtune_live{") and 'version="v1"' in k for k in after)
    assert not any("nobody" in k for k in after)


def test_feedback_is_kept(shelf, tmp_path):
    path = copy_of(shelf, tmp_path)
    with client(path) as web:
        answer = web.post("/search", files={"image": ("x.png", picture())}).json()
        event = {
            "query": answer["query"],
            "item": answer["results"][0]["id"],
            "kind": "not_a_match",
            "version": "v1",
            "rank": 1,
        }
        assert web.post("/feedback", json=event).status_code == 201
        refused(web.post("/feedback", json={**event, "kind": "shrug"}), 422, "kind")
        refused(web.post("/feedback", json={**event, "item": "nothing"}), 404)
        refused(web.post("/feedback", json={**event, "path": "/etc/passwd"}), 422, "path")
        refused(web.post("/feedback", json={**event, "query": "x" * 5000}), 422, "bytes")
        refused(web.post("/feedback", content=json.dumps(event), headers={"Content-Type": "text/plain"}), 415)
    with Collection(path) as c:
        (kept,) = c.feedback_log.events()
        assert (kept["item"], kept["kind"], kept["modality"]) == (event["item"], "not_a_match", "image")
        assert c.export_feedback(tmp_path / "out")["verdicts"] == 1


def test_interleaved_answers_and_their_clicks_give_a_preference_and_the_next_rounds_data(shelf, tmp_path):
    path, shown, words = copy_of(shelf, tmp_path), {"v2": 0, "v1": 0}, ["something red", "a dark one", "blue light", "green"]
    liked = []
    with client(path) as web:
        for w in words:
            answer = web.post("/search", json={"text": w, "k": 6, "interleave": "staged"}).json()
            assert answer["version"] == "v1|v2" and len({r["id"] for r in answer["results"]}) == 6
            for r in answer["results"]:
                shown[r["version"]] += 1
                assert r["version"] == {"live": "v1", "staged": "v2"}[r["team"]] and r["values"]
            liked.append(next(r["id"] for r in answer["results"] if r["team"] == "staged"))
            event = {"query": answer["query"], "item": liked[-1], "kind": "click"}
            assert web.post("/feedback", json=event).status_code == 201
        assert shown["v1"] >= 8 and shown["v2"] >= 8  # in turn
        no = web.post("/search", json={"text": words[0], "k": 6}).json()
        wrong = next(r["id"] for r in reversed(no["results"]) if r["id"] not in liked)
        assert web.post("/feedback", json={"query": no["query"], "item": wrong, "kind": "not_a_match"}).is_success
        told = web.get("/shadow").json()["preference"]
        assert (told["impressions"], told["staged"], told["live"]) == (4, 4, 0) and told["interval"][0] > 0.5
        assert told["prefers"] == "staged" and web.get("/shadow?version=v2").json()["preference"] == told
        refused(web.get("/shadow?version=v9"), 404)
        refused(web.post("/search", json={"text": "x", "interleave": "v1"}), 422, "v1")
        refused(web.post("/search", json={"text": "x", "interleave": "v9"}), 404, "v9")
        refused(web.post("/search", json={"text": "x", "interleave": "v2", "version": "v2"}), 422, "interleave")
        refused(web.post("/search", json={"text": "x", "interleave": 3}), 422, "interleave")
    with Collection(path) as c:
        done = c.export_feedback(tmp_path / "out")
        assert done["unused"] == 0
        lines = read_jsonl(done["judgments"])
        pairs = open_data(done["pairs"])
        asked = {pairs.read(i, "text").decode(): n for i, n in enumerate(pairs.ids) if n.startswith("q-text-")}
        said = {(x["query_id"], x["item_id"]): x["verdict"] for x in lines}
        yes = [pair for pair, verdict in said.items() if verdict == "positive"]
        assert said[no["query"], wrong] == "negative" and wrong in pairs.ids
        assert set(asked) == set(words)
        for query, item in yes:
            at = pairs.ids.index(query)
            assert pairs.read(at, "image") == c.value(item, "image")
            assert pairs.groups[at] == c.catalog.items([item])[item].group


# --- limits ----------------------------------------------------------------------------------------------------------


def test_limits_are_refused_with_what_they_are(web):
    assert refused(web.post("/search", json={"text": "x", "k": 21}), 422, "k")["limit"] == 20
    for k in (0, -1, "many", 2.5, True, [1]):
        refused(web.post("/search", json={"text": "x", "k": k}), 422, "k")
    assert refused(web.post("/search", json={"text": "x", "filter": "a" * 1001}), 422, "filter")["limit"] == 1000
    assert refused(web.post("/search", files={"file": ("x.png", bytes(400_000))}), 413)["limit"] == 300_000
    refused(web.post("/search", files={"image": ("x.png", picture(size=(101, 100)))}), 422, "101 x 100", "10000")
    refused(web.post("/search", files={"audio": ("x.wav", sound(seconds=2.5))}), 422, "2.5 s", "limit 2")
    refused(web.post("/search", json={"text": "x" * 101}), 422, "101", "limit 100")
    told = web.get("/limits").json()
    assert told["max_k"] == 20 and told["values"]["image"] == {"max_pixels": 10_000}


def test_a_body_without_a_length_is_stopped_at_the_byte_that_is_too_many(web):
    sent = 0

    def endless():
        nonlocal sent
        while True:
            sent += 10_000
            yield b"x" * 10_000

    def bounded():
        for chunk in endless():
            yield chunk
            if sent > 3_000_000:
                return

    head = {"Content-Type": "application/json"}
    assert refused(web.post("/search", content=bounded(), headers=head), 413)["limit"] == 300_000
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    assert (
        refused(web.post("/search", content=(c for c in [start, *[b"y" * 10_000] * 40]), headers=form), 413)["limit"] == 300_000
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"[" * 100_000,
        b'{"text": NaN}',
        b'{"text": 1}',
        b'{"text": ["a"]}',
        b'{"text": ""}',
        b'{"text": "  "}',
        b'{"k": 3}',
        b'{"text": "a", "item": "b"}',
        b'{"text": "a", "image": {"base64": "QQ=="}}',
        b'{"image": {"base64": "*"}}',
        b'{"image": {"base64": 5}}',
        b'{"text": "a", "wheer": "b"}',
        b'{"text": "a", "version": 3}',
        b'{"text": "a", "hybrid": "maybe"}',
        b'{"item": {"a": 1}}',
        b"\xff\xfe",
        b'{"text": "\\ud800"',
        b'{"item": ""}',
    ],
)
def test_broken_bodies_are_422_in_one_line(web, body):
    error = refused(web.post("/search", content=body, headers={"Content-Type": "application/json"}), 422)
    assert "\n" not in error["message"] and "Traceback" not in error["message"]


def test_broken_forms_and_values(web):
    for form in (b"", b"--x", b"garbage", b"--x\r\n\r\n\r\n--x--"):
        found = web.post("/search", content=form, headers={"Content-Type": "multipart/form-data; boundary=x"})
        assert found.status_code in (400, 422), found.text
    assert web.post("/search", content=b"", headers={"Content-Type": "multipart/form-data"}).status_code in (400, 422)
    reason = refused(web.post("/search", files={"image": ("x.png", b"not a picture")}), 422, "image", "not a readable picture")
    assert reason["field"] == "image"
    cut = picture(size=(90, 90))[:200]  # a good header, and then nothing
    refused(web.post("/search", files={"image": ("x.png", cut)}), 422, "not a readable picture")
    refused(web.post("/search", files={"audio": ("x.wav", sound()[:20])}), 422, "not a readable sound")
    refused(web.post("/search", files={"image": ("x.png", b"")}), 422)
    refused(web.post("/search", files={"file": ("x.exe", picture())}), 422, "exe")
    refused(web.post("/search", files={"file": ("noending", picture())}), 422)
    refused(web.post("/search", files={"depth": ("x.png", picture())}), 422, "depth")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    refused(web.post("/search", files={"image": ("x.eps", eps)}), 422, "not a readable picture")
    with pytest.raises(Rejected):
        modalities.get("image").check_header(eps)


@pytest.mark.parametrize(
    "body",
    [
        b'{"item": "\\ud800"}',
        b'{"text": "a", "version": "\\ud800"}',
        b'{"text": "a", "filter": "a = \'\\ud800\'"}',
        b'{"text": "a", "\\ud800": 1}',
        b'{"text": "a", "target": ["\\ud800"]}',
        b'{"text": "a", "interleave": "\\ud800"}',
        b'{"text": "a", "k": ' + b"9" * 5000 + b"}",
        b'{"text": "a", "k": 1e400}',
        b'{"k": ' + b"[" * 50_000 + b"}",
        b'{"text": "a", "filter": "' + b"(" * 450 + b"a = 1" + b")" * 450 + b'"}',
        b'{"text": "a", "filter": "' + b"not " * 240 + b'a = 1"}',
        b'{"text": "a", "filter": "\\u0000"}',
    ],
)
def test_what_is_no_text_and_no_number_is_422(web, body):
    error = refused(web.post("/search", content=body, headers={"Content-Type": "application/json"}), 422)
    assert "\n" not in error["message"]


def test_feedback_and_items_with_halves_of_characters_are_422(shelf, tmp_path):
    with client(copy_of(shelf, tmp_path), token=TOKEN) as web:
        web.headers.update(BEARER)
        head = {"Content-Type": "application/json"} | BEARER
        for event in (
            b'{"query": "\\ud800", "item": "0-000", "kind": "click"}',
            b'{"query": "q", "item": "\\ud800", "kind": "click"}',
        ):
            refused(web.post("/feedback", content=event, headers=head), 422)
        for item in (b'{"text": "x", "group": "\\ud800"}', b'{"text": "x", "meta": {"a": "\\ud800"}}'):
            refused(web.put("/items/half", content=item, headers=head), 422)
        assert web.put("/items/half", content=b'{"text": "\\ud800 x"}', headers=head).status_code == 201  # words are words
        assert web.get("/items/half/value/text").text == "? x"


def test_an_id_writes_no_header(web):
    for name in ("a%0d%0aX-Evil:%20yes", "a%00b", "%ed%a0%80", "%ff%fe", "x" * 30_000):
        found = web.get(f"/items/{name}")
        assert refused(found, 404)["code"] in ("no_item", "not_found") and "x-evil" not in found.headers
    found = web.post("/search", files={"file": ("a\r\nX-Evil: yes.png", picture())})
    assert found.status_code in (200, 400, 422) and "x-evil" not in found.headers


def test_a_picture_that_claims_to_be_huge_costs_nothing(web):
    """A header of 10^9 pixels, a GIF of many frames: refused, or read, at once."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", 40_000, 25_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    refused(web.post("/search", files={"image": ("x.png", bomb)}), 422, "too large")
    head = picture("red", (8, 8), "GIF")
    frame = b"\x21\xf9\x04\x00\x00\x00\x00\x00\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x44\x01\x00"
    begin = time.process_time()
    found = web.post("/search", files={"image": ("x.gif", head[:-1] + frame * 12_000 + b";")})
    assert found.status_code == 200 and time.process_time() - begin < 1.0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_every_picture_format_that_is_packed_may_be_asked_with(web, kind):
    assert web.post("/search", files={"image": ("x", picture(kind=kind))}).status_code == 200
    assert modalities.get("image").media_type(picture(kind=kind)).startswith("image/")


def test_a_header_that_lies_about_a_sound_costs_nothing():
    kind = modalities.get("audio")
    wave = bytearray(sound(seconds=1.0, rate=8000))
    kind.check_header(bytes(wave), max_seconds=2.0)
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, np.zeros((600_000, 8), np.float32), 600_000, format="FLAC", subtype="PCM_16")  # one second, small file
    with pytest.raises(Rejected, match="too large"):
        kind.check_header(out.getvalue(), max_seconds=2.0)


def test_large_pictures_are_decoded_one_after_the_other(shelf):
    """Small files, large pictures: together they never take more memory than they may; small ones do not wait for them."""
    big = picture(size=(1000, 900))
    with client(shelf, max_decoded=12_000_000) as web:
        wait_ready(web)
        budget, seen = web.service.memory, []
        decode = web.service._query

        def look(asked):
            seen.append((len(asked.data), budget.used))
            time.sleep(0.05)
            return decode(asked)

        web.service._query = look
        with ThreadPoolExecutor(6) as pool:
            sent = [big] * 5 + [picture()]
            asks = [pool.submit(web.post, "/search", files={"image": ("x.png", data)}) for data in sent]
            assert [a.result().status_code for a in asks] == [200] * 6
        # the small one's 40 x 40 x 12 bytes count too while it is asked beside a large one
        alone = [used - 19_200 * (used > 10_800_000) for size, used in seen if size == len(big)]
        assert alone == [10_800_000] * 5 and budget.used == 0


def test_more_at_once_than_there_are_places_is_429(shelf):
    with client(shelf, max_concurrent=2) as web:
        wait_ready(web)
        opened = web.service.collection.open()
        go = threading.Event()
        encode_contents = type(opened).encode_contents

        def slow(modality, contents):
            assert go.wait(60)
            return encode_contents(opened, modality, contents)

        opened.encode_contents = slow
        with ThreadPoolExecutor(2) as pool:
            first = [pool.submit(web.post, "/search", json={"text": f"slow {n}"}) for n in range(2)]
            while "mmtune_under_way 2.0" not in web.get("/metrics").text:
                assert not any(f.done() for f in first)
            over = web.post("/search", json={"text": "third"})
            assert refused(over, 429)["limit"] == 2 and over.headers["retry-after"] == "1"
            assert web.get("/health").status_code == 200  # still answers
            go.set()
            assert [f.result().status_code for f in first] == [200, 200]
        del opened.encode_contents
        assert web.post("/search", json={"text": "afterwards"}).status_code == 200


def test_a_caller_who_sends_too_slowly_is_408(shelf):
    import asyncio

    import httpx

    with client(shelf, body_seconds=0.2) as web:

        async def ask():
            async def slowly():
                yield b'{"text":'
                await asyncio.sleep(1.5)
                yield b'"x"}'

            transport = httpx.ASGITransport(web.app)
            async with httpx.AsyncClient(transport=transport, base_url=LOCAL) as c:
                return await c.post("/search", content=slowly(), headers={"Content-Type": "application/json"})

        refused(asyncio.run(ask()), 408, "0.2 s")


# --- who may ---------------------------------------------------------------------------------------------------------


def test_other_addresses_need_a_token_to_start():
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org"):
        with pytest.raises(DataError, match="--token"):
            Settings(host=host)
        assert Settings(host=host, token=TOKEN).loopback is False
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert Settings(host=host).loopback
    for bad in ("", "  ", "naïve", "two\nlines"):
        with pytest.raises(DataError):
            Settings(token=bad)


def test_writes_need_the_token(shelf, tmp_path):
    path = copy_of(shelf, tmp_path)
    with client(path) as web:  # started without one: nobody writes
        refused(web.put("/items/new", json={"text": "x"}, headers=BEARER), 403, "--token")
        refused(web.delete("/items/0-000"), 403, "--token")
    with client(path, token=TOKEN) as web:
        refused(web.post("/search", json={"text": "x"}), 401)  # a token that was given is always asked for
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Basic " + TOKEN}):
            refused(web.put("/items/new", json={"text": "x"}, headers=headers), 401)
            refused(web.delete("/items/0-000", headers=headers), 401)
        assert web.get("/items/0-000", headers=BEARER).status_code == 200
        assert web.get("/items/new", headers=BEARER).status_code == 404


@pytest.mark.parametrize("where", ["host", "name", "proxy", "nginx"])
def test_whoever_is_not_this_machine_needs_the_token_for_everything(shelf, where):
    options = {"token": TOKEN} | ({"host": "0.0.0.0"} if where == "host" else {})
    # nginx's default says the address of the server itself, and adds no header
    asks = {"name": {"Host": "evil.example"}, "proxy": {"X-Forwarded-For": "8.8.8.8"}, "nginx": {"Host": "127.0.0.1"}}
    asks = asks.get(where, {})
    with client(shelf, **options) as web:
        paths = ("/health", "/ready", "/metrics", "/versions", "/openapi.json", "/items/0-000", "/items/0-000/value/text", "/")
        for path in paths:
            found = refused(web.get(path, headers=asks), 401)
            assert found["code"] == "token"
            assert web.get(path, headers=asks | BEARER, follow_redirects=False).status_code in (200, 307, 503), path
        refused(web.post("/search", json={"text": "x"}, headers=asks), 401)
        assert web.post("/search", json={"text": "x"}, headers=asks | BEARER).status_code == 200
    if where not in ("host", "nginx"):
        with client(shelf) as web:  # and where there is no token, nobody from elsewhere gets in
            refused(web.post("/search", json={"text": "x"}, headers=asks), 403, "--token")


def test_a_browser_trades_the_token_for_a_cookie(shelf):
    with client(shelf, token=TOKEN, host="0.0.0.0") as web:
        sent = web.get("/", headers={"Accept": "text/html"}, follow_redirects=False)
        assert sent.status_code == 303 and sent.headers["location"] == "/login"
        assert web.get("/login").status_code == 200
        assert web.post("/login", data={"token": "wrong"}, follow_redirects=False).status_code == 401
        done = web.post("/login", data={"token": TOKEN}, follow_redirects=False)
        cookie = done.headers["set-cookie"]
        assert done.status_code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
        assert web.get("/versions").status_code == 200  # the client keeps the cookie
        web.cookies.clear()
        assert web.get("/versions", headers={"Cookie": "mmtune=" + TOKEN}).status_code == 401


def test_another_sites_page_may_not_ask(web):
    cross = {"Origin": "http://evil.example"}
    refused(web.post("/search", files={"image": ("x.png", picture())}, headers=cross), 403)
    refused(web.post("/feedback", json={}, headers=cross), 403)
    refused(web.get("/items/0-000", headers={"Origin": "null"}), 403)
    assert web.post("/search", json={"text": "x"}, headers={"Origin": LOCAL}).status_code == 200


# --- paths and URLs --------------------------------------------------------------------------------------------------


def test_no_path_and_no_url_of_a_caller_is_opened(shelf, web, tmp_path, monkeypatch):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    import builtins
    import pathlib
    import socket

    touched = []
    opened, read, connect = builtins.open, pathlib.Path.read_bytes, socket.socket.connect
    monkeypatch.setattr(builtins, "open", lambda p, *a, **k: (touched.append(str(p)), opened(p, *a, **k))[1])
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda p: (touched.append(str(p)), read(p))[1])
    monkeypatch.setattr(socket.socket, "connect", lambda s, a: (touched.append(str(a)), connect(s, a))[1])
    for place in (str(secret), f"file://{secret}", "http://127.0.0.1:9/x.png", "/etc/passwd", "..\\..\\x", "~/x"):
        refused(web.post("/search", json={"image": place}), 422, "does not open paths or URLs")
        refused(web.post("/search", data={"image": place}, files={"k": (None, "3")}), 422, "does not open paths or URLs")
        refused(web.post("/search", json={"image": {"path": place}}), 422)
        refused(web.post("/search", json={"image": {"base64": place}}), 422)
        refused(web.post("/search", files={"file": (place, b"x")}), 422)
        refused(web.post("/search", json={"item": place}), 404)
        assert web.post("/search", json={"text": place}).status_code == 200  # words like any
        assert web.get(f"/items/{place}").status_code == 404
        assert web.get(f"/items/{place}/value/image").status_code == 404
        assert web.get(f"/items/0-000/value/{place}").status_code == 404
    for path in (
        "/../../etc/passwd",
        "/items/..%2f..%2fetc%2fpasswd",
        "/items/0-000/value/..%2f..%2f..%2fetc%2fpasswd",
        "/%2e%2e/etc",
    ):
        assert web.get(path).status_code == 404
    assert not [t for t in touched if "secret" in t or "passwd" in t or "('127.0.0.1', 9)" in t], touched


def test_errors_name_no_path_of_this_machine(shelf, web):
    for found in (
        web.post("/search", json={"text": "x", "version": "v9"}),
        web.post("/search", json={"item": "nothing"}),
        web.post("/search", json={"text": "x", "filter": "a ="}),
        web.get("/items/x"),
    ):
        assert str(shelf.parent) not in found.text and "/" not in found.json()["error"]["message"], found.text


# --- changes ---------------------------------------------------------------------------------------------------------


def test_items_are_put_and_deleted_in_every_version(shelf, tmp_path):
    path = copy_of(shelf, tmp_path)
    with client(path, token=TOKEN, values=SMALL) as web:
        web.headers.update(BEARER)
        put = web.put(
            "/items/new/one",
            files={"image": ("x.png", picture("green"))},
            headers=BEARER,
            data={"group": "green", "meta": '{"shade": "odd", "price": 3}'},
        )
        assert put.status_code == 201 and put.json() == {"id": "new/one", "created": True, "changed": False, "behind": []}
        assert web.get("/items/new/one").json()["meta"] == {"shade": "odd", "price": 3}
        assert web.get("/items/new%2Fone/value/image").content == picture("green")
        for version in ("v1", "v2"):
            asked = {"version": version, "filter": "price <= 3", "k": "3"}
            found = web.post("/search", files={"image": ("x.png", picture("green"))}, data=asked).json()
            assert [r["id"] for r in found["results"]] == ["new/one"] and found["results"][0]["score"] > 0.999
        again = web.put("/items/new/one", files={"image": ("x.png", picture("blue"))}, headers=BEARER)
        assert again.status_code == 200 and again.json()["changed"] is True
        assert web.get("/items/new/one/value/image").content == picture("blue")
        words = web.put("/items/words", json={"text": "only words", "meta": {"a": None}}, headers=BEARER)
        assert words.status_code == 201
        assert web.delete("/items/new/one", headers=BEARER).json()["deleted"] is True
        refused(web.delete("/items/new/one", headers=BEARER), 404)
        assert web.get("/items/new/one").status_code == 404
        refused(
            web.put("/items/bad", files={"image": ("x.png", picture()[:60])}, headers=BEARER), 422, "not a readable picture"
        )
        refused(web.put("/items/bad", json={"image": "/etc/passwd"}, headers=BEARER), 422, "does not open paths")
        refused(web.put("/items/bad", json={"meta": {}}, headers=BEARER), 422)
        refused(web.put("/items/bad", json={"text": "x", "meta": [1]}, headers=BEARER), 422)
        refused(web.put("/items/bad", json={"text": "x", "price": 3}, headers=BEARER), 422, "price")
        refused(web.put("/items/" + "b" * 2000, json={"text": "x"}, headers=BEARER), 422, "1024")
        refused(web.put("/items/bad", files={"image": ("x.png", picture(size=(200, 200)))}, headers=BEARER), 422, "pixels")
        assert web.get("/items/bad").status_code == 404


def test_cutover_and_rollback_during_requests(shelf, tmp_path):
    """Eight clients while another process' worth of Collection promotes and rolls back: no error, never a mixed answer."""
    path = copy_of(shelf, tmp_path)
    with Collection(path) as c:
        prints = {v["version"]: v["fingerprint"] for v in c.versions()}
        right = {(v, w): c.search(text=w, version=v, k=5).ids for v in prints for w in ("a red square", "a blue square")}
    with client(path) as web, Collection(path) as c:
        wait_ready(web)
        stop, seen, wrong = threading.Event(), set(), []

        def ask(n):
            while not stop.is_set():
                words = ("a red square", "a blue square")[n % 2]
                found = web.post("/search", json={"text": words, "k": 5})
                document = found.json()
                if found.status_code != 200 or document["fingerprint"] != prints[document["version"]]:
                    wrong.append(found.text)
                elif [r["id"] for r in document["results"]] != right[document["version"], words]:
                    wrong.append(document)
                else:
                    seen.add((c_generation(), document["version"]))

        def c_generation():
            return c.layout.live()["generation"]

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for t in threads:
            t.start()
        for _ in range(2):
            c.promote("v2", force=True, why="a test")
            wait_ready(web, "v2")
            time.sleep(0.2)
            c.rollback("a test")
            wait_ready(web, "v1")
            time.sleep(0.2)
        stop.set()
        for t in threads:
            t.join(60)
        assert not wrong, wrong[:2]
        assert {v for _, v in seen} == {"v1", "v2"} and len({g for g, _ in seen}) >= 3


def test_nothing_live_yet_and_a_version_that_does_not_open(shelf, tmp_path):
    path = copy_of(shelf, tmp_path)
    (path / "live.json").unlink()
    with client(path) as web:
        assert refused(web.get("/ready"), 503)["code"] == "not_live"
        assert refused(web.post("/search", json={"text": "x"}), 503)["code"] == "not_live"
        assert web.get("/health").status_code == 200 and web.get("/items/0-000").status_code == 200
        assert web.post("/search", json={"text": "x", "version": "v1"}).status_code == 200
    path = copy_of(shelf, tmp_path / "second")
    weights = next((path / "models").glob("*/weights*")) if list((path / "models").glob("*/weights*")) else None
    weights = weights or next(p for p in (path / "models").rglob("*.safetensors"))
    for p in (path / "models").rglob(weights.name):
        data = bytearray(p.read_bytes())
        data[-1] ^= 0xFF
        p.write_bytes(data)
    with client(path) as web:
        error = refused(web.post("/search", json={"text": "x"}), 503)
        assert error["code"] == "not_open" and str(path) not in error["message"]
        assert refused(web.get("/ready"), 503)["code"] == "not_open"
        assert web.get("/versions").status_code == 200
