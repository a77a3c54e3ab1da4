"""Reports in a real browser, opened from disk with the network cut: no complaint, pictures have size, players play."""

import pytest

from mmtune.reporting.report import report
from tests.support.browser import chromium
from tests.support.report_helpers import long_corpus, run

pytestmark = pytest.mark.slow
SCROLL_THROUGH = """async (step) => {
    for (let y = 0; y < document.documentElement.scrollHeight; y += step) {  // it grows while copies are filled in
        scrollTo({top: y, behavior: 'instant'});
        for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
    }
}"""
SIZES = {"desk": (1200, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    out = {}
    for name, columns, model in (("pictures", ("image", "text"), "tiny:clip"), ("sounds", ("audio", "text"), "tiny:clap")):
        out[name] = root / f"{name}.html"
        report(run(root, columns, model), out[name])
    out["long"] = root / "long.html"
    report(None, out["long"], base="tiny:all", candidate="tiny:all@3", data=long_corpus(root / "long", 20))
    return out


@pytest.fixture(params=[(s, c) for s in SIZES for c in ("light", "dark")], ids=lambda p: "-".join(p))
def opened(request, browser):
    """path -> page, scrolled through; afterwards nothing was complained about and nothing was asked of the network."""
    size, colours = request.param
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=colours, offline=True)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("request", lambda r: asked.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)

    def go(path):
        page.goto(path.as_uri())
        page.evaluate(SCROLL_THROUGH, height // 2)
        return page

    yield go
    assert not said and not asked
    context.close()


@pytest.mark.parametrize("name", ["pictures", "sounds", "long"])
def test_everything_is_there_and_fits(pages, opened, name):
    page = opened(pages[name])
    assert page.evaluate("document.querySelectorAll('[data-same]').length") == 0, "copies are filled in as one scrolls"
    sizes = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.clientWidth, i.clientHeight])")
    assert sizes and all(min(s) > 0 for s in sizes)
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    top = page.evaluate("document.querySelector('h1').getBoundingClientRect().bottom + scrollY")
    assert top < page.viewport_size["height"] / 2, "the verdict is seen without scrolling"


@pytest.mark.parametrize(("name", "least", "most"), [("sounds", 0.9, 1.1), ("long", 4.9, 5.2)])
def test_players_play(pages, opened, name, least, most):
    page = opened(pages[name])
    count = page.evaluate("document.querySelectorAll('audio').length")
    assert count > 3
    played = page.evaluate(
        """async () => {
            const found = [...document.querySelectorAll('audio')].slice(0, 4), out = [];
            for (const a of found) {
                a.muted = true;
                await a.play();
                for (let i = 0; i < 100 && !a.currentTime; i++) await new Promise(r => setTimeout(r, 50));
                out.push([a.duration, a.currentTime, a.error === null]);
                a.pause();
            }
            return out;
        }"""
    )
    assert all(least < seconds < most and at > 0 and sound for seconds, at, sound in played), played


def test_by_keyboard(pages, opened):
    page = opened(pages["pictures"])
    page.evaluate("window.scrollTo(0, 0); document.activeElement.blur()")
    names = []
    for _ in range(9):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert names[0] == "Skip to the results" and "Differences" in names and "Searches" in names
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_colours_can_be_told_from_the_ground(pages, opened):
    """WCAG AA: body, soft, right and wrong words have a contrast of 4.5 against the page and against cards."""
    page = opened(pages["pictures"])
    contrasts = page.evaluate(
        """() => {
            const style = getComputedStyle(document.documentElement);
            const light = (name) => {
                const hex = style.getPropertyValue(name).trim().slice(1);
                const [r, g, b] = [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
                    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const pairs = [];
            for (const ink of ['--ink', '--soft', '--right', '--wrong', '--open', '--after'])
                for (const ground of ['--paper', '--card']) pairs.push([ink, ground]);
            for (const kind of ['right', 'wrong']) pairs.push([`--${kind}`, `--${kind}-well`], ['--soft', `--${kind}-well`]);
            return pairs.map(([a, b]) => {
                const [x, y] = [light(a), light(b)];
                return [a, b, (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05)];
            });
        }"""
    )
    assert all(c >= 4.5 for _, _, c in contrasts), [c for c in contrasts if c[2] < 4.5]
