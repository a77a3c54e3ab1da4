"""The doctor finds every planted fault in a corpus with one of each kind, and nothing in a clean one."""

import io
import json

import numpy as np
import pytest

import mmtune
from mmtune.cli.dispatch import dispatch
from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.quality.doctor import doctor
from mmtune.quality.findings import SPACE
from mmtune.quality.model_checks import check_space
from mmtune.quality.value_checks import key_pairs, near_pairs
from tests.support import corpora
from tests.support.evaluate_helpers import picture, shards, sound, unit

UNTRAINED = ("collapse", "hubness", "modality-gap")  # random towers do have these
COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (180, 180, 40), (40, 180, 180), (180, 40, 180)]


def rows(seed, prefix, count=24):
    rng = np.random.default_rng(seed)
    return [
        {
            "id": f"{prefix}{i:02d}",
            "group": f"g{i % 6}",
            "png": picture(rng, COLOURS[i % 6]),
            "flac": sound(rng, 300 + 100 * (i % 6)),
            "txt": f"thing {i % 6}, number {seed}-{i}".encode(),
        }
        for i in range(count)
    ]


def coded_again(png, quality=94):
    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(png)).save(out, "JPEG", quality=quality)
    return out.getvalue()


def audio(x, rate=8000, kind="WAV"):
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, x, rate, format=kind)
    return out.getvalue()


def samples(flac):
    import soundfile

    return soundfile.read(io.BytesIO(flac))[0]


def png(x):
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(x).save(out, "PNG")
    return out.getvalue()


def plant(train, val):
    """One fault of each kind -> {finding's code: a row id that must be among its examples}."""
    rng = np.random.default_rng(99)

    def put(row, **change):
        row.update(change)
        return row["id"]

    faults = {"leak-row": val.__setitem__(0, dict(train[0])) or train[0]["id"]}
    faults["leak-id"] = put(val[1], id=train[1]["id"])
    faults["leak-image"] = put(val[2], png=train[2]["png"])
    faults["near-leak-image"] = put(val[3], jpg=coded_again(train[3]["png"]), png=None)
    faults["near-leak-audio"] = put(val[4], ogg=audio(0.5 * samples(train[4]["flac"]), kind="OGG"), flac=None)
    faults["near-leak-text"] = put(val[5], txt=train[5]["txt"].decode().upper().replace(",", " -").encode())
    faults["contradiction-audio"] = put(train[6], flac=train[7]["flac"])
    faults["duplicate-image"] = put(train[8], png=train[14]["png"])
    faults["near-duplicate-image"] = put(train[9], jpg=coded_again(train[15]["png"]), png=None)
    faults["near-contradiction-image"] = put(train[10], jpg=coded_again(train[11]["png"]), png=None)
    faults["missing-audio"] = put(train[12], flac=None)
    faults["no-group"] = put(train[13], group=None)
    faults["group-of-one"] = put(train[16], group="alone", flac=None, txt=None) and "alone"
    faults["missing-text"] = train[16]["id"]
    faults["silent-audio"] = put(val[6], flac=audio(np.zeros(8000), kind="FLAC"))
    faults["constant-audio"] = put(val[7], wav=audio(np.full(8000, 0.25)), flac=None)
    faults["clipped-audio"] = put(val[8], flac=audio((4 * samples(val[8]["flac"])).clip(-1, 1), kind="FLAC"))
    faults["mixed-sample-rate-audio"] = put(val[9], flac=sound(rng, 440, rate=16000))
    faults["constant-image"] = put(val[10], png=png(np.full((64, 64, 3), 90, np.uint8)))
    faults["low-resolution-image"] = put(val[11], png=picture(rng, (9, 99, 199), (20, 24)))
    faults["cut-text"] = put(val[12], txt=" ".join(f"word{i}" for i in range(60)).encode())
    faults["imbalance"] = "crowd"
    train += [
        {
            "id": f"crowd{i:03d}",
            "group": "crowd",
            "txt": f"crowd member {i}".encode(),
            "png": picture(rng, (99, 9, 99)),
            "flac": sound(rng, 222),
        }
        for i in range(90)
    ]
    return faults


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    top = tmp_path_factory.mktemp("doctor")
    train, val = rows(1, "t"), rows(2, "v")
    shards(top / "clean/train", train)
    shards(top / "clean/val", val)
    faults = plant(train, val)
    tidy = [{k: v for k, v in r.items() if v is not None or k == "group"} for r in train]
    shards(top / "bad/train", tidy)
    shards(top / "bad/val", [{k: v for k, v in r.items() if v is not None or k == "group"} for r in val])
    return top, faults


def test_every_planted_fault_is_found_and_nothing_else(place):
    top, faults = place
    diagnosis = doctor(str(top / "bad/val"), "tiny:all", against=[str(top / "bad/train")])
    by_code = {f.code: f for f in diagnosis.findings if f.code not in UNTRAINED}
    assert set(faults) - set(by_code) == set()
    for code, row in faults.items():
        text = " ".join(by_code[code].examples)
        assert row in text or by_code[code].count > 5, (code, row, by_code[code])
        assert by_code[code].message and by_code[code].fix and by_code[code].count >= 1
    assert set(by_code) - set(faults) == set()
    assert diagnosis.status == 1
    severities = [f.severity for f in diagnosis.findings]
    assert severities == sorted(severities)  # error, note, warning would also sort so; notes are not used here
    assert (
        "leak-row" in str(diagnosis)
        and len(diagnosis.to_pandas()) == len(diagnosis.findings)
        and "<table>" in diagnosis._repr_html_()
    )


def test_nothing_is_found_in_a_clean_corpus(place, capsys):
    top, _ = place
    diagnosis = doctor(str(top / "clean/val"), against=[str(top / "clean/train")])
    assert diagnosis.findings == [] and diagnosis.status == 0 and "nothing found" in str(diagnosis)
    assert diagnosis.facts["audio"]["sample rate"] == {"8000": 48} and diagnosis.facts["image"]["pixels"]["median"] == 64 * 48
    assert dispatch("doctor", [str(top / "clean/val"), "--against", str(top / "clean/train"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    assert dispatch("doctor", [str(top / "bad/train"), "--json"]) == 1


def test_findings_are_written_with_all_ids_and_dropped(tmp_path):
    corpus_rows = rows(1, "t", 40)
    for i in (0, 2):
        corpus_rows[i + 1] |= {"png": corpus_rows[i]["png"], "group": corpus_rows[i]["group"]}
    for i in range(20, 28):
        corpus_rows[i]["flac"] = audio(np.zeros(8000), kind="FLAC")
    data = shards(tmp_path / "d", corpus_rows)
    assert dispatch("doctor", [data, "--out", str(tmp_path / "findings.jsonl")]) in (0, 1)
    found = {f["code"]: f for f in map(json.loads, (tmp_path / "findings.jsonl").read_text().splitlines())}
    assert found["duplicate-image"]["ids"] == ["t00", "t01", "t02", "t03"]
    assert found["duplicate-image"]["drop"] == ["t01", "t03"]
    assert found["silent-audio"]["ids"] == found["silent-audio"]["drop"] == [f"t{i:02d}" for i in range(20, 28)]
    assert len(found["silent-audio"]["examples"]) == 5


def test_one_photo_a_product_is_no_group_of_one(tmp_path):
    corpus_rows = rows(1, "t", 24)
    for i, row in enumerate(corpus_rows):  # some products have a second photo
        row["group"] = f"sku{i // 2 if i < 8 else i}"
    assert "group-of-one" not in {f.code for f in doctor(shards(tmp_path / "d", corpus_rows)).findings}


def test_splits_by_a_column(tmp_path):
    corpus_rows = [{**r, "meta": {"fold": "a"}} for r in rows(1, "t", 12)] + [
        {**r, "meta": {"fold": "b"}} for r in rows(2, "v", 12)
    ]
    corpus_rows[14]["png"] = corpus_rows[3]["png"]
    data = shards(tmp_path / "d", corpus_rows)
    diagnosis = doctor(data, split="fold")
    assert [f.code for f in diagnosis.findings] == ["leak-image"] and diagnosis.findings[0].examples == ["t03 = v02"]
    assert [f.code for f in doctor(data).findings] == ["contradiction-image"]
    with pytest.raises(DataError, match="fodl"):
        doctor(data, split="fodl")


def test_a_wrong_label_is_suspected_by_its_neighbours(tmp_path):
    corpus_rows = rows(2, "v", 96)
    corpus_rows[7]["group"] = "g3"
    findings = {f.code: f for f in doctor(shards(tmp_path / "d", corpus_rows), "tiny:all").findings}
    assert {c for c in findings if c not in UNTRAINED} == {"mislabel-image", "mislabel-audio", "mislabel-text"}
    assert all(findings[c].examples == ["v07 (g3, looks like g1)"] for c in findings if c.startswith("mislabel"))


@pytest.mark.slow
def test_nothing_is_found_in_the_space_of_a_trained_model(tmp_path):
    train, val = shards(tmp_path / "train", rows(1, "t", 96)), shards(tmp_path / "val", rows(2, "v", 96))
    recipe = {"epochs": 6, "batch_size": 24, "lr": 1e-3, "precision": "fp32"}
    run = {"model": "tiny:all", "data": {"train": train}, "train": recipe, "run": {"dir": str(tmp_path / "run")}}
    mmtune.train(run, quiet=True)
    diagnosis = doctor(val, str(tmp_path / "run" / "artifact"), against=[train])
    assert diagnosis.findings == [] and "mean cosine of image" in str(diagnosis)


def space(groups=12, each=20, dim=32, noise=0.3, seed=0, gap=0.0):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(1, groups + 1), each)
    centre = rng.standard_normal((groups + 1, dim)) / dim**0.5
    n = len(group)
    out = {}
    for k, m in enumerate("ab"):
        x = centre[group] + noise * rng.standard_normal((n, dim)) / dim**0.5
        x[:, 0] += gap * (1 - 2 * k)
        out[m] = Embeddings(
            [f"r{i:03d}" for i in range(n)], [f"g{g}" for g in group], {"id": np.arange(1, n + 1), "group": group}, unit(x)
        )
    return out


def codes(vectors, scales=None):
    return {f.code: f for f in check_space(vectors, {}, scales)}


def test_a_good_space_has_no_findings_and_each_fault_has_its_own():
    assert codes(space(), {"a->b": 100.0, "b->a": 14.3}) == {}
    assert set(codes(space(), {"a->b": 1.2})) == {"scale-drift"}
    assert "modality-gap" in codes(space(gap=2.0))

    flat = space()
    flat["a"].vectors = unit(np.ones((240, 32)) + 0.02 * np.random.default_rng(0).standard_normal((240, 32)))
    assert "collapse" in codes(flat)

    with_hub = space(noise=1.5)
    with_hub["b"].vectors[7] = unit(with_hub["a"].vectors.mean(0, keepdims=True) * 50)[0]
    with_hub["a"].vectors = unit(with_hub["a"].vectors + 0.5 * with_hub["b"].vectors[7])
    findings = codes(with_hub)
    assert "hubness" in findings and "r007" in findings["hubness"].examples[0]

    wrong = space()
    for i in (5, 77):
        wrong["a"].groups[i] = wrong["b"].groups[i] = "g9"
    findings = codes(wrong)
    assert set(findings) == {"mislabel-a", "mislabel-b"} and findings["mislabel-a"].count == 2
    assert findings["mislabel-a"].examples[1].startswith("r077") or findings["mislabel-a"].examples[0].startswith("r077")


def test_near_pairs_against_every_pair():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 500)).astype(np.float32) * 4
    for i in range(0, 60, 3):
        x[i + 1] = x[i] + rng.uniform(-0.9, 0.9, 500)
        x[i + 2] = x[i]
        x[i + 2, 3] += 1.5
    expected = [(i, j) for i in range(300) for j in range(i + 1, 300) if np.abs(x[i] - x[j]).max() <= 1]
    assert near_pairs(x, np.zeros(len(x))) == expected and len(expected) >= 20
    sizes = np.arange(300) % 2
    wider = near_pairs(x, sizes)  # the third of each triple differs by 1.5 and more: a copy, if it is of another size
    assert {p for p in wider if sizes[p[0]] == sizes[p[1]]} == {p for p in expected if sizes[p[0]] == sizes[p[1]]}
    assert {(i + 1, i + 2) for i in range(0, 60, 3)} <= set(wider) > set(expected)


def test_a_smaller_copy_is_a_near_duplicate():
    from PIL import Image

    from mmtune.modalities.quality import measure

    rng = np.random.default_rng(0)
    # detail of a few pixels, as photos have it: the same tiles of a smaller copy differ by more than one unit
    one, other = (
        Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).resize((300, 300), Image.Resampling.BICUBIC)
        for _ in "ab"
    )
    out = io.BytesIO()
    one.resize((200, 200)).save(out, "JPEG", quality=75)
    found = [measure("image", b) for b in (png(np.asarray(one)), out.getvalue(), png(np.asarray(other)))]
    signatures, sizes = np.stack([m.signature for m in found]), np.array([m.size for m in found])
    assert near_pairs(signatures, sizes) == [(0, 1)] and near_pairs(signatures, np.zeros(3)) == []


def test_key_pairs_against_every_pair():
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**63, 1100, np.uint64)
    for i in range(0, 90, 3):
        keys[i + 1] = keys[i] ^ np.uint64(0b1011 << (i % 30))
        keys[i + 600] = keys[i] ^ np.uint64(0b1111111 << (i % 30))
    expected = [(i, j) for i in range(1100) for j in range(i + 1, 1100) if (int(keys[i]) ^ int(keys[j])).bit_count() <= 3]
    assert key_pairs(keys, 3) == expected and len(expected) >= 30
    assert len(key_pairs(np.zeros(40, np.uint64), 0)) <= 8 * 40


def test_truncation_is_found_by_the_towers_own_preprocessing():
    from mmtune.modalities.quality import is_truncated

    preprocess = mmtune.load("tiny:clip").towers["text"].preprocess
    assert (
        not is_truncated(preprocess, "a short one")
        and is_truncated(preprocess, "word " * 40)
        and not is_truncated(preprocess, 3.5)
    )
    first = next(n for n in range(2, 60) if is_truncated(preprocess, " ".join(f"w{i}" for i in range(n))))
    kept = preprocess(" ".join(f"w{i}" for i in range(first - 1)))
    assert all((kept[k] == v).all() for k, v in preprocess(" ".join(f"w{i}" for i in range(first))).items())


def test_towers_that_were_never_trained_together_are_checked_each_by_itself(tmp_path):
    data = corpora.packed(tmp_path, 120, 0, ("image", "text"))
    found = doctor(data, mmtune.load({"image": "tiny:clip", "text": "tiny:clap"}))
    space = found.facts[SPACE]
    assert space["never trained as a pair image->text"] == space["never trained as a pair text->image"] == 1
    assert "mean cosine of image" in space
    assert not [k for k in space if k.startswith(("gap", "skew", "temperature"))]
