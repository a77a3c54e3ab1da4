"""The shop that tests of mining share."""

import pytest

from mmtune.cli.dispatch import dispatch
from tests.support.data_helpers import write_csv
from tests.support.mining_shop import COLOURS, encoded_image, smooth_image


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    """24 rows of 12 products (2 pictures, one caption), packed; row 23 is row 0's picture again, smaller, without a sku."""
    place = tmp_path_factory.mktemp("shop")
    rows = []
    for i in range(24):
        name = f"{i:02d}.png"
        file = encoded_image(smooth_image(i)) if i < 23 else encoded_image(smooth_image(0).resize((40, 40)), "JPEG", quality=80)
        (place / name).write_bytes(file)
        product = i // 2 if i < 23 else 0
        caption = f"a {COLOURS[product % 3]} thing number {product}"
        text, sku = (caption, f"s{product}") if i < 23 else (f"A {caption[2:].upper()}!", "")
        more = {"sku": sku, "truth": f"s{product}", "kind": COLOURS[product % 3], "id": f"row{i:02d}"}
        rows.append({"image": name, "text": text, **more})
    write_csv(place / "rows.csv", rows)
    code = dispatch("pack", [str(place / "rows.csv"), "--out", str(place / "packed"), "--group", "sku"])
    assert code == 0
    return str(place / "packed")
