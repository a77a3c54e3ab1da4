"""Mangled inputs of every kind and what reads them; a program that runs a share of them and writes what came of each.

python -m tests.support.mangled_cases OUT FIRST STOP STEP: runs the cases FIRST, FIRST + STEP, ... below STOP and appends a JSON line
to OUT when a case begins and when it ends. So a crash of the process belongs to the case that has begun last.
"""

import io
import json
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmtune import modalities
from mmtune.errors import MmtuneError, Rejected
from tests.support.data_helpers import lying_wav, png_bomb
from tests.support.hub_layouts import hub_table, save_to_disk
from tests.support.mangle import json_bytes, mangle, mangle_json
from tests.support.media_files import encoded
from tests.support.public_reports import add

SECONDS = 30
"""A case that takes longer counts as a hang."""
MEMORY = 6 << 30
"""Limit of the data of a process, in bytes."""
ENDINGS = {n: [e for e in modalities.get(n).extensions if e not in ("jpeg", "tif", "aif")] for n in ("image", "audio")}


class Hang(BaseException):
    """Raised by the alarm; no `except Exception` catches it."""


@cache
def media(modality: str, ending: str) -> bytes:
    return encoded(modality, ending)


def mangled_media(rng: random.Random, modality: str | None = None) -> tuple[str, str, bytes]:
    """(modality, ending, bytes) of a damaged picture or sound."""
    name = modality or rng.choice(["image", "audio"])
    ending = rng.choice(ENDINGS[name])
    if rng.random() < 0.1:
        return ("image", "png", png_bomb(60_000, 60_000, False)) if name == "image" else ("audio", "wav", lying_wav(rng))
    return name, ending, mangle(media(name, ending), rng)


# --- one value -----------------------------------------------------------------------------------------------------------


def decode(rng: random.Random, folder: Path) -> None:
    """A picture or a sound: decoded, or Rejected in one line, by every way in."""
    name, ending, data = mangled_media(rng)
    kind = modalities.get(name)
    (folder / f"x.{ending}").write_bytes(data)
    for read in (
        lambda: kind.decode(data), lambda: kind.check_header(data), lambda: kind.decode_scaled(data, 32.0),
        lambda: kind.coerce(folder / f"x.{ending}"), lambda: kind.media_type(data), lambda: kind.content_key(kind.reencode(data)[0]),
    ):  # fmt: off
        try:
            read()
        except Rejected as e:
            assert "\n" not in str(e) and str(e)


def decode_caption(rng: random.Random, folder: Path) -> None:
    data = mangle("Stiefel für 3 €, caf\u00e9\n".encode(rng.choice(["utf-8", "utf-16"])), rng)
    kind = modalities.get("text")
    data, _ = kind.reencode(data)
    try:
        kind.check(data)
        assert kind.decode(data).strip()
        kind.content_key(data)
    except Rejected as e:
        assert "\n" not in str(e)


# --- sources of rows -----------------------------------------------------------------------------------------------------


def rows_of(source: Path, lines: int | None = None) -> None:
    """Every row of a source becomes a row to pack or has a reason. lines: how many source rows there are."""
    from mmtune.data.pack.columns import assign_columns
    from mmtune.data.sources.row_source import open_source

    opened = open_source(source)
    roles = assign_columns(opened, {}, None, None, None)
    count = 0
    for number, cells in opened.rows(set(opened.columns)):
        count += 1
        made = roles.rows(number, cells, number)
        assert made and all(r.reason or r.values for r in made)
        for row in made:
            json.dumps({"id": row.id, "group": row.group, "meta": row.meta}, ensure_ascii=False).encode()
            assert "\n" not in (row.reason or "")
    assert lines is None or count == lines, (count, lines)


def table_lines(separator: str, rng: random.Random) -> bytes:
    names = ["id", "text", "price", "group", rng.choice(["sku", "image", "audio", "", "text", "split"])]
    rows = [
        [str(i), f'boot "{i}", größe' if separator == "\t" else f'"boot, {i}"', f"{i}.5", f"g{i // 2}", f"s{i}"]
        for i in range(9)
    ]
    return "\n".join(separator.join(r) for r in [names, *rows]).encode()


def text_table(rng: random.Random, folder: Path) -> None:
    separator, suffix = rng.choice([(",", "csv"), ("\t", "tsv"), (";", "csv")])
    (folder / f"t.{suffix}").write_bytes(mangle(table_lines(separator, rng), rng))
    rows_of(folder / f"t.{suffix}")


def json_lines(rng: random.Random, folder: Path) -> None:
    good = {"id": 1, "text": ["boot", "shoe"], "image": "0.png", "meta": {"a": [1, 2.5]}, "group": "g"}
    lines = [json_bytes(mangle_json(good, rng), rng).replace(b"\n", b" ") for _ in range(rng.randrange(1, 9))]
    (folder / "t.jsonl").write_bytes(b"\n".join(lines))
    utf16 = lines[0][:2] in (b"\xff\xfe", b"\xfe\xff")  # then the newlines between the other lines are none
    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
    blank = sum(not line.decode("utf-8", "replace").strip() for line in lines)
    rows_of(folder / "t.jsonl", None if utf16 else len(lines) - blank)


def arrow_table(rng: random.Random, folder: Path) -> None:
    rows: list[dict[str, object]] = [
        {"image": {"bytes": bytes(9), "path": None}, "label": i % 2, "text": f"boot {i}"} for i in range(9)
    ]
    table = hub_table(rows, classes={"label": ["a", "b"]})
    if rng.random() < 0.5:
        save_to_disk(table, folder / "x")
        files = sorted((folder / "x").iterdir())
        file = rng.choice(files)
        file.write_bytes(
            json_bytes(mangle_json(json.loads(file.read_bytes()), rng), rng)
            if file.suffix == ".json"
            else mangle(file.read_bytes(), rng)
        )
        rows_of(folder / "x")
    else:
        if rng.random() < 0.3:
            features = json_bytes(
                mangle_json({"info": {"features": {"label": {"names": ["a"], "_type": "ClassLabel"}}}}, rng), rng
            )
            table = table.replace_schema_metadata({"huggingface": features})
        pq.write_table(table, folder / "t.parquet")
        (folder / "t.parquet").write_bytes(mangle((folder / "t.parquet").read_bytes(), rng))
        rows_of(folder / "t.parquet")


def folder_metadata(rng: random.Random, folder: Path) -> None:
    (folder / "x").mkdir()
    for i in range(4):
        (folder / "x" / f"{i}.png").write_bytes(b"png")
    if rng.random() < 0.5:
        (folder / "x" / "metadata.csv").write_bytes(
            mangle(b"file_name,text,price\n" + b"".join(b"%d.png,boot %d,3\n" % (i, i) for i in range(4)), rng)
        )
    else:
        lines = [
            json_bytes(mangle_json({"file_name": f"{i}.png", "file_names": ["0.png"], "text": "boot"}, rng), rng)
            for i in range(4)
        ]
        (folder / "x" / "metadata.jsonl").write_bytes(b"\n".join(lines))
    rows_of(folder / "x")


def tar_bytes(rng: random.Random) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])) as tar:
        for i in range(6):
            long = "ö" * rng.choice([1, 60, 200])
            add(tar, f"{long}{i}.png", media("image", "png"))
            document = {"id": i, "group": "g", "caption": ["a", "b"], "price": 3}
            add(
                tar,
                f"{long}{i}.json",
                json_bytes(mangle_json(document, rng), rng) if rng.random() < 0.3 else json.dumps(document).encode(),
            )
            if rng.random() < 0.3:
                link = tarfile.TarInfo(f"{long}{i}x.png")
                link.type, link.linkname = (
                    rng.choice([tarfile.LNKTYPE, tarfile.SYMTYPE]),
                    rng.choice([f"{long}{i}.png", "../x", f"{long}{i}x.png"]),
                )
                tar.addfile(link)
    return out.getvalue()


def archive(rng: random.Random, folder: Path) -> None:
    """A tar, read as DATA and as a source of `pack`; a compressed one is refused."""
    from mmtune.data.shards import open_data
    from mmtune.errors import DataError

    data, suffix = tar_bytes(rng), "tar"
    if rng.random() < 0.15:
        import gzip

        data, suffix = gzip.compress(data), "tar.gz"
    elif rng.random() < 0.1:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as z:
            z.writestr("0.png", b"png")
        data, suffix = out.getvalue(), rng.choice(["zip", "tar"])
    (folder / f"x.{suffix}").write_bytes(mangle(data, rng))
    for read in (lambda: read_all(open_data(str(folder / f"x.{suffix}"))), lambda: rows_of(folder / f"x.{suffix}")):
        try:
            read()
        except DataError as e:
            assert "\n" not in str(e), e


def read_all(data) -> None:  # noqa: ANN001 (an opened dataset)
    assert len(data.ids) == len(data) == len(set(data.ids))
    for i in range(len(data)):
        data.row(i)
    for name in sorted({k for i in range(len(data)) for k in data.meta(i)}):
        data.column(name)


def packed(rng: random.Random, folder: Path) -> None:
    """`pack` itself: rows in = packed + rejected with reasons, and what is packed decodes."""
    from mmtune.data.pack.pack import pack
    from mmtune.data.shards import open_data

    source, count = rng.choice([_media_folder, _media_table, _media_tar])(rng, folder)
    try:
        result = pack(source, folder / "out", max_rejected=1.0, timeout=20, shard_size=rng.choice(["20KB", "1MB"]))
    except MmtuneError:
        assert source.suffix in (".tar", ".csv")  # damaged as a whole
        return
    rejected = [json.loads(line) for line in (folder / "out" / "rejected.jsonl").read_bytes().split(b"\n") if line]
    assert count is None or result.rows == count, (result.rows, count)
    assert result.rows == result.packed + result.rejected and len(rejected) == result.rejected
    assert all(
        r["reason"] and "crashes its decoder" not in r["reason"] and "cannot be decoded: " not in r["reason"] for r in rejected
    ), rejected
    if result.packed:
        data = open_data(str(folder / "out"))
        assert len(data) == result.packed
        for i in range(len(data)):
            for name, stored in data.row(i).values.items():
                modalities.get(name).decode(stored)


def _media_folder(rng: random.Random, folder: Path) -> tuple[Path, int | None]:
    (folder / "x").mkdir()
    for i in range(20):
        _, ending, data = mangled_media(rng)
        (folder / "x" / f"{i}.{ending}").write_bytes(data)
    return folder / "x", 20


def _media_table(rng: random.Random, folder: Path) -> tuple[Path, int | None]:
    lines = ["image,text"]
    for i in range(12):
        _, ending, data = mangled_media(rng, "image")
        (folder / f"{i}.{ending}").write_bytes(data)
        lines.append(f"{i}.{ending},boot {i}")
    table = "\n".join(lines).encode()
    whole = rng.random() < 0.5
    (folder / "t.csv").write_bytes(table if whole else mangle(table, rng))
    return folder / "t.csv", 12 if whole else None


def _media_tar(rng: random.Random, folder: Path) -> tuple[Path, int | None]:
    with tarfile.open(folder / "x.tar", "w") as tar:
        for i in range(8):
            _, ending, data = mangled_media(rng)
            add(tar, f"{i}.{ending}", data)
            add(tar, f"{i}.txt", mangle(b"boot", rng))
    if rng.random() < 0.7:
        (folder / "x.tar").write_bytes(mangle((folder / "x.tar").read_bytes(), rng))
    return folder / "x.tar", None


# --- documents -----------------------------------------------------------------------------------------------------------


@cache
def _packed_folder() -> Path:
    from mmtune.data.pack.pack import pack

    root = Path(tempfile.mkdtemp())
    (root / "t.csv").write_text("text,split\n" + "".join(f"boot {i},{'ab'[i % 2]}\n" for i in range(6)))
    pack(root / "t.csv", root / "one")
    pack(root / "t.csv", root / "two", split="split")
    return root


def packed_index(rng: random.Random, folder: Path) -> None:
    """index.json of a pack, of a pack with splits, and the journal of `pack`."""
    from mmtune.data.pack.pack import pack
    from mmtune.data.shards import open_data

    root = Path(shutil.copytree(_packed_folder(), folder / "x"))
    kind = rng.choice(["one", "two"])
    if rng.random() < 0.25:
        journal = root / kind / ".pack" / "journal.jsonl"
        lines = [json.loads(line) for line in journal.read_bytes().split(b"\n") if line]
        journal.write_bytes(
            b"\n".join(
                json_bytes(mangle_json(line, rng), rng) if rng.random() < 0.5 else json.dumps(line).encode() for line in lines
            )
            + b"\n"
        )
        with warnings.catch_warnings():
            result = pack(root / "t.csv", root / kind, split="split" if kind == "two" else None)
        assert result.rows == 6 == result.packed + result.rejected
    index = root / kind / "index.json"
    index.write_bytes(json_bytes(mangle_json(json.loads(index.read_bytes()), rng), rng))
    read_all(open_data(str(root / kind)))


@cache
def _artifact() -> Path:
    import mmtune

    root = Path(tempfile.mkdtemp()) / "artifact"
    mmtune.save(mmtune.load("tiny:clip"), root)
    return root


def artifact(rng: random.Random, folder: Path) -> None:
    """A manifest, a config or the weights of an artifact."""
    import mmtune

    root = Path(shutil.copytree(_artifact(), folder / "a"))
    file = rng.choice(["mmtune.json", "mmtune.json", "mmtune.json", "parts/0/tiny.json", "metrics.json", "weights.safetensors"])
    data = (root / file).read_bytes()
    if file.endswith("json") and rng.random() < 0.7:
        (root / file).write_bytes(json_bytes(mangle_json(json.loads(data), rng), rng))
    else:
        (root / file).write_bytes(mangle(data, rng))
    model = mmtune.load(root)
    assert np.isfinite(model.encode(text=["boot"])).all()


RECIPE = {
    "model": "tiny:clip", "data": {"train": "x", "val": "y", "workers": 2}, "objective": [{"loss": "info_nce", "smoothing": 0.1}],
    "train": {"epochs": 2, "batch_size": 8, "lr": 1e-3}, "augment": {"image": {"flip": True, "crop": 0.5}}, "run": {"dir": "r"},
    "mining": {"negatives": 4, "guards": {"max_score": 0.9}}, "tune": {"image": "full"},
}  # fmt: off


def recipe(rng: random.Random, folder: Path) -> None:
    import yaml

    from mmtune.recipe.recipe import Recipe

    document = mangle_json(RECIPE, rng)
    if rng.random() < 0.5:
        text = json_bytes(document, rng)
    else:
        text = mangle(yaml.safe_dump(RECIPE).encode(), rng)
    (folder / "r.yaml").write_bytes(text)
    Recipe.read(folder / "r.yaml", ["train.epochs=1"] if rng.random() < 0.3 else [])


def negatives_table(rng: random.Random, folder: Path) -> None:
    from mmtune.mining.negatives_table import read_table

    ids: object = list(range(20)) if rng.random() < 0.5 else [f"r{i}" for i in range(20)]
    columns: dict[str, object] = {
        "query_id": ids,
        "negative_id": ids,
        "direction": ["text->image"] * 20,
        "score": [0.5] * 20,
        "verdict": ["mined"] * 20,
    }
    if rng.random() < 0.5:
        del columns[rng.choice(sorted(columns))]
    if columns and rng.random() < 0.5:
        columns[rng.choice(sorted(columns))] = rng.choice([[None] * 20, [[1]] * 20, [b"x"] * 20, [True] * 20, [{"a": 1}] * 20])
    table = pa.table(columns).replace_schema_metadata({"settings": json_bytes(mangle_json({"model": "m", "k": 3}, rng), rng)})
    pq.write_table(table, folder / "n.parquet")
    if rng.random() < 0.5:
        (folder / "n.parquet").write_bytes(mangle((folder / "n.parquet").read_bytes(), rng))
    for part in read_table(folder / "n.parquet", "f", allow_stale=True):
        assert part.num_rows <= 20


def lists_of_ids(rng: random.Random, folder: Path) -> None:
    """Judgments, verdicts, and the file of `pack --drop`."""
    from mmtune.data.pack.drop_list import read_drop_ids
    from mmtune.relevance.judgments import read_qrels, read_verdicts

    lines = [
        json_bytes(
            mangle_json(
                {"query_id": "q", "item_id": "i", "grade": 2, "negative_id": "n", "verdict": "positive", "ids": ["a"]}, rng
            ),
            rng,
        )
        for _ in range(4)
    ]
    text = b"\n".join(lines) if rng.random() < 0.6 else mangle(b"q1 0 i1 2\nq2 0 i2 0\n", rng)
    (folder / "f").write_bytes(text)
    for read in (read_qrels, read_verdicts, read_drop_ids):
        try:
            read(folder / "f")
        except MmtuneError as e:
            assert "\n" not in str(e)


LIGHT: list[Callable[[random.Random, Path], None]] = [
    decode, decode, decode, decode_caption, text_table, text_table, json_lines, arrow_table, folder_metadata, archive, archive,
    packed_index, artifact, artifact, recipe, recipe, negatives_table, lists_of_ids, lists_of_ids,
]  # fmt: off
PACK_EVERY = 20


def case(number: int) -> tuple[str, Callable[[random.Random, Path], None]]:
    function = packed if number % PACK_EVERY == 0 else LIGHT[number % len(LIGHT)]
    return function.__name__, function


def run_case(number: int) -> str:
    """Run a case. Returns "read" or "refused"; raises whatever else happens."""
    _, function = case(number)
    folder = Path(tempfile.mkdtemp())
    try:
        function(random.Random(number), folder)
        return "read"
    except (MmtuneError, Rejected) as e:
        assert str(e) and "\n" not in str(e), f"not one line: {e!r}"
        return "refused"
    finally:
        shutil.rmtree(folder)


def main(out: str, first: int, stop: int, step: int) -> None:
    def alarm(*_: object) -> None:
        raise Hang

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    signal.signal(signal.SIGALRM, alarm)
    with open(out, "a") as file:
        for number in range(first, stop, step):
            print(json.dumps({"case": number, "kind": case(number)[0]}), file=file, flush=True)
            signal.alarm(SECONDS if case(number)[0] != "packed" else 120)
            try:
                outcome, detail = run_case(number), ""
            except Hang:
                outcome, detail = "hang", traceback.format_exc()[-2000:]
            except BaseException:
                outcome, detail = "error", traceback.format_exc()[-3000:]
            finally:
                signal.alarm(0)
            print(
                json.dumps({"case": number, "kind": case(number)[0], "outcome": outcome, "detail": detail}),
                file=file,
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
