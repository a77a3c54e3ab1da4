"""The demo's source folders: deterministic, leak-free, and honest about what differs."""

import collections
import csv
import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest

from mmtune import modalities
from mmtune.demo.catalog import photograph, skus, write_catalog
from mmtune.demo.machine_hall import write_machine_hall
from mmtune.demo.machines import conditions, write_machines
from mmtune.demo.products import COLORS, KINDS, Pose, draw
from mmtune.demo.sounds import FAULTS, MACHINES, SEVERITIES, _hits, machine_sound
from mmtune.errors import DataError

WRITERS = {
    "catalog": lambda out, seed: write_catalog(
        out, seed=seed, skus=8, train_per_sku=4, val_per_sku=3, base_per_kind=3, size=64
    ),
    "machines": lambda out, seed: write_machines(
        out, seed=seed, machines=1, train_recordings=2, val_recordings=1, clips=2, base_recordings=2, seconds=0.5
    ),
    "station": lambda out, seed: write_machine_hall(
        out, seed=seed, machines=2, train_per_state=3, val_per_state=2, missing=0.3, seconds=0.5
    ),
}
SIGNALS = {"catalog": ["image"], "machines": ["audio"], "station": ["image", "audio"]}


def rows_of(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {p.stem: list(csv.DictReader(p.open(newline=""))) for p in sorted(folder.glob("*.csv"))}


def digest(folder: Path) -> dict[str, str]:
    written = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in written}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("corpora")
    return {name: write(root / name, 3) for name, write in WRITERS.items()}


@pytest.mark.parametrize("name", WRITERS)
def test_same_seed_same_bytes(name: str, written: dict[str, Path], tmp_path: Path) -> None:
    assert digest(WRITERS[name](tmp_path / "again", 3)) == digest(written[name])
    other = digest(WRITERS[name](tmp_path / "other", 4))
    assert set(other) == set(digest(written[name]))
    assert all(other[f] != h for f, h in digest(written[name]).items() if not f.endswith(".csv"))


@pytest.mark.parametrize("name", WRITERS)
def test_every_row_is_readable_and_every_file_is_named_once(name: str, written: dict[str, Path]) -> None:
    named: collections.Counter[str] = collections.Counter()
    ids: collections.Counter[str] = collections.Counter()
    for rows in rows_of(written[name]).values():
        for row in rows:
            ids[row["id"]] += 1
            for m in SIGNALS[name]:
                if row[m]:
                    modalities.get(m).check((written[name] / row[m]).read_bytes())
                    named[row[m]] += 1
            present = [bool(row[m]) for m in [*SIGNALS[name], "text"]]
            assert sum(present) >= len(present) - 1 and "." not in row["id"]
    assert set(ids.values()) == {1} and set(named.values()) == {1}
    if name != "station":  # there, a blanked cell leaves its file behind
        assert set(named) == {f for f in digest(written[name]) if not f.endswith(".csv")}


def test_no_file_pose_or_recording_is_in_two_splits(written: dict[str, Path]) -> None:
    for folder in written.values():
        contents = collections.Counter(h for f, h in digest(folder).items() if not f.endswith(".csv"))
        assert set(contents.values()) == {1}
    for name, column in (("catalog", "pose"), ("machines", "recording")):
        rows = rows_of(written[name])
        assert not {r[column] for r in rows["train"]} & {r[column] for r in rows["val"]}
        assert {r["group"] for r in rows["train"]} == {r["group"] for r in rows["val"]}
        assert {r["text"] for r in rows["val"]} <= {r["text"] for r in rows["train"]} | {r["text"] for r in rows["val"]}


def test_counts(written: dict[str, Path]) -> None:
    count = {name: {s: len(r) for s, r in rows_of(folder).items()} for name, folder in written.items()}
    assert count["catalog"] == {"train": 8 * 4, "val": 8 * 3, "base": 3 * len(KINDS)}
    assert count["machines"] == {"train": 16 * 2 * 2, "val": 16 * 1 * 2, "base": 2 * 2}
    assert count["station"] == {"train": 2 * 6 * 3, "val": 2 * 6 * 2}


def test_texts_tell_a_group_and_coarse_words_do_not(written: dict[str, Path]) -> None:
    for name in ("catalog", "machines"):
        rows = [r for s in ("train", "val") for r in rows_of(written[name])[s]]
        groups_of_text = collections.defaultdict(set)
        for r in rows:
            groups_of_text[r["text"]].add(r["group"])
            assert r["category"] in r["coarse"] and r["category"] in r["text"]
            assert not any(word in r["coarse"] for word in (*COLORS, *SEVERITIES))
        assert all(len(g) == 1 for g in groups_of_text.values())
        base = rows_of(written[name])["base"]
        assert base and all(r["category"] in r["text"] and r["group"] == f"any-{r['category']}" for r in base)


def test_a_family_differs_in_the_detail_alone() -> None:
    """Same pose, same colour: less than a third of the product's pixels change, but enough to be seen at 64 pixels."""
    for kind, (_, details) in KINDS.items():
        arts = [np.asarray(draw(kind, COLORS["navy"], d, Pose(), 64), float) for d in details]
        body = (arts[0][..., 3] > 128).sum()
        for a, b in itertools.combinations(arts, 2):
            changed = (np.abs(a - b).max(-1) > 60).sum()
            assert 12 <= changed <= 0.3 * body, kind


def test_products_come_in_whole_families() -> None:
    everything = skus()
    assert len(set(everything)) == len(everything) == sum(len(d) for _, d in KINDS.values()) * len(COLORS)
    for start in range(0, 48, 4):
        family = everything[start : start + 4]
        assert len({(k, c) for k, c, _ in family}) == 1 and len({d for *_, d in family}) == 4


def test_a_photo_shows_the_product_in_its_color() -> None:
    art = draw("bag", COLORS["red"], "no pocket", Pose(), 80)
    shots = [np.asarray(photograph(art, np.random.default_rng(i), 64), float) for i in range(5)]
    for shot in shots:
        center = shot[34:48, 24:40].mean((0, 1))
        assert shot.shape == (64, 64, 3) and center[0] > 1.8 * center[1] and center[0] > 1.8 * center[2]
    assert all(np.abs(a - b).mean() > 3 for a, b in itertools.combinations(shots, 2))


def test_bearing_hits_come_at_their_order() -> None:
    rate, speed, order = 8000, 10.0, 3.58
    turns = np.arange(4 * rate) / rate * speed
    hits = _hits(turns, order, 1350, 0.002, np.random.default_rng(0), rate)
    envelope = np.abs(hits)
    loud = np.flatnonzero(envelope > 0.3 * envelope.max())
    strikes = 1 + (np.diff(loud) > rate * 0.01).sum()
    assert abs(strikes - 4 * speed * order) <= 2
    spectrum = np.abs(np.fft.rfft(envelope - envelope.mean()))
    assert abs(np.argmax(spectrum[: 4 * 60]) / 4 - order * speed) < 0.5


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_worse_fault_stands_out_more(machine: str, fault: str) -> None:
    """The same recording (same random numbers) with and without: what is added grows with the grade."""

    def sound(f: str | None, s: float) -> np.ndarray:
        return machine_sound(machine, f, s, np.random.default_rng(5), 1.0, 8000)

    assert np.abs(sound(fault, 5.0)).max() <= 1
    healthy = np.abs(np.fft.rfft(sound(None, 0.0)))
    added = [np.sqrt(((np.abs(np.fft.rfft(sound(fault, s))) - healthy) ** 2).mean()) for s in SEVERITIES.values()]
    assert added[0] < added[1] < added[2]


def test_conditions_are_graded() -> None:
    assert len(conditions()) == 1 + len(FAULTS) * len(SEVERITIES) and conditions()[0] == (None, "none")


def test_missing_cells_are_about_as_many_as_asked(tmp_path: Path) -> None:
    rows = rows_of(write_machine_hall(tmp_path, machines=2, train_per_state=10, val_per_state=1, missing=0.4, seconds=0.1))[
        "train"
    ]
    gaps = collections.Counter(m for r in rows for m in ("image", "audio", "text") if not r[m])
    assert 0.25 * len(rows) < sum(gaps.values()) < 0.55 * len(rows) and max(gaps.values()) - min(gaps.values()) <= 8


def test_more_than_can_be_drawn_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="skus=1000"):
        write_catalog(tmp_path, skus=1000)
    with pytest.raises(DataError, match="machines=9"):
        write_machines(tmp_path, machines=9)
    with pytest.raises(DataError, match="machines=9"):
        write_machine_hall(tmp_path, machines=9)
