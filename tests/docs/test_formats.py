"""Every cell of the tables in docs/formats.md: what they say is read is read, and what they say is refused is refused in one line."""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtune import load, modalities
from mmtune.data.pack.pack import pack
from mmtune.data.shards import open_data
from mmtune.data.shards.dataset import Data
from mmtune.errors import DataError
from tests.support import serve_helpers
from tests.support.data_helpers import picture
from tests.support.docs_helpers import ROOT
from tests.support.hub_layouts import clone_of_repository, hub_table, save_dict_to_disk, save_to_disk
from tests.support.media_files import encoded
from tests.support.public_reports import add

CAPTION = "Stiefel für 3 €"
ENCODINGS = {"UTF-8": "utf-8", "UTF-16 (with byte-order mark)": "utf-16", "Windows-1252": "cp1252"}
PLACES = ("folder", "table", "tar", "Parquet", "dataset", "encode", "upload")


def table_rows(head: str) -> list[list[str]]:
    """The rows of the table of docs/formats.md whose first row begins with `head`."""
    lines = (ROOT / "docs" / "formats.md").read_text().split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {head} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return found
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


FORMATS = table_rows("modality")
SOURCES = table_rows("source")
CELLS = [
    pytest.param(name, kind, ending, place, said, id=f"{kind.split(',')[0]}-{ending}-{place}")
    for name, kind, endings, *cells in FORMATS
    for ending in endings.split()
    for place, said in zip(PLACES, cells, strict=True)
    if said != "-"
]


def value(modality: str, kind: str, ending: str) -> bytes:
    """A file of this format; no two formats have equal bytes."""
    if modality == "text":
        return CAPTION.encode(ENCODINGS[kind])
    return encoded(modality, ending)


class Packed:
    """All formats of the table, packed from one place at a time, when a test first asks for it."""

    def __init__(self, root: Path):
        self.root = root
        self.values = {(m, k, e): value(m, k, e) for m, k, endings, *_ in FORMATS for e in endings.split()}
        self.media = {key: data for key, data in self.values.items() if key[0] != "text"}
        self._made: dict[str, Data] = {}

    def open(self, place: str) -> Data:
        if place not in self._made:
            source = getattr(self, place.lower())(self.root / place)
            pack(source, self.root / f"{place}-packed")
            self._made[place] = open_data(str(self.root / f"{place}-packed"))
        return self._made[place]

    def folder(self, at: Path) -> Path:
        for number, (modality, kind, ending) in enumerate(self.values):
            at.mkdir(exist_ok=True)
            (at / f"{number}.{ending}").write_bytes(self.values[modality, kind, ending])
            (at / f"{number}.txt").write_text(f"{modality} {kind} {ending}") if modality != "text" else None
        return at

    def table(self, at: Path) -> Path:
        at.mkdir()
        lines = ["image,audio,name"]
        for number, ((modality, kind, ending), data) in enumerate(self.media.items()):
            (at / f"{number}.{ending}").write_bytes(data)
            cell = f"{number}.{ending}"
            lines.append(
                f"{cell if modality == 'image' else ''},{cell if modality == 'audio' else ''},{kind} {ending}".replace(
                    ", PGM", ""
                )
            )
        (at / "t.csv").write_text("\n".join(lines))
        return at / "t.csv"

    def tar(self, at: Path) -> Path:
        at.mkdir()
        with tarfile.open(at / "x.tar", "w") as tar:
            for number, ((_, _, ending), data) in enumerate(self.values.items()):
                add(tar, f"{number}.{ending}", data)
        return at / "x.tar"

    def rows(self) -> list[dict[str, object]]:
        return [
            {"image": None, "audio": None} | {m: {"bytes": data, "path": f"{number}.{e}"}} | {"text": CAPTION}
            for number, ((m, _, e), data) in enumerate(self.media.items())
        ]

    def parquet(self, at: Path) -> Path:
        at.mkdir()
        rows = [{k: v["bytes"] if isinstance(v, dict) else v for k, v in row.items()} for row in self.rows()]
        pq.write_table(pa.Table.from_pylist(rows), at / "t.parquet")
        return at / "t.parquet"

    def dataset(self, at: Path) -> Path:
        return save_to_disk(hub_table(self.rows(), ("image", "audio")), at)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return Packed(tmp_path_factory.mktemp("formats"))


@pytest.fixture(scope="module")
def model():
    return load("tiny:all")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    with serve_helpers.client(serve_helpers.collection(tmp_path_factory)) as found:
        yield found


@pytest.mark.parametrize(("modality", "kind", "ending", "place", "said"), CELLS)
def test_what_the_table_of_formats_says(modality, kind, ending, place, said, packed: Packed, request, tmp_path: Path) -> None:
    assert said == "yes"
    data = packed.values[modality, kind, ending]
    if place == "encode":
        encode(request.getfixturevalue("model"), modality, ending, data, tmp_path)
    elif place == "upload":
        upload(request.getfixturevalue("web"), modality, ending, data)
    elif modality == "text" and place == "table":
        (tmp_path / "t.csv").write_bytes(f"text,price\n{CAPTION},3\n".encode(ENCODINGS[kind]))
        pack(tmp_path / "t.csv", tmp_path / "d")
        assert open_data(str(tmp_path / "d")).read(0, "text").decode() == CAPTION
    else:
        opened = packed.open(place)
        stored = [opened.read(i, modality) for i in np.flatnonzero(opened.present[modality])]
        assert (CAPTION.encode() if modality == "text" else data) in stored


def encode(model, modality: str, ending: str, data: bytes, folder: Path) -> None:
    """A path, bytes, an open file and a Hugging Face dictionary have one vector; of a caption its string has one."""
    (folder / f"x.{ending}").write_bytes(data)
    values = (
        [CAPTION] if modality == "text" else [folder / f"x.{ending}", data, io.BytesIO(data), {"bytes": data, "path": None}]
    )
    vectors = model.encode(**{modality: values})
    assert vectors.shape == (len(values), model.dim) and np.isfinite(vectors).all()
    assert np.allclose(vectors, vectors[:1], atol=1e-6)


def upload(web, modality: str, ending: str, data: bytes) -> None:
    field = {"text": (None, CAPTION)} if modality == "text" else {"file": (f"x.{ending}", data)}
    answer = web.post("/search", files=field, data={"k": "3"})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"]) == 3


def test_the_table_has_every_ending_of_every_modality() -> None:
    for name in ("image", "audio", "text"):
        listed = {e for modality, _, endings, *_ in FORMATS if modality == name for e in endings.split()}
        assert listed == set(modalities.get(name).extensions), name
    assert {cell for row in FORMATS for cell in row[3:]} == {"yes", "-"}


# --- sources -------------------------------------------------------------------------------------------------------------

BOOTS: list[dict[str, object]] = [
    {"image": {"bytes": picture(i), "path": None}, "text": f"Stiefel für {i} €"} for i in range(4)
]
TEXTS = [str(r["text"]) for r in BOOTS]


def lines(separator: str) -> str:
    return "\n".join([f"text{separator}price", *(f"{t}{separator}3" for t in TEXTS)]) + "\n"


def tar_file(path: Path, rows: range = range(4)) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in rows:
            add(tar, f"{i}.png", picture(i))
            add(tar, f"{i}.txt", TEXTS[i].encode())
    return path


def written(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def files(at: Path, captions: str) -> Path:
    for i, text in enumerate(TEXTS):
        folder = at / text if captions == "classes" else at
        written(folder / f"{i}.png", picture(i))
        if captions == "side-cars":
            written(folder / f"{i}.txt", text)
    if captions == "metadata":
        written(at / "metadata.csv", "file_name,text\n" + "".join(f"{i}.png,{t}\n" for i, t in enumerate(TEXTS)))
    return at


def parquet_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(hub_table(BOOTS), path)
    return path


def packed_table(at: Path, **options: str) -> Path:
    pack(
        written(at / "t.csv", "text,split\n" + "".join(f"{t},{s}\n" for t, s in zip(TEXTS, "aabb", strict=True))),
        at / "d",
        **options,
    )
    return at / "d"


def zipped(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.png", picture(0))
    return path


def at_url(folder: Path) -> str:
    import fsspec

    fsspec.filesystem("memory").put(str(tar_file(folder / "x.tar")), "/formats/x.tar")
    return "memory://formats/x.tar"


def truncated(path: Path) -> Path:
    with tarfile.open(path) as tar:
        cut = tar.getmembers()[6].offset_data + 9  # within the picture of the last row
    return written(path, path.read_bytes()[:cut])


def gzipped(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "0.png", picture(0))
    return path


def concatenated(at: Path) -> Path:
    whole = tar_file(at / "a.tar", range(2)).read_bytes() + tar_file(at / "b.tar", range(2, 4)).read_bytes()
    return written(at / "ab" / "x.tar", whole)


MAKERS: dict[str, Callable[[Path], Path | str]] = {
    "CSV, UTF-8": lambda p: written(p / "t.csv", lines(",")),
    "CSV, UTF-16": lambda p: written(p / "t.csv", lines(",").encode("utf-16")),
    "CSV, Windows-1252": lambda p: written(p / "t.csv", lines(",").encode("cp1252")),
    "TSV": lambda p: written(p / "t.tsv", lines("\t")),
    "JSON lines": lambda p: written(p / "t.jsonl", "".join(f'{{"text": "{t}"}}\n' for t in TEXTS)),
    "Parquet file": lambda p: parquet_file(p / "t.parquet"),
    "folder of Parquet files": lambda p: parquet_file(p / "t" / "year=2024" / "part-0.parquet").parents[1],
    "Hugging Face `Dataset.save_to_disk`": lambda p: save_to_disk(hub_table(BOOTS), p / "x"),
    "Hugging Face `DatasetDict.save_to_disk`": lambda p: save_dict_to_disk({"train": hub_table(BOOTS)}, p / "x"),
    "clone of a Hugging Face repository of Parquet files": lambda p: clone_of_repository({"train": hub_table(BOOTS)}, p / "x"),
    "clone of a Hugging Face repository of CSV files": lambda p: (
        written(written(p / "x" / "README.md", "# boots").parent / "train.csv", lines(",")).parent
    ),
    "folder of files and `metadata.csv`": lambda p: files(p / "x", "metadata"),
    "folder of files and their captions": lambda p: files(p / "x", "side-cars"),
    "folder with a subfolder per class": lambda p: files(p / "x", "classes"),
    "tar": lambda p: tar_file(p / "x.tar"),
    "folder of tars": lambda p: tar_file(p / "x" / "0.tar").parent,
    "concatenated tars": concatenated,
    "truncated tar": lambda p: truncated(tar_file(p / "x.tar")),
    ".tar.gz": lambda p: gzipped(p / "x.tar.gz"),
    ".zip": lambda p: zipped(p / "x.zip"),
    "what `pack` wrote": packed_table,
    "what `pack --split` wrote": lambda p: packed_table(p, split="split"),
    "URL of tars": at_url,
}


@pytest.mark.parametrize(
    ("kind", "use", "said"),
    [
        pytest.param(kind, use, said, id=f"{kind}-{use}")
        for kind, *cells in SOURCES
        for use, said in zip(("pack", "DATA"), cells, strict=True)
    ],
)
def test_what_the_table_of_sources_says(kind: str, use: str, said: str, tmp_path: Path, monkeypatch, recwarn) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "made").mkdir()
    made = MAKERS[kind](tmp_path / "made")

    def read() -> list[str]:
        if use == "pack":
            pack(made, tmp_path / "out", max_rejected=1)
        data = open_data(str(tmp_path / "out" if use == "pack" else made))
        return [data.read(i, "text").decode() for i in range(len(data))]

    if said == "yes":
        assert read() == TEXTS
    elif said == "what is whole":
        assert read() == TEXTS[:3] and "truncated or damaged at byte" in str(recwarn[0].message)
    else:
        with pytest.raises(DataError, match="mmtune pack|pack it first" if said == "pack it first" else "") as refused:
            read()
        assert "\n" not in str(refused.value)


def test_the_table_of_sources_has_no_row_without_a_test() -> None:
    assert [row[0] for row in SOURCES] == list(MAKERS)
    assert {cell for row in SOURCES for cell in row[1:]} == {"yes", "no", "pack it first", "what is whole"}
