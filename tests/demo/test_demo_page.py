"""Result pages: frames tell right from wrong, nothing is fetched from outside, nothing a label says is executed."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtune.demo.demo_page import CELL, GAP, RIGHT, WRONG, SearchComparison, ShownItem, before_after, sheet, tile, write_pages
from mmtune.demo.machines import flac
from mmtune.modalities.spectrogram import spectrogram_picture


def photo(color: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(out, "PNG")
    return out.getvalue()


TONE = flac(0.5 * np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000), 8000)


def pictures() -> SearchComparison:
    hits = [ShownItem("image", photo((i * 40, 90, 200)), f"item {i}", i % 2 == 0) for i in range(6)]
    return SearchComparison(ShownItem("text", b"a <script>alert(1)</script> jacket", "jacket"), hits, hits[::-1])


def sounds() -> SearchComparison:
    hits = [ShownItem("audio", TONE, f"clip {i} & <b>co</b>", i == 0) for i in range(5)]
    return SearchComparison(ShownItem("audio", TONE, "the asking clip"), hits[::-1], hits)


def test_frames_are_green_and_red() -> None:
    search = pictures()
    picture = sheet(search, top=5)
    x0, row = GAP * 2 + CELL + 84, CELL + 62
    for r, hits in enumerate((search.before, search.after)):
        for i in range(5):
            corner = picture.getpixel((x0 + i * (CELL + GAP) - 3, GAP + r * row + CELL // 2))
            assert corner == (RIGHT if hits[i].relevant else WRONG)


def test_sheets_stack_in_few_colours() -> None:
    picture = before_after([pictures(), sounds()], colors=16)
    one = sheet(pictures())
    assert picture.size == (one.width, 2 * one.height) and len(picture.getcolors()) <= 16


def test_fewer_hits_than_asked_for_is_fine() -> None:
    search = pictures()
    few = SearchComparison(search.query, search.before[:2], [])
    assert sheet(few).size == sheet(search).size


def test_a_tone_is_a_bright_line_at_its_height() -> None:
    drawn = np.asarray(spectrogram_picture(np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000), 8000, 100, 80), float)
    assert drawn.shape == (80, 100)
    assert abs(drawn[:, 20:80].mean(1).argmax() - 60) <= 2  # 1 of 4 kHz: a quarter up


def test_a_short_or_silent_sound_is_drawn() -> None:
    assert spectrogram_picture(np.zeros(8000), 8000, 50, 40).size == (50, 40)
    assert spectrogram_picture(np.ones(3), 8000, 50, 40).size == (50, 40)


@pytest.mark.parametrize("modality, data", [("image", photo((9, 200, 9))), ("audio", TONE), ("text", b"word " * 200)])
def test_tiles_have_the_size_asked_for(modality: str, data: bytes) -> None:
    assert tile(ShownItem(modality, data, ""), 120, 70).size == (120, 70)


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    before, after = {"text->image": {"hit@1": 0.125, "mrr": 0.5}}, {"text->image": {"hit@1": 0.875, "mrr": 0.25}}
    searches = {"Catalog photos": [pictures()], "Machine sounds": [sounds(), sounds()]}
    paths = write_pages(tmp_path, searches, before, after, {"seed": 7})
    assert [p.name for p in paths] == [
        "index.html",
        "search-catalog-photos-1.png",
        "search-machine-sounds-1.png",
        "search-machine-sounds-2.png",
    ]
    assert all(Image.open(p).size == sheet(pictures()).size for p in paths[1:])
    page = paths[0].read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(s.startswith("data:") for s in sources) and "<link" not in page
    assert "<script" not in page and "&lt;script&gt;" in page and "<b>co</b>" not in page
    assert page.count("<audio controls") == 2 * (1 + 5 + 5)
    assert page.count('class="hit right"') == 3 + 2 + 2 * (1 + 1)
    assert ".hit.right { border-color: var(--right) }" in page and ".hit.relevant" not in page  # the rule that makes them green
    assert "0.125" in page and "0.875" in page and '<b class="less">0.250' in page


def test_pages_are_the_same_every_time(tmp_path: Path) -> None:
    a, b = ([p.read_bytes() for p in write_pages(tmp_path / d, {"x": [sounds()]}, {}, {}, {})] for d in "ab")
    assert a == b
