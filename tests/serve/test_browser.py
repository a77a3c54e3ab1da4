"""The page as people use it, in headless Chromium: mouse, keys, uploads, a microphone, a phone; with one process and with two."""

import os
import time

import pytest

from mmtune.contracts import Row
from mmtune.index.collection import Collection
from tests.serve.test_process import wait
from tests.serve.test_workers import wait_for_all
from tests.support.browser import chromium
from tests.support.serve_helpers import TOKEN, Process, collection, copy_of, picture, sound

pytestmark = pytest.mark.slow
MEDIA_FLAGS = [
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
SHOTS = os.environ.get("MMTUNE_SHOTS")
"""A folder for screenshots, for those who want to look."""
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def browser():
    with chromium(*MEDIA_FLAGS) as launched:
        yield launched


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return copy_of(collection(tmp_path_factory), tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def server(path):
    with Process(path) as found:
        wait(found)
        yield found


def opened(browser, url, **context):
    """A page of which nothing outside is asked, and whose scripts do not complain: `leave` checks that."""
    found = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **context}).new_page()
    found.outside, found.complaints = [], []
    found.set_default_timeout(60_000)
    found.on("request", lambda r: found.outside.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)
    found.on("pageerror", lambda e: found.complaints.append(str(e)))
    found.on("console", lambda m: found.complaints.append(m.text) if "Content Security Policy" in m.text else None)
    found.goto(url + "/page/")
    found.locator(".tile").first.wait_for()
    return found


def leave(page):
    page.context.close()
    assert not page.outside and not page.complaints


@pytest.fixture
def page(browser, server):
    found = opened(browser, server.url)
    yield found
    leave(found)


def shot(page, name):
    if SHOTS:
        page.wait_for_timeout(800)
        page.screenshot(path=f"{SHOTS}/{name}.png")


def until(page, expression, value=None, seconds=60):
    """Until an expression is true. Playwright's own `wait_for_function` needs eval, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression, value):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def hits(page, side="live"):
    """Ids of the results shown in a column."""
    return page.locator(f"#{side} .tile").evaluate_all("tiles => tiles.map(t => t.dataset.id)")


def search(page, text):
    page.get_by_label("Search by text").fill(text)
    with page.expect_navigation():
        page.keyboard.press("Enter")
    page.locator("#live").wait_for()


def focused(page):
    return page.evaluate("document.activeElement.closest('.tile')?.dataset.id ?? document.activeElement.id")


def visible_tiles(page):
    return page.locator(".tile").evaluate_all(
        "tiles => tiles.filter(t => { const r = t.getBoundingClientRect(); return r.bottom <= innerHeight && r.right <= innerWidth }).length"
    )


def test_the_grid_has_as_many_results_as_asked_and_loads_its_pictures(page, path):
    page.get_by_label("Compare with version").select_option("none")
    page.locator("#k").fill("20")
    search(page, "a red square")
    with Collection(path) as c:
        assert hits(page) == c.search(text="a red square", k=20).ids
    until(page, "document.querySelectorAll('.tile .media > img').length >= 8")
    assert all(p.evaluate("p => p.complete && p.naturalWidth > 0") for p in page.locator(".tile .media > img").all())
    assert visible_tiles(page) >= 5  # each has a picture and a sound; pictures alone: the next test
    assert page.get_by_role("heading", name="a white square").count() >= 1
    shot(page, "grid")


def test_eight_pictures_are_seen_without_scrolling(browser, tmp_path):
    with Collection(tmp_path / "c", create=True) as c:
        rows = [
            Row(f"r{n}", None, {"image": picture("red", (300 + n, 200))}, {"title": f"A boot number {n}", "size": n % 3})
            for n in range(16)
        ]
        c.upsert([*rows, Row("evil", None, {"image": picture("blue")}, {"title": EVIL, EVIL: f"{EVIL} again"})])
        c.build("tiny:image+text", quiet=True)
        c.promote("v1")
    with Process(tmp_path / "c") as server:
        wait(server)
        page = opened(browser, server.url)
        search(page, "boot")
        assert visible_tiles(page) >= 8 and len(hits(page)) == 17
        assert page.get_by_role("tab").all_inner_texts() == ["Text", "Image", "Item"]  # this model hears nothing
        heading = page.locator('.tile[data-id="evil"] h3')
        assert heading.inner_text() == EVIL and page.title() != "owned"
        heading.get_by_role("link").click()
        page.get_by_role("dialog").get_by_role("heading", name=EVIL).wait_for()
        for part in ("dt", "dd"):
            assert page.get_by_role("dialog").locator(part, has_text=EVIL).count() == 1 and page.title() != "owned"
        leave(page)


def test_live_and_staged_side_by_side(page, path):
    search(page, "a red square")
    page.locator("#beside .tile").first.wait_for()  # v2 is staged, so it is put beside
    with Collection(path) as c:
        live, staged = (c.search(text="a red square", k=24, version=v).ids for v in ("v1", "v2"))
    assert (hits(page), hits(page, "beside")) == (live, staged)
    first = page.locator("#beside .tile").first
    moved = live.index(staged[0])
    assert first.get_by_title(f"moved up by {moved} against the live version").is_visible()
    assert page.locator("#beside .change").count() == 24 and page.locator("#live .change").count() == 0
    page.locator("#k").fill("4")
    search(page, "a red square")
    gone = [i for i in live[:4] if i not in staged[:4]]
    marked = page.locator("#live .tile.is-gone").evaluate_all("tiles => tiles.map(t => t.dataset.id)")
    assert marked == gone and page.locator("#beside .tile.is-new").count() == len(gone)
    box, other = page.locator("#live").bounding_box(), page.locator("#beside").bounding_box()
    assert other["x"] > box["x"] + box["width"] - 1 and abs(other["y"] - box["y"]) < 2
    shot(page, "versions")


def test_filters_facets_and_an_error(page, path):
    page.get_by_label("Compare with version").select_option("none")
    search(page, "a red square")
    box = page.get_by_role("group", name="shade").get_by_label("dark")
    assert "12" in page.get_by_role("group", name="shade").inner_text()
    with page.expect_navigation():
        box.check()
    with Collection(path) as c:
        assert hits(page) == c.search(text="a red square", k=24, where="shade = 'dark'").ids
    assert page.get_by_label("dark").is_checked() and page.evaluate("document.activeElement.value") == '"dark"'
    page.get_by_text("Columns for filters").click()
    assert "string, 2 values" in page.locator(".columns").inner_text()
    page.locator(".columns").get_by_role("button", name="shade").click()
    assert page.get_by_label("Filter", exact=True).input_value() == "shade = 'dark'"
    page.get_by_label("Filter", exact=True).fill("shade = ")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert "filter: position" in page.get_by_role("alert").inner_text() and not hits(page)
    page.get_by_role("link", name="Clear all filters").click()
    until(page, "document.querySelectorAll('#live .tile').length === 24")


def test_uploading_a_picture_and_marking_what_is_not_a_match(page, path, tmp_path):
    file = tmp_path / "blue.png"
    file.write_bytes(picture("blue"))
    page.get_by_role("tab", name="Image").click()
    page.locator("#ask-image").set_input_files(str(file))  # searches at once
    page.locator("#live .tile").first.wait_for()
    assert page.locator(".preview img").evaluate("p => p.decode().then(() => p.naturalWidth)") == 40
    with Collection(path) as c:
        assert hits(page) == c.search(image=picture("blue"), k=24).ids
    wrong = page.locator("#live .tile").nth(1).get_by_role("button", name="is not a match")
    wrong.click()
    until(page, "document.querySelector('#status').textContent.startsWith('recorded')")
    assert wrong.get_attribute("aria-pressed") == "true"
    page.locator("#live .tile").first.get_by_role("link").first.focus()
    page.keyboard.press("m")
    until(page, "document.querySelectorAll('#live .tile')[0].querySelector('[aria-pressed=true]')")
    with Collection(path) as c:
        no, yes = c.feedback_log.events()[-2:]
        assert (no["item"], no["kind"], no["version"], no["modality"], no["rank"]) == (
            hits(page)[1],
            "not_a_match",
            "v1",
            "image",
            2,
        )
        assert (yes["item"], yes["kind"]) == (hits(page)[0], "match")
        assert c.export_feedback(tmp_path / "out")["verdicts"] == 2
    page.get_by_role("group", name="shade").get_by_label("dark").check()  # the file stays chosen
    until(page, "document.querySelectorAll('#live .tile').length === 12")
    shot(page, "upload")


def test_a_sound_is_uploaded_found_seen_and_played(page, path, tmp_path):
    file = tmp_path / "red.wav"
    file.write_bytes(sound("red"))
    page.get_by_role("tab", name="Audio").click()
    page.locator("#ask-audio").set_input_files(str(file))
    page.locator("#live .tile").first.wait_for()
    with Collection(path) as c:
        assert hits(page) == c.search(audio=sound("red"), k=24).ids
    tile = page.locator("#live .tile").first
    spectrogram = tile.get_by_alt_text("Spectrogram of")
    spectrogram.wait_for()
    assert spectrogram.evaluate("p => p.complete && p.naturalWidth === 320")
    assert tile.locator(".axes i").all_inner_texts() == ["4 kHz", "2 kHz", "0"]
    assert tile.locator(".times i").all_inner_texts() == ["0", "0.5", "1 s"] and tile.locator("svg path").count() == 1
    player = tile.locator("audio")
    player.evaluate("p => { p.muted = true; return p.play() }")
    until(page, "document.querySelector('#live .tile audio').currentTime > 0.05")
    shot(page, "sound")


def test_a_microphone_records_and_searches(page):
    page.get_by_role("tab", name="Audio").click()
    page.get_by_role("button", name="Record").click()
    stop = page.get_by_role("button", name="Stop and search")
    stop.wait_for()
    page.wait_for_timeout(1500)
    with page.expect_response(lambda r: r.url.endswith("/page/") and r.request.method == "POST") as answered:
        stop.click()
    assert answered.value.status == 200
    page.locator("#live .tile").first.wait_for()
    assert len(hits(page)) == 24


def test_more_like_this_and_a_promotion_meanwhile(page, path):
    page.locator('.tile[data-id="0-003"]').get_by_role("link", name="More like").click()
    page.locator("#live .tile").first.wait_for()
    assert "0-003" not in hits(page) and len(hits(page)) == 23
    assert page.get_by_role("tab", name="Item").get_attribute("aria-selected") == "true"
    with Collection(path) as c:
        assert hits(page) == c.search(item="0-003", k=24).ids
        c.promote("v2", force=True, why="a test")
        try:
            page.reload()
            assert page.locator("#live h2").inner_text().startswith("v2")
        finally:
            c.rollback("a test")
    page.go_back()
    assert "v1 is live" in page.locator(".state").inner_text()


def test_the_panel_of_one_item_by_keyboard(page):
    page.keyboard.press("/")
    assert focused(page) == "ask-text"
    page.keyboard.type("a red square")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    page.locator("#live").wait_for()
    ids = hits(page)
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert focused(page) == ids[1]
    page.keyboard.press("k")
    page.keyboard.press("ArrowRight")
    assert focused(page) == ids[1]
    page.keyboard.press("ArrowDown")
    below = ids.index(focused(page)) - 1
    tops = page.locator("#live .tile").evaluate_all("tiles => tiles.map(t => t.offsetTop)")
    assert below == sum(t == tops[0] for t in tops)  # one row down
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    panel = page.get_by_role("dialog")
    panel.locator("dd").first.wait_for()
    assert panel.locator("dd").first.inner_text() == ids[1] and focused(page) == "item-title"
    assert panel.get_by_role("heading").inner_text() == page.locator("#live-2").inner_text()
    panel.locator("audio").wait_for()
    assert panel.locator(".media > img").evaluate("p => p.decode().then(() => p.naturalWidth)") == 40
    assert panel.get_by_text("shade").is_visible() and panel.get_by_role("link", name="Original audio").is_visible()
    shot(page, "panel")
    page.keyboard.press("j")
    until(page, "id => document.querySelector('#panel dd')?.textContent === id", ids[2])
    for _ in range(12):  # the focus stays in the panel
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || document.activeElement.closest('dialog') !== null")
    page.keyboard.press("Escape")
    assert not panel.is_visible() and focused(page) == ids[2]
    page.keyboard.press("l")
    page.wait_for_url("**item=**")


def test_names_roles_and_the_order_of_the_focus(page):
    for role, name in (
        ("search", "Search shelf"),
        ("complementary", "Filters and options"),
        ("main", "Results"),
        ("tablist", "Search by"),
    ):
        assert page.get_by_role(role, name=name).count() == 1, role
    order = []
    for _ in range(5):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.ariaLabel"))
    assert order == ["Skip to the results", "shelf", "Text", "Search by text", "Search"]
    page.get_by_role("tab", name="Text").focus()
    page.keyboard.press("ArrowRight")
    assert (
        page.get_by_role("tabpanel", name="Image").is_visible() and not page.get_by_role("tabpanel", name="Text").is_visible()
    )
    nameless = page.evaluate("""() => [...document.querySelectorAll('a, button, input:not([type=hidden]), select, audio, img')]
        .filter(e => e.offsetParent && !(e.ariaLabel || e.alt || e.textContent.trim() || e.labels?.length || e.title)).map(e => e.outerHTML)""")
    assert nameless == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert low_contrast(page) == [], scheme


def low_contrast(page):
    """Texts whose contrast is below 4.5 (WCAG 2, AA); backgrounds with transparency do not occur."""
    return page.evaluate("""() => {
        const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
        const back = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] !== 0) return c; } return [255, 255, 255]; };
        const out = [];
        for (const e of document.querySelectorAll('body *')) {
            if (!e.offsetParent || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
            const [a, b] = [light(rgb(getComputedStyle(e).color)), light(back(e))];
            const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
            if (ratio < 4.5) out.push(`${e.className} ${e.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
        }
        return out;
    }""")


def test_a_phone_a_login_and_the_dark(browser, path):
    with Process(path, "--token", TOKEN) as server:
        wait(server)
        context = browser.new_context(
            viewport={"width": 390, "height": 844}, color_scheme="dark", extra_http_headers={"X-Forwarded-For": "8.8.8.8"}
        )
        page = context.new_page()
        page.goto(server.url + "/")
        assert page.url.endswith("/login")
        page.get_by_label("token").fill("wrong")
        page.get_by_role("button").click()
        assert "Wrong token" in page.get_by_role("alert").inner_text()
        page.get_by_label("token").fill(TOKEN)
        page.get_by_role("button").click()
        page.wait_for_url("**/page/")
        search(page, "a green square")
        page.locator("#live audio").first.wait_for()
        shot(page, "phone")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert not page.get_by_label("Filter", exact=True).is_visible()
        page.get_by_role("button", name="Filters and options").click()
        assert (
            page.get_by_label("Filter", exact=True).is_visible()
            and page.evaluate("document.documentElement.scrollWidth") <= 390
        )
        sizes = page.locator(".acts a, .acts button, .tabs a, .go").evaluate_all(
            "all => all.filter(e => e.checkVisibility()).map(e => [e.outerHTML, e.getBoundingClientRect()])"
            ".map(([html, r]) => [html, r.width, r.height])"
        )  # the buttons of the other tabs' forms are hidden
        assert len(sizes) > 24 and [s for s in sizes if min(s[1:]) < 24] == []  # WCAG 2.2, 2.5.8
        page.locator("#live .open").first.click()
        page.get_by_role("dialog").locator("dd").first.wait_for()
        box = page.get_by_role("dialog").bounding_box()
        assert (box["x"], box["width"]) == (0, 390) and page.evaluate("document.documentElement.scrollWidth") <= 390
        shot(page, "phone-panel")
        context.close()


def test_two_workers_serve_the_page(browser, path, tmp_path):
    file = tmp_path / "blue.png"
    file.write_bytes(picture("blue"))
    with Process(path, "--workers", "2") as server:
        wait_for_all(server, 2)
        page = opened(browser, server.url)
        for colour in ("red", "green", "blue"):
            search(page, f"a {colour} square")
            assert len(hits(page)) == 24
        page.locator("#live .tile").first.get_by_role("button", name="is a match").click()
        until(page, "document.querySelector('#status').textContent.startsWith('recorded')")
        page.get_by_role("tab", name="Image").click()
        page.locator("#ask-image").set_input_files(str(file))
        until(page, "document.querySelectorAll('#live .tile').length === 24")
        page.locator("#live .open").first.click()
        page.get_by_role("dialog").locator(".media img").first.wait_for()
        leave(page)
