"""The search page without a browser: what it answers, its headers, its limits, and that data is never markup."""

import html
import re

import pytest

from mmtune.contracts import Row
from mmtune.index.collection import Collection
from mmtune.serve.page import CSP
from mmtune.serve.page_query import page_query
from mmtune.serve.result_cards import RankChange, rank_changes
from tests.serve.test_rest import refused, wait_ready
from tests.support.serve_helpers import BEARER, TOKEN, client, collection, copy_of, picture, sound

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return collection(tmp_path_factory)


@pytest.fixture(scope="module")
def web(shelf):
    with client(shelf, page=True, max_bytes=300_000, max_k=20, values={"max_pixels": 10_000, "max_chars": 100}) as found:
        wait_ready(found)
        yield found


def part(page, id):
    """The HTML of one ranking."""
    found = re.search(rf'<section class="ranking" id="{id}".*?</section>', page, re.DOTALL)
    return found.group() if found else ""


def ids(page, side="live"):
    return [html.unescape(x) for x in re.findall(r'<li class="tile[^"]*" data-id="([^"]*)"', part(page, side))]


def marks(page, side):
    return re.findall(r'<span class="change (\w+)" title="([^"]*)">', part(page, side))


def error(page):
    return html.unescape(re.search(r'role="alert">([^<]*)<', page).group(1))


# --- searches ---


def test_a_search_by_text_has_a_url_and_compares_the_staged_version(shelf, web):
    page = web.get("/page/", params={"text": "a red square", "k": 12})
    assert page.status_code == 200
    with Collection(shelf) as c:
        live, staged = (c.search(text="a red square", k=12, version=v).ids for v in ("v1", "v2"))
    assert ids(page.text) == live and ids(page.text, "beside") == staged
    gone, changes = rank_changes(live, staged)
    assert [kind for kind, _ in marks(page.text, "beside")] == [changes[i].kind for i in staged]
    assert len(marks(page.text, "live")) == len(gone) and {k for k, _ in marks(page.text, "live")} <= {"gone"}
    assert "v1 · live" in page.text and "v2 · staged" in page.text
    alone = web.get("/page/", params={"text": "a red square", "beside": "none"}).text
    assert ids(alone) and not part(alone, "beside") and not marks(alone, "live")


def test_changes_of_rank_by_hand():
    gone, changes = rank_changes(["a", "b", "c", "d"], ["b", "a", "e", "d"])
    assert gone == {"c": RankChange("gone")}
    assert changes == {"b": RankChange("up", 1), "a": RankChange("down", 1), "e": RankChange("new"), "d": RankChange("same")}


def test_as_many_results_as_asked_titles_and_metadata(web):
    page = web.get("/page/", params={"text": "a red square", "k": 20, "beside": "none"}).text
    assert len(ids(page)) == 20
    titles = re.findall(r'class="open"[^>]*>([^<]*)</a></h3>', page)
    colours = ["red", "green", "blue", "yellow", "white", "black"]
    assert titles == [f"a {colours[int(i[2:]) % 6]} square" for i in ids(page)]
    assert "shade: dark" in page and "<span>dark</span>" in page and "20 results in" in page
    assert "must be a whole number from 1 to 20" in error(
        web.get("/page/", params={"text": "x", "k": 21, "beside": "none"}).text
    )


@pytest.mark.parametrize("name, data", [("image", picture("blue")), ("audio", sound("red"))], ids=["picture", "sound"])
def test_a_file_is_searched_for(shelf, web, name, data):
    page = web.post(
        "/page/", data={"by": name, "text": "not searched for", "k": "6", "beside": "none"}, files={name: ("x", data)}
    )
    with Collection(shelf) as c:
        assert ids(page.text) == c.search(**{name: data}, k=6).ids
    assert f'id="panel-{name}" aria-labelledby="tab-{name}">' in page.text  # its tab is the open one


def test_more_like_this(shelf, web):
    page = web.get("/page/", params={"by": "item", "item": "0-003", "k": 5, "beside": "none"}).text
    with Collection(shelf) as c:
        assert ids(page) == c.search(item="0-003", k=5).ids
    links = [html.unescape(x) for x in re.findall(r'class="like" href="([^"]*)"', page)]
    assert len(links) == 5 and links[0] == f"?k=5&beside=none&item={ids(page)[0]}&by=item"
    assert ids(web.get("/page/" + links[0]).text)
    assert web.get("/page/", params={"item": "nowhere", "beside": "none"}).status_code == 404


def test_filters_and_facets(shelf, web):
    start = web.get("/page/").text
    for line in ('name="is.shade" value="&#34;dark&#34;"', ">Columns for filters<", ">shade</button> <span>string, 2 values"):
        assert line in start, line
    assert re.search(r"<span>dark</span><small[^>]*>12</small>", start)
    with Collection(shelf) as c:
        right = c.search(text="a red square", k=20, where="shade = 'dark' and (\"group\" in ('red', 'blue'))").ids
    fields = {"text": "a red square", "is.shade": '"dark"', "is.group": ['"red"', '"blue"'], "k": 20, "beside": "none"}
    page = web.get("/page/", params=fields)
    assert ids(page.text) == right and len(re.findall(r"<input[^>]*value=\"&#34;\w+&#34;\" checked>", page.text)) == 3
    both = web.get("/page/", params={**fields, "filter": "group = 'red' or group = 'green'"}).text
    with Collection(shelf) as c:
        assert set(ids(both)) == set(c.search(text="x", k=20, where="shade = 'dark' and group = 'red'").ids)
    wrong = web.get("/page/", params={**fields, "filter": "shade = "})
    assert wrong.status_code == 422 and error(wrong.text).startswith("filter: position 8")
    assert web.get("/page/", params={"text": "x", "is.shade": "dark", "beside": "none"}).status_code == 422
    assert "filters choose among" in error(
        web.get("/page/", params={"filter": "shade = 'dark'"}).text
    )  # nothing is dropped in silence
    each = web.get("/page/", params={"text": "a red square", "group_by": "group", "beside": "none"}).text
    assert len(ids(each)) == 6


def test_only_tabs_that_the_collection_can_answer(tmp_path):
    with Collection(tmp_path / "c", create=True) as c:
        c.upsert([Row("a", None, {"image": picture()}, {"title": "A boot"})])
        c.build("tiny:image+text", quiet=True)
        c.promote("v1")
    with client(tmp_path / "c", page=True) as web:
        wait_ready(web)
        page = web.get("/page/").text
        assert re.findall(r'role="tab" id="tab-(\w+)"', page) == ["text", "image", "item"]
        assert 'name="audio"' not in page and ids(page, "sample") == ["a"] and ">A boot</a></h3>" in page
        found = web.get("/page/", params={"by": "audio", "audio": "x"})
        assert found.status_code == 422


def test_the_item_and_its_values(web):
    page = web.get("/page/item", params={"id": "0-003"}).text
    for line in (
        "<dt>shade</dt><dd>dark</dd>",
        "<dt>id</dt><dd>0-003</dd>",
        "a yellow square</h2>",
        "/items/0-003/value/image",
    ):
        assert line in page, line
    view = web.get("/page/view", params={"id": "0-003", "modality": "image", "v": "1"})
    assert 'width="40" height="40" src="data:image/jpeg;base64,' in view.text and "max-age" in view.headers["cache-control"]
    heard = web.get("/page/view", params={"id": "0-003", "modality": "audio"}).text
    assert "Spectrogram of 0-003: 1 s, 0 to 4 kHz" in heard and "<audio controls" in heard and "<path d=" in heard
    for label in ("4 kHz", "2 kHz", "0", "0.5", "1 s"):
        assert f"<i>{label}</i>" in heard
    refused(web.get("/page/item", params={"id": "nowhere"}), 404)
    refused(web.get("/page/view", params={"id": "0-003", "modality": "smell"}), 404)


def test_what_the_page_does_not_know_is_refused(web):
    assert "colour: unknown field" in error(web.get("/page/", params={"text": "x", "colour": "red"}).text)
    assert web.get("/page/", params={"by": "smell"}).status_code == 422
    assert web.post("/page/", json={"text": "x"}).status_code == 415
    assert web.post("/page/", data={"by": "image", "beside": "none"}, files={"text": ("x", b"x")}).status_code in (200, 422)
    assert "not a readable picture" in error(
        web.post("/page/", data={"by": "image", "beside": "none"}, files={"image": ("x", b"no")}).text
    )
    assert "limit 100" in error(web.get("/page/", params={"text": "x" * 101, "beside": "none"}).text)
    refused(web.post("/page/", files={"image": ("x", bytes(400_000))}), 413)
    assert page_query([("by", "image"), ("text", "a"), ("image", b"")]).is_search is False


# --- safety ---


def test_data_is_never_markup(tmp_path):
    with Collection(tmp_path / "c", create=True) as c:
        c.upsert(
            [
                Row(EVIL[:60], EVIL, {"text": EVIL.encode()}, {"title": EVIL, EVIL: EVIL, "few": EVIL}),
                Row("b", EVIL, {"text": b"x"}, {"few": "b"}),
            ]
        )
        c.build("tiny:image+text", quiet=True)
        c.promote("v1")
    with client(tmp_path / "c", page=True) as web:
        wait_ready(web)
        for path, params in (
            ("/page/", {}),
            ("/page/", {"text": EVIL, "filter": EVIL}),
            ("/page/", {"text": EVIL}),
            ("/page/", {"text": "x", f"is.{EVIL}": f'"{EVIL}"', EVIL: "1"}),
            ("/page/", {"by": "item", "item": EVIL[:60]}),
            ("/page/item", {"id": EVIL[:60]}),
            ("/page/view", {"id": EVIL[:60], "modality": "text"}),
        ):
            page = web.get(path, params=params).text
            assert "alert" in page and "<script>" not in page and "<img src=x" not in page, (path, params)
            assert not re.search(r"<[^>]*\son\w+=", re.sub(r'"[^"]*"', '""', page)), (path, params)


def test_nothing_inline_and_nothing_from_elsewhere(web):
    found = web.get("/page/")
    assert found.headers["content-security-policy"] == CSP and "unsafe" not in CSP
    assert found.headers["x-frame-options"] == "DENY" and found.headers["cache-control"] == "no-store"
    item = web.get("/page/item", params={"id": "0-003"})
    for page in (found.text, item.text, web.get("/page/view", params={"id": "0-003", "modality": "audio"}).text):
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|https?://|<script>", page)
    for name, kind in (("style.css", "text/css"), ("script.js", "text/javascript")):
        asset = web.get(f"/page/{name}")
        assert asset.status_code == 200 and asset.headers["content-type"].startswith(kind)
        assert "http:" not in asset.text and "https:" not in asset.text
    for path in ("/page/page.py", "/page/x.js", "/page/..%2fstyle.css", "/page/nothing"):
        assert web.get(path).status_code == 404, path
    embedded = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    refused(web.get("/page/", params={"text": "x"}, headers=embedded), 403)
    assert web.get("/page/", headers={**embedded, "Sec-Fetch-Mode": "navigate"}).status_code == 200  # a link to the page


def test_people_who_cannot_see_it_are_told(web):
    """Landmarks, names and states in the HTML itself; the browser's test follows the focus."""
    page = web.get("/page/", params={"text": "a red square", "k": 4}).text
    for line in (
        '<html lang="en">',
        'href="#results">Skip to the results',
        '<main id="results"',
        '<aside id="filters" aria-label=',
    ):
        assert line in page, line
    assert (
        '<search class="ask" role="search" aria-label="Search ' in page
        and 'role="status"' in page
        and 'aria-labelledby="item-title"' in page
    )
    assert page.count('aria-selected="true"') == 1 and 'role="tablist" aria-label=' in page
    for tag in re.findall(r"<(?:button|a|input|select)\b[^>]*>[^<]*", page):
        labelled = re.search(r'aria-label="[^"]+"|type="(?:hidden|checkbox)"', tag) or re.sub(r"<[^>]*>", "", tag).strip()
        name = re.search(r' id="([^"]*)"', tag)
        assert labelled or (name and f'<label for="{name.group(1)}">' in page), tag
    levels = [int(n) for n in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    names = re.findall(r' id="([^"]*)"', page)
    assert len(names) == len(set(names))


def test_the_page_needs_its_role_and_a_login(shelf, tmp_path):
    with client(copy_of(shelf, tmp_path), page=True, token=TOKEN) as web:
        for path in ("/page/", "/page/item?id=0-000", "/page/view?id=0-000&modality=image", "/page/style.css"):
            assert web.get(path).status_code == 401
            sent = web.get(path, headers={"Accept": "text/html"}, follow_redirects=False)
            assert (sent.status_code, sent.headers["location"]) == (303, "/login")
        assert web.get("/page/", headers=BEARER).status_code == 200
        assert (
            web.post(
                "/page/", files={"image": ("x", picture())}, headers={**BEARER, "Origin": "https://evil.example"}
            ).status_code
            == 403
        )


def test_a_collection_without_a_live_version_says_so(tmp_path):
    Collection(tmp_path / "c", create=True).close()
    with client(tmp_path / "c", page=True) as web:
        page = web.get("/page/", params={"text": "x"})
        assert page.status_code == 503 and "promote one" in error(page.text)
        assert "has no items yet" in web.get("/page/").text
