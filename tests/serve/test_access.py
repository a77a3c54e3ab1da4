"""Who may do what: tokens with roles, rotation without a restart, sessions, rate limits, and proxies."""

import json
import logging
import stat
from datetime import UTC, datetime, timedelta

import pytest

from mmtune.errors import DataError
from mmtune.serve.auth import COOKIE, required_role, session_cookie
from mmtune.serve.client_address import client_address, limit_key, parse_networks
from mmtune.serve.rate_limit import MAX_KEYS, RateLimiter
from mmtune.serve.settings import Rates, Settings
from mmtune.serve.token_admin import add_token, remove_token, rotate_token
from mmtune.serve.token_file import Identity, TokenFile
from tests.support.serve_helpers import BEARER, TOKEN, client, collection, copy_of


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return collection(tmp_path_factory)


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def code_of(response):
    return response.status_code, response.json()["error"]["code"]


# --- the token file --------------------------------------------------------------------------------------------------


def test_a_token_is_known_by_its_hash_only(tmp_path):
    file = tmp_path / "new" / "tokens.json"
    made = add_token(file, "shop", "search")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secret = made.token.split("_")[2]
    assert len(secret) == 64 and secret not in file.read_text()
    other = add_token(file, "crawler", "write")
    tokens = TokenFile(file)
    assert tokens.verify(made.token).role == "search" and tokens.verify(other.token).name == "crawler"
    swapped = f"mmt_{other.id}_{secret}"
    for wrong in (
        "",
        "mmt",
        "mmt__",
        made.token[:-1],
        made.token + "0",
        made.token.upper(),
        swapped,
        f"xyz_{made.id}_{secret}",
        "é",
    ):
        assert tokens.verify(wrong) is None, wrong
    salts = [t["salt"] for t in json.loads(file.read_text())["tokens"]]
    assert len(set(salts)) == 2


def test_rotation_overlaps_and_removal_is_at_once(tmp_path):
    file = tmp_path / "tokens.json"
    old, tokens = add_token(file, "shop", "feedback"), TokenFile(file)
    assert tokens.verify(old.token)
    new = rotate_token(file, "shop", overlap_hours=1)
    assert tokens.verify(old.token).role == tokens.verify(new.token).role == "feedback"
    document = json.loads(file.read_text())
    document["tokens"][0]["expires"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    file.write_text(json.dumps(document))
    assert tokens.verify(old.token) is None and tokens.verify(new.token)
    assert remove_token(file, "shop") == 2 and tokens.verify(new.token) is None
    assert (
        add_token(file, "short", "search", days=-1) and tokens.verify(add_token(file, "gone", "search", days=-1).token) is None
    )


def test_a_damaged_token_file_admits_nobody(tmp_path, caplog):
    file = tmp_path / "tokens.json"
    made, tokens = add_token(file, "shop", "search"), TokenFile(file)
    whole = file.read_bytes()
    assert tokens.verify(made.token)
    for broken in (b"{", b"[]", b"{}", whole.replace(b'"search"', b'"root"'), whole.replace(b'"salt"', b'"salz"')):
        file.write_bytes(broken)
        with caplog.at_level(logging.ERROR, "mmtune.serve"):
            assert tokens.verify(made.token) is None
    assert caplog.text.count("no token of the token file is valid") == 4  # [] and {} are one error
    assert made.token not in caplog.text
    file.unlink()
    assert tokens.verify(made.token) is None
    file.write_bytes(whole)
    assert tokens.verify(made.token).name == "shop"


def test_mistakes_at_the_token_file_are_one_line(tmp_path):
    file = tmp_path / "tokens.json"
    with pytest.raises(DataError, match="no such file; create it"):
        remove_token(file, "shop")
    with pytest.raises(DataError, match="the roles are search, feedback, write, admin"):
        add_token(file, "shop", "root")
    add_token(file, "shop", "search")
    with pytest.raises(DataError, match="already"):
        add_token(file, "shop", "search")
    with pytest.raises(DataError, match="no token 'shep'; its tokens: shop"):
        rotate_token(file, "shep")
    with pytest.raises(DataError, match="printable"):
        add_token(file, "a\nb", "search")


# --- roles -----------------------------------------------------------------------------------------------------------


def test_each_role_may_do_what_it_says(shelf, tmp_path):
    path, file = copy_of(shelf, tmp_path), tmp_path / "tokens.json"
    made = {role: bearer(add_token(file, role, role).token) for role in ("search", "feedback", "write", "admin")}
    order = list(made)
    with client(path, tokens=file) as web:
        answer = web.post("/search", json={"text": "red"}, headers=made["search"]).json()
        event = {"query": answer["query"], "item": answer["results"][0]["id"], "kind": "click"}
        calls = {
            "search": lambda h: web.get("/items/0-000", headers=h),
            "feedback": lambda h: web.post("/feedback", json=event, headers=h),
            "write": lambda h: web.put("/items/new", json={"text": "x"}, headers=h),
            "admin": lambda h: web.get("/shadow", headers=h),
        }
        for needed, call in calls.items():
            for role, headers in made.items():
                found = call(headers)
                if order.index(role) >= order.index(needed):
                    assert found.is_success, (needed, role, found.text)
                else:
                    assert code_of(found) == (403, "role"), (needed, role)
            assert code_of(call({})) == (401, "token")
        assert required_role("POST", "/page/") == "feedback" and required_role("GET", "/paged") == "search"
        # a token that is made while the server runs, and one that is removed
        late = bearer(add_token(file, "late", "search").token)
        assert web.get("/limits", headers=late).is_success
        remove_token(file, "late")
        assert code_of(web.get("/limits", headers=late)) == (401, "token")


def test_a_session_ends_with_its_token(shelf, tmp_path):
    file = tmp_path / "tokens.json"
    made = add_token(file, "shop", "search")
    with client(shelf, tokens=file) as web:
        done = web.post("/login", data={"token": made.token}, follow_redirects=False)
        cookie = done.headers["set-cookie"]
        assert done.status_code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie
        assert made.token not in cookie and json.loads(file.read_text())["tokens"][0]["hash"] not in cookie
        assert web.get("/limits").is_success and code_of(web.get("/shadow")) == (403, "role")
        value = web.cookies[COOKIE]
        web.cookies.clear()
        id, end, signed = value.split(".")
        for forged in (
            f"{id}.{int(end) + 9}.{signed}",
            f"0.{end}.{signed}",
            f"{id}.{end}.",
            f"{id}..{signed}",
            f"{id}.{'9' * 30}.x",
            "",
        ):
            assert web.get("/limits", headers={"Cookie": f"{COOKIE}={forged}"}).status_code == 401, forged
        past = session_cookie(web.service.settings.session_key, Identity("shop", "search", id, ""), 1)
        assert web.get("/limits", headers={"Cookie": f"{COOKIE}={past}"}).status_code == 401
        assert web.get("/limits", headers={"Cookie": f"{COOKIE}={value}"}).is_success
        remove_token(file, "shop")
        assert web.get("/limits", headers={"Cookie": f"{COOKIE}={value}"}).status_code == 401


# --- guessing and rates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["login", "header"])
def test_guesses_are_limited_and_logged(shelf, caplog, how):
    with client(shelf, token=TOKEN, rates=Rates(failures=5)) as web, caplog.at_level(logging.WARNING, "mmtune.serve"):

        def guess(token):
            if how == "login":
                return web.post("/login", data={"token": token}, follow_redirects=False).status_code
            return web.get("/limits", headers=bearer(token)).status_code

        assert [guess(f"guess {n}") for n in range(8)] == [401] * 5 + [429] * 3
        assert guess(TOKEN) == 429  # else the right guess would be the one that is not refused
        assert caplog.text.count("a wrong token was sent from testclient") == 5
        assert "guess" not in caplog.text and TOKEN not in caplog.text
        found = web.get("/limits", headers=bearer("x"))
        assert 1 <= int(found.headers["retry-after"]) <= 12
        elsewhere = {"X-Forwarded-For": "9.9.9.9"}  # nobody escapes by a header that a client wrote
        assert web.get("/limits", headers=bearer(TOKEN) | elsewhere).status_code == 429


def test_others_at_the_address_cannot_lock_out_a_token_of_the_file(shelf, tmp_path):
    made = add_token(tmp_path / "tokens.json", "shop", "search")
    with client(shelf, tokens=tmp_path / "tokens.json", token=TOKEN, rates=Rates(failures=1)) as web:
        assert [web.get("/limits", headers=bearer("x")).status_code for _ in range(3)] == [401, 429, 429]
        assert web.get("/limits", headers=bearer(made.token)).is_success


def test_requests_are_limited_by_address_and_by_token(shelf, tmp_path, caplog):
    file = tmp_path / "tokens.json"
    one, two = (bearer(add_token(file, name, "search").token) for name in ("one", "two"))
    with client(shelf, tokens=file, rates=Rates(per_token=0.01, per_address=0.01, burst=400)) as web:  # 4 each, then 1 in 100 s
        with caplog.at_level(logging.WARNING, "mmtune.serve"):
            found = [web.get("/limits", headers=one).status_code for _ in range(6)]
        assert found == [200] * 4 + [429] * 2 and caplog.text.count("too many requests (limit by address)") == 1
        last = web.get("/health")
        assert code_of(last) == (429, "rate_limited") and int(last.headers["retry-after"]) > 50
    with client(shelf, tokens=file, rates=Rates(per_token=0.01, burst=200)) as web:
        assert [web.get("/limits", headers=one).status_code for _ in range(3)] == [200, 200, 429]
        assert [web.get("/limits", headers=two).status_code for _ in range(3)] == [200, 200, 429]


def test_a_bucket_fills_as_time_passes():
    now = [0.0]
    limiter = RateLimiter(2.0, 4.0, lambda: now[0])
    assert [limiter.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
    now[0] = 0.25
    assert limiter.take("a") == 0.25 and limiter.take("b") == 0
    now[0] = 0.5
    assert limiter.take("a") == 0 and limiter.wait("a") == 0.5
    now[0] = 1000.0
    assert [limiter.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]  # no more than the burst
    for n in range(MAX_KEYS + 10):
        limiter.take(n)
    assert len(limiter._buckets) == MAX_KEYS
    assert RateLimiter(0, 1).take("a") == 0


# --- proxies ---------------------------------------------------------------------------------------------------------


def scope(peer, *forwarded):
    return {"client": (peer, 1), "headers": [(b"x-forwarded-for", f.encode()) for f in forwarded]}


def test_only_a_trusted_proxy_names_the_client():
    trusted = parse_networks(["10.0.0.0/8", "::1"])
    assert client_address(scope("8.8.8.8", "1.2.3.4"), trusted) == "8.8.8.8"
    assert client_address(scope("10.0.0.1", "1.2.3.4"), trusted) == "1.2.3.4"
    assert (
        client_address(scope("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.9"), trusted) == "1.2.3.4"
    )  # what a client wrote is to the left
    assert client_address(scope("10.0.0.1", "6.6.6.6", "1.2.3.4"), trusted) == "1.2.3.4"
    assert client_address(scope("::ffff:10.0.0.1", "1.2.3.4"), trusted) == "1.2.3.4"
    assert client_address(scope("10.0.0.1", "rubbish"), trusted) == "10.0.0.1"
    assert client_address(scope("10.0.0.1"), trusted) == "10.0.0.1"
    assert client_address({"client": None, "headers": []}) == "unknown"
    assert limit_key("2001:db8::1") == limit_key("2001:db8::ffff") != limit_key("2001:db8:0:1::1")
    assert limit_key("::ffff:1.2.3.4") == "1.2.3.4" == limit_key("1.2.3.4")
    with pytest.raises(DataError, match="--trusted-proxy"):
        Settings(trusted_proxies=("nginx",))


def test_a_host_that_others_reach_needs_some_token(tmp_path):
    with pytest.raises(DataError, match="--tokens FILE"):
        Settings(host="0.0.0.0")
    assert Settings(host="0.0.0.0", tokens=tmp_path / "t.json").has_tokens
    assert TOKEN not in repr(Settings(token=TOKEN)) and "session_key" not in repr(Settings())


def test_every_route_is_closed_without_a_token(shelf, tmp_path):
    """Every route of the application, found by listing them: none is forgotten. On a copy, because one of them deletes an item."""
    with client(copy_of(shelf, tmp_path), token=TOKEN) as web:
        paths = web.get("/openapi.json", headers=BEARER).json()["paths"]
        routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
        routes += [
            ("GET", path)
            for path in ("/", "/openapi.json", "/nowhere", "/page/", "/page/item", "/page/view", "/page/style.css")
        ]
        assert len(routes) > 16
        for method, path in routes:
            url = path.replace("{id}", "0-000").replace("{modality}", "text")
            assert web.request(method, url, follow_redirects=False).status_code == 401, (method, path)
            assert web.request(method, url, headers=BEARER, follow_redirects=False).status_code != 401, (method, path)
