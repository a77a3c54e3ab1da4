"""Hugging Face datasets on disk, written with pyarrow in the layouts of the library `datasets`."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, object]]
FILE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def hub_table(rows: Rows, files: tuple[str, ...] = ("image",), classes: dict[str, list[str]] | None = None) -> pa.Table:
    """A table as `datasets` writes it. files: columns of media files; classes: column -> names of its ClassLabel feature."""
    kinds = {"image": "Image", "audio": "Audio"}
    features: dict[str, object] = {c: {"_type": kinds.get(c, "Image")} for c in files}
    features |= {c: {"names": names, "_type": "ClassLabel"} for c, names in (classes or {}).items()}
    fields = [(k, FILE if k in files else pa.array([r[k] for r in rows]).type) for k in rows[0]]
    schema = pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    return pa.Table.from_pylist(rows, schema=schema)


def save_to_disk(table: pa.Table, folder: Path, shards: int = 1) -> Path:
    """Write a table as `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    step = -(-len(table) // shards)
    for i, name in enumerate(names):
        with pa.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table.slice(i * step, step), max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], "_split": None}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def save_dict_to_disk(splits: dict[str, pa.Table], folder: Path) -> Path:
    """Write tables as `DatasetDict.save_to_disk` does."""
    for name, table in splits.items():
        save_to_disk(table, folder / name)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def clone_of_repository(splits: dict[str, pa.Table], folder: Path) -> Path:
    """Write tables as a clone of a dataset repository: data/SPLIT-00000-of-00001.parquet beside a README."""
    (folder / "data").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / ".gitattributes").write_text("*.parquet filter=lfs\n")
    (folder / "README.md").write_text("---\npretty_name: boots\n---\n")
    for name, table in splits.items():
        pq.write_table(table, folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder
