"""Pictures of coloured shapes in groups, packed, for tests of `mmtune label`."""

import mmtune
from tests.support.click_simulator import picture_shop


def label_shop(folder, photos=3):
    """Packed pictures; the metadata column `kind` has the true group, e.g. red-circle. Returns the directory of the shards."""
    picture_shop(folder / "shop", photos=photos, sessions=20)
    lines = (folder / "shop/items.csv").read_text().split("\n")[1:]
    rows = [line.split(",") for line in lines if line]
    table = "id,image,kind\n" + "".join(f"{sku},{photo},{sku.rpartition('-')[0]}\n" for sku, photo, _ in rows)
    (folder / "shop/rows.csv").write_text(table)
    mmtune.pack(folder / "shop/rows.csv", folder / "packed", workers=1)
    return str(folder / "packed")
