"""What an attacker would try, by the OWASP API Security Top 10 of 2023. docs/operating.md has the table; each row names a test here."""

import json
import re

import pytest

from mmtune.index.collection import Collection
from mmtune.serve.settings import Rates
from mmtune.serve.token_admin import add_token
from tests.serve.test_rest import refused, wait_ready
from tests.support.serve_helpers import client, collection, copy_of, picture

ROLES = ("search", "feedback", "write", "admin")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return collection(tmp_path_factory)


@pytest.fixture(scope="module")
def web(shelf, tmp_path_factory):
    """A server with a token of each role; `bearer[role]` are their headers."""
    root = tmp_path_factory.mktemp("owasp")
    file = root / "tokens.json"
    bearer = {role: {"Authorization": f"Bearer {add_token(file, role, role).token}"} for role in ROLES}
    with client(copy_of(shelf, root), tokens=file, rates=Rates(failures=1000), max_bytes=300_000, page=True) as found:
        found.headers.update(bearer["search"])
        wait_ready(found)
        found.bearer, found.file = bearer, file
        yield found


ESCAPES = [
    "../collection.json",
    "..%2f..%2fcollection.json",
    "%2e%2e/%2e%2e/live.json",
    "/etc/passwd",
    "0-000%2f..%2f0-001",
    "0-000%00",
    "' OR 1=1 --",
]


@pytest.mark.parametrize("id", ESCAPES)
def test_api1_an_id_reaches_items_only(web, id):
    for path in (f"/items/{id}", f"/items/{id}/value/text", f"/items/0-000/value/{id}"):
        found = web.get(path)
        assert found.status_code in (400, 404), (path, found.text)
        assert "root:" not in found.text and '"uid"' not in found.text
    found = web.post("/search", json={"item": id})
    assert found.status_code == 404 and "Traceback" not in found.text
    assert (
        web.post("/search", json={"text": "x", "filter": f"shade = '{id.replace(chr(39), chr(39) * 2)}'"}).json()["results"]
        == []
    )


def test_api2_only_a_whole_current_token_opens(web):
    token = web.bearer["admin"]["Authorization"].removeprefix("Bearer ")
    tried = [
        token[:-1],
        token.swapcase(),
        f"{token}x",
        token.replace("mmt_", "mmt__"),
        "null",
        "undefined",
        "Bearer",
        "a" * 5000,
    ]
    tried += [
        json.loads(web.file.read_text())["tokens"][3][k] for k in ("hash", "salt", "id")
    ]  # who reads the file gets no access
    for value in tried:
        assert web.get("/limits", headers={"Authorization": f"Bearer {value}"}).status_code == 401, value
    for headers in ({"Authorization": f"Basic {token}"}, {"Authorization": token}, {"Authorization": "", "X-Token": token}):
        assert web.get("/limits", headers=headers).status_code == 401, headers
    assert (
        web.get(f"/limits?token={token}&access_token={token}", headers={"Authorization": ""}).status_code == 401
    )  # not in URLs
    found = web.post("/login", data={"token": "x" * 20_000})
    assert found.status_code == 413


def test_api3_nobody_sets_or_reads_a_field_that_is_not_documented(web):
    write = web.bearer["write"]
    for field in ("id", "vector", "version", "fingerprint", "contents", "path", "url", "seq", "__class__"):
        found = web.put("/items/owasp", json={"text": "x", field: "y"}, headers=write)
        assert "unknown field" in refused(found, 422)["message"], field
        refused(web.post("/search", json={"text": "x", f"{field}s": 1}), 422)
    assert set(web.get("/items/0-000").json()) == {"id", "group", "meta", "values"}
    (result,) = web.post("/search", json={"text": "x", "k": 1}).json()["results"]
    assert set(result) == {"id", "score", "modality", "group", "meta", "values"}
    found = web.post(
        "/feedback", json={"query": "q", "item": "0-000", "kind": "click", "who": "me"}, headers=web.bearer["feedback"]
    )
    refused(found, 422, "who")


def test_api4_one_client_takes_bounded_resources(web):
    """See test_bodies.py for bodies, test_access.py for rates, test_rest.py for values; here: what one request may ask for."""
    for body in ({"k": 10**9}, {"filter": "a = 1 and " * 5000}, {"target": ["text"] * 100_000}, {"text": "x" * 200_000}):
        assert web.post("/search", json={"text": "x", **body}).status_code in (200, 413, 422)
    assert web.post("/search", json={"text": "x", "filter": "(" * 400 + "a = 1" + ")" * 400}).status_code == 422
    many = [("image", ("x.png", picture()))] * 200
    assert web.post("/search", files=many).status_code in (400, 413, 422)
    boundary = b"".join(b'--x\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n1\r\n' % n for n in range(3000)) + b"--x--"
    found = web.post("/search", content=boundary, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert found.status_code in (400, 422)


def test_api5_no_role_does_more_than_it_may(web):
    """Methods that are disguised, paths that are spelt otherwise: the role is checked on what the application will do."""
    for headers in (
        {"X-HTTP-Method-Override": "DELETE"},
        {"X-Method-Override": "PUT"},
        {"X-Original-URL": "/shadow"},
        {"X-Rewrite-URL": "/shadow"},
    ):
        assert web.post("/items/0-000", headers=headers).status_code == 405
        assert web.get("/items/0-000", headers=headers).json()["id"] == "0-000"
    for method in ("PUT", "DELETE", "PATCH"):
        refused(web.request(method, "/items/0-000"), 403)
        refused(web.request(method, "/search"), 403)
    for path in ("/shadow", "/shadow/", "/shadow?version=v2"):
        assert web.get(path, follow_redirects=False).status_code == 403, path
    for path in ("/SHADOW", "/./shadow", "/shadow;x", "/%73hadow"):
        found = web.get(path, follow_redirects=False)
        assert found.status_code in (403, 404), path
    for method in ("TRACE", "CONNECT", "OPTIONS", "PROPFIND"):
        assert web.request(method, "/items/0-000").status_code in (400, 404, 405), method
    assert web.get("/page/").status_code == 403 and web.get("/page/", headers=web.bearer["feedback"]).status_code == 200


def test_api6_clicks_in_bulk_are_limited_and_named(shelf, tmp_path):
    path, file = copy_of(shelf, tmp_path), tmp_path / "tokens.json"
    headers = {"Authorization": f"Bearer {add_token(file, 'shop', 'feedback').token}"}
    with client(path, tokens=file, rates=Rates(per_token=0.01, burst=600)) as web:
        answer = web.post("/search", json={"text": "red"}, headers=headers).json()
        event = {"query": answer["query"], "item": answer["results"][0]["id"], "kind": "click"}
        found = [web.post("/feedback", json=event, headers=headers).status_code for _ in range(8)]
    assert found == [201] * 5 + [429] * 3
    with Collection(path) as c:
        assert len(c.feedback_log.events()) == 5


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_x",
        "s3://bucket/key",
        "\\\\host\\share",
    ],
)
def test_api7_no_url_is_fetched(web, url, monkeypatch):
    import socket

    def refuse(*a):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for body in ({"image": url}, {"image": {"url": url}}, {"image": {"base64": url}}, {"audio": {"path": url}}):
        refused(web.post("/search", json=body), 422)
        refused(web.put("/items/owasp", json=body, headers=web.bearer["write"]), 422)
    assert web.post("/search", json={"text": url}).status_code == 200  # words
    page = {"headers": web.bearer["feedback"], "follow_redirects": False}
    assert web.get("/page/", params={"text": url, "beside": "none"}, **page).status_code == 200
    for path in (f"/page/{url}", "/page/view", "/page/item", "/page/../etc/passwd"):
        found = web.get(path, params={"id": url, "modality": url}, **page)
        assert found.status_code in (403, 404), (path, found.text)


def test_api8_nothing_is_left_open(web):
    for path in ("/docs", "/redoc", "/debug", "/admin", "/.env", "/.git/config", "/server-status", "/console", "/openapi.yaml"):
        assert web.get(path).status_code == 404, path
    cross = web.get("/limits", headers={"Origin": "https://evil.example"})
    assert cross.status_code == 403 and "access-control-allow-origin" not in cross.headers
    own = web.get("/limits", headers={"Origin": "http://127.0.0.1"})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    for found in (
        web.get("/nowhere"),
        web.post("/search", content=b"{", headers={"Content-Type": "application/json"}),
        web.get("/items/x"),
    ):
        assert not re.search(r"Traceback|site-packages|File \"|/tmp/|/home/", found.text)
        assert found.headers.get("server", "") == ""
    value = web.get("/items/0-000/value/text").headers
    assert value["x-content-type-options"] == "nosniff" and "sandbox" in value["content-security-policy"]


def test_api9_every_route_is_in_the_inventory(web):
    """OpenAPI lists the routes; what is not in it is the page, /login, / and the document itself."""
    paths = set(web.get("/openapi.json").json()["paths"])
    served = set()

    def walk(routes):
        for route in routes:
            if path := getattr(route, "path", None):
                served.add(path.replace(":path", ""))
            elif inner := getattr(route, "routes", None) or getattr(getattr(route, "router", None), "routes", None):
                walk(inner)

    walk(web.app.router.routes)
    from mmtune.serve.routes import router

    walk(router(web.service).routes)
    assert len(paths) >= 10
    page = {"/page/", "/page/item", "/page/view", "/page/{name}.{kind}"}
    assert served - paths <= {"/", "/openapi.json"} | page, served - paths


def test_api10_stored_data_is_data(web):
    """What other systems wrote into the collection is never markup, a header or a script."""
    evil = "<script>alert(1)</script>"
    write = web.bearer["write"]
    done = web.put(
        "/items/evil", json={"text": evil, "group": evil, "meta": {"note": evil, "a\r\nX-Evil": "yes"}}, headers=write
    )
    assert done.status_code in (201, 422)
    done = web.put("/items/evil", json={"text": evil, "group": evil, "meta": {"note": evil}}, headers=write)
    assert done.status_code in (200, 201)
    value = web.get("/items/evil/value/text")
    assert (
        value.text == evil
        and value.headers["content-type"].startswith("text/plain")
        and "sandbox" in value.headers["content-security-policy"]
    )
    found = web.get("/items/evil")
    assert found.headers["content-type"] == "application/json" and found.json()["meta"]["note"] == evil
    reader = web.bearer["feedback"]
    for path in (
        f"/page/?text=x&filter={evil}",
        "/page/item?id=evil",
        "/page/view?id=evil&modality=text",
        f"/page/?text={evil}",
    ):
        html = web.get(path, headers=reader).text
        assert "&lt;script" in html and "<script>" not in html, path
    assert web.delete("/items/evil", headers=write).status_code == 200
