"""Near-duplicate keys of every modality, and the guard that compares them."""

import numpy as np
import pyarrow.parquet as pq
from PIL import Image as PILImage

from mmtune import modalities
from mmtune.data.shards.dataset import open_data
from mmtune.mining.context import row_finder
from mmtune.mining.mine_vectors import mine_vectors
from mmtune.mining.near_duplicates import NearDuplicates, hash_contents
from mmtune.modalities.audio import Sound
from mmtune.relevance.items import unique_items
from tests.support.mining_shop import content_vectors, encoded_image, smooth_image, unguarded


def test_keys_survive_reencoding_and_differ_between_contents():
    image, audio, text = (modalities.get(m) for m in ("image", "audio", "text"))
    keys = [image.near_duplicate_key(smooth_image(s, 128)) for s in range(40)]
    for s in range(40):
        again = image.near_duplicate_key(image.decode(encoded_image(smooth_image(s, 128).resize((80, 80)), "JPEG", quality=50)))
        assert (keys[s] ^ again).bit_count() <= image.near_duplicate_distance
    assert min((a ^ b).bit_count() for i, a in enumerate(keys) for b in keys[:i]) > image.near_duplicate_distance
    assert image.near_duplicate_key(PILImage.new("RGB", (50, 50), "white")) is None

    def tones(seed):
        rng = np.random.default_rng(seed)
        t = np.arange(24000) / 12000
        waves = [
            rng.uniform(0.2, 1) * np.sin(2 * np.pi * (f * t + rng.uniform(-150, 150) * t**2)) for f in rng.uniform(200, 2500, 6)
        ]
        return Sound((sum(waves) / 6 + 0.01 * rng.standard_normal(24000)).astype(np.float32), 12000)

    sounds = [tones(s) for s in range(12)]
    keys = [audio.near_duplicate_key(s) for s in sounds]
    for s, key in zip(sounds, keys, strict=True):
        quieter = s.resampled(8000)
        assert (key ^ audio.near_duplicate_key(Sound(quieter.samples * 0.3, 8000))).bit_count() <= audio.near_duplicate_distance
    assert min((a ^ b).bit_count() for i, a in enumerate(keys) for b in keys[:i]) > audio.near_duplicate_distance
    assert audio.near_duplicate_key(Sound(np.zeros(9000, np.float32), 8000)) is None
    assert (
        text.near_duplicate_key("A Red  thing!")
        == text.near_duplicate_key("a red thing")
        != text.near_duplicate_key("a red things")
    )
    assert text.near_duplicate_key("...") is None


def test_near_duplicates_without_a_group_are_dropped_in_both_modalities(shop, tmp_path):
    data = open_data(shop)
    o = unguarded(negatives=22, window=23).model_copy(
        update={"guards": unguarded().guards.model_copy(update={"near_duplicates": True})}
    )
    mine_vectors(content_vectors(data), tmp_path / "t.parquet", o, data=data, cache=tmp_path)
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    near = {(r["direction"], r["query_id"], r["negative_id"]) for r in table if r["reason"] == "near_duplicate"}
    # row 23 is row 0's picture and (but for case) its caption; rows 0 and 1 share that caption, under the id row00
    assert ("text->image", "row00", "row23") in near and ("image->text", "row23", "row00") in near
    assert ("image->text", "row00", "row23") in near and ("text->image", "row23", "row00") in near
    assert all("row23" in (q, n) for _, q, n in near)
    assert len(list(tmp_path.glob("near-*.npz"))) == 2
    sig = {m: hash_contents(data, m, tmp_path) for m in data.modalities}
    e = content_vectors(data)["image"]
    items = unique_items("image", e)
    number = {i: n for n, i in enumerate(items.ids)}
    pairs = NearDuplicates(items, items, {"image": sig["image"]}, row_finder(data)).contains(
        np.arange(24), np.tile(np.arange(24), (24, 1))
    )
    assert pairs[number["row00"], number["row23"]] and pairs.sum() == 24 + 2
