"""Duplicates: exact, re-encoded, reworded; groups, copies, leaks and contradictions; searches against naive loops."""

import io
import itertools
import json

import numpy as np
import PIL.Image
import pytest
import soundfile

import mmtune
from mmtune.cli import main
from mmtune.errors import DataError
from mmtune.pairs.duplicate_rows import group_duplicates
from mmtune.pairs.hash_neighbours import hash_pairs
from mmtune.pairs.near_texts import jaccard, shingles, text_pairs
from mmtune.runtime.progress import Progress
from tests.support.pairs_helpers import dropped, picture, rows_of


def lines(directory, kind):
    found = map(json.loads, (directory / "duplicates.jsonl").read_text().split("\n")[:-1])
    return [line for line in found if line["kind"] == kind]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def photos(tmp_path):
    """a: a picture; b: the same bytes; c: smaller and as JPEG; d: another one; v: in val, the picture d encoded again."""
    (tmp_path / "a.png").write_bytes(picture(1, 64))
    (tmp_path / "b.png").write_bytes(picture(1, 64))
    (tmp_path / "c.jpg").write_bytes(picture(1, 48, "JPEG", quality=80))
    (tmp_path / "d.png").write_bytes(picture(2, 64))
    (tmp_path / "v.jpg").write_bytes(picture(2, 64, "JPEG", quality=85))
    files = ["a.png", "b.png", "c.jpg", "d.png"]
    write_rows(tmp_path / "val.jsonl", [{"id": "v", "image": "v.jpg", "text": "a bag"}])
    return write_rows(
        tmp_path / "train.jsonl", [{"id": f[0], "image": f, "text": "a bag" if f[0] == "d" else "a boot"} for f in files]
    )


def test_duplicates_without_a_group_get_one(tmp_path, photos):
    result = group_duplicates(photos, tmp_path / "out", quiet=True)
    assert {r["id"]: r.get("group") for r in rows_of(tmp_path / "out")} == {
        "a": "same:a",
        "b": "same:a",
        "c": "same:a",
        "d": None,
    }
    assert result.measures == {"rows in new groups": 3, "copies": 0, "leaks": 0, "contradictions": 0}
    exact = group_duplicates(photos, tmp_path / "exact", distance=-1, quiet=True)
    assert exact.measures["rows in new groups"] == 2


def test_copies_are_dropped_only_if_all_their_values_repeat(tmp_path, photos):
    rows = [json.loads(line) for line in photos.read_text().split("\n")[:-1]]
    write_rows(photos, [*rows, {"id": "e", "image": "a.png", "text": "another caption of it"}])
    group_duplicates(photos, tmp_path / "out", action="drop", quiet=True)
    assert {r["id"]: r.get("group") for r in rows_of(tmp_path / "out")} == {"a": "same:a", "e": "same:a", "d": None}
    assert dropped(tmp_path / "out") == {"repeats an earlier row": 2}
    assert lines(tmp_path / "out", "copies") == [{"kind": "copies", "drop": ["b", "c"], "same as": "a"}]
    packed = mmtune.pack(photos, tmp_path / "packed", drop=tmp_path / "out/duplicates.jsonl")
    assert packed.dropped == 2 and packed.packed == 3


def test_rows_of_another_split_are_dropped(tmp_path, photos):
    result = group_duplicates(photos, tmp_path / "out", against=[tmp_path / "val.jsonl"], quiet=True)
    assert [r["id"] for r in rows_of(tmp_path / "out")] == ["a", "b", "c"] and result.measures["leaks"] == 1
    assert lines(tmp_path / "out", "leak") == [
        {"kind": "leak", "drop": ["d"], "same as": "v", "in": str(tmp_path / "val.jsonl")}
    ]


def test_given_groups_stay_and_contradictions_are_listed(tmp_path, photos):
    rows = [json.loads(line) | {"group": g} for line, g in zip(photos.read_text().split("\n")[:-1], "XYX ", strict=True)]
    write_rows(photos, rows)
    group_duplicates(photos, tmp_path / "out", action="drop", quiet=True)
    assert [(r["id"], r.get("group")) for r in rows_of(tmp_path / "out")] == [("a", "X"), ("b", "Y"), ("d", None)]
    assert lines(tmp_path / "out", "contradiction") == [
        {"kind": "contradiction", "drop": [], "ids": ["a", "b", "c"], "groups": ["X", "Y", "X"]}
    ]


def test_sounds_by_their_fingerprint(tmp_path):
    rng = np.random.default_rng(0)
    envelope = np.repeat(rng.random(20), 800)
    sound = (0.2 * envelope * rng.standard_normal(16000).cumsum() / 30).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 8000)
    soundfile.write(tmp_path / "quieter.flac", sound * 0.5, 8000)
    soundfile.write(tmp_path / "other.wav", rng.permutation(sound), 8000)
    rows = [{"id": n, "audio": f, "text": "hum"} for n, f in (("a", "a.wav"), ("q", "quieter.flac"), ("o", "other.wav"))]
    group_duplicates(write_rows(tmp_path / "s.jsonl", rows), tmp_path / "out", quiet=True)
    assert {r["id"]: r.get("group") for r in rows_of(tmp_path / "out")} == {"a": "same:a", "q": "same:a", "o": None}


def test_texts_by_minhash(tmp_path):
    long = "a warm brown leather boot with a rubber sole for the winter and for long walks in the snow"
    rows = [{"text": long}, {"text": long.upper() + "!"}, {"text": long + " today"}, {"text": "a bag"}, {"text": "A  bag."}]
    path = write_rows(tmp_path / "t.jsonl", [{"id": str(n), **row} for n, row in enumerate(rows)])
    group_duplicates(path, tmp_path / "out", quiet=True)
    assert [r.get("group") for r in rows_of(tmp_path / "out")] == ["same:0"] * 3 + ["same:3"] * 2
    group_duplicates(path, tmp_path / "exact", threshold=1.0, quiet=True)
    assert [r.get("group") for r in rows_of(tmp_path / "exact")] == ["same:0", "same:0", None, "same:3", "same:3"]


def test_an_interrupted_search_does_not_decode_again(tmp_path, photos, monkeypatch):
    from mmtune.pairs import content_hashes, duplicate_rows

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(duplicate_rows, "near_contents", stop)
    with pytest.raises(KeyboardInterrupt):
        group_duplicates(photos, tmp_path / "out", quiet=True)
    monkeypatch.undo()
    (tmp_path / "d.png").write_bytes(picture(3, 66))  # a file that has changed since is read again
    read = []
    whole = content_hashes.hash_value
    monkeypatch.setattr(content_hashes, "hash_value", lambda value, m: read.append((m, value)) or whole(value, m))
    group_duplicates(photos, tmp_path / "out", quiet=True)
    assert [v for m, v in read if m == "image"] == [str(tmp_path / "d.png")]
    resumed = rows_of(tmp_path / "out")
    group_duplicates(photos, tmp_path / "whole", quiet=True)
    assert resumed == rows_of(tmp_path / "whole")


def test_broken_twins_of_duplicates(tmp_path, photos, capsys):
    (tmp_path / "c.jpg").write_bytes((tmp_path / "c.jpg").read_bytes()[:200])
    rows = [json.loads(line) for line in photos.read_text().split("\n")[:-1]]
    photos.write_text(
        "".join(json.dumps(r) + "\n" for r in [*rows, rows[0], {"id": "u", "image": "https://x.y/z.png"}]) + '{"id": '
    )
    group_duplicates(photos, tmp_path / "out", quiet=True)
    assert dropped(tmp_path / "out") == {
        "image: cannot be decoded; compared by its bytes only": 1,
        "image: is a URL; download the files to compare them": 1,
        "the id of an earlier row": 1,
        "not valid JSON": 1,
    }
    assert [r["id"] for r in rows_of(tmp_path / "out")] == ["a", "b", "c", "d", "u"]
    assert main(["pairs", "duplicates", str(photos), "--by", "audio", "--out", str(tmp_path / "o")]) == 2
    assert "no values of audio to compare (--by); it has image, text" in capsys.readouterr().err
    with pytest.raises(DataError, match="--threshold 0: a share above 0"):
        group_duplicates(photos, tmp_path / "o", threshold=0)


@pytest.mark.parametrize("distance", [-1, 0, 3, 8])
def test_hash_pairs_equal_a_naive_loop(distance):
    rng = np.random.default_rng(distance + 1)
    hashes = rng.integers(0, 2**63, 150).astype(np.uint64)
    for _ in range(150):
        near = hashes[rng.integers(150)]
        for bit in rng.integers(0, 64, rng.integers(1, 12)):
            near ^= np.uint64(1) << np.uint64(bit)
        hashes = np.append(hashes, near)
    hashes = np.unique(hashes)
    naive = [
        [i, j] for i, j in itertools.combinations(range(len(hashes)), 2) if int(hashes[i] ^ hashes[j]).bit_count() <= distance
    ]
    assert hash_pairs(hashes, distance).tolist() == naive
    assert distance <= 0 or naive


def test_text_pairs_equal_a_naive_loop():
    rng = np.random.default_rng(0)
    words = np.array("red blue warm long boot bag hat with of leather rubber sole strap zip".split())
    texts = [" ".join(rng.choice(words, 12)) for _ in range(40)]
    for n in range(40):
        part = texts[n].split()
        part[rng.integers(12)] = "new"
        texts.append(" ".join(part))
    naive = [[i, j] for i, j in itertools.combinations(range(80), 2) if jaccard(shingles(texts[i]), shingles(texts[j])) >= 0.5]
    with Progress("x", 80, quiet=True) as progress:
        found = text_pairs(texts, 0.5, progress)
    assert sorted(found.tolist()) == naive and len(naive) > 20


def test_pictures_of_the_helpers_are_different():
    a, b = (PIL.Image.open(io.BytesIO(picture(n))) for n in (1, 2))
    from mmtune.modalities.perceptual_hash import IMAGE_DISTANCE, image_hash

    assert (image_hash(a.convert("RGB")) ^ image_hash(b.convert("RGB"))).bit_count() > IMAGE_DISTANCE
