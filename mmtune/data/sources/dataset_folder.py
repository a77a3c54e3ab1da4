"""Find the tables of a folder that is a Hugging Face dataset on disk, or that has tables and no media files.

Three layouts are recognised:
    `Dataset.save_to_disk` and `DatasetDict.save_to_disk`: state.json and .arrow files, for a DatasetDict in a subfolder per split
    a clone of a dataset repository: Parquet, CSV or JSONL files beside a README
    a folder of Parquet files, e.g. of Spark

The split of a file is the name of its subfolder of a DatasetDict, or the first part of its path that is the name of a split:
train/x.csv, data/test-00000-of-00001.parquet.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mmtune.errors import DataError

STATE, DICT = "state.json", "dataset_dict.json"
DOCUMENTS = re.compile(
    r"(readme|license|licence|citation|dataset_infos?|dataset_dict|state)(\.\w+)?|.*\.(md|crc)", re.IGNORECASE
)
"""Names of files that describe a dataset and are no data."""
SPLITS = re.compile(r"(train|training|validation|valid|val|dev|test|testing|eval|evaluation)(?![a-zA-Z])", re.IGNORECASE)


def data_files(path: Path) -> list[Path]:
    """All files below a folder that may be data, in sorted order.

    Hidden files and those whose names or folders begin with "_" are left out, as in Spark, Hive and Arrow: _SUCCESS, .git/.
    """
    return sorted(_walk(path))


def holds_only(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether a folder has data files, all of them with one of `suffixes`. Stops at the first other file."""
    suffix = None
    for file in _walk(path):
        suffix = file.suffix.lower()
        if suffix not in suffixes:
            return False
    return suffix is not None


def _walk(path: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(d for d in folders if d[0] not in "._")
        for name in names:
            file = Path(folder, name)
            if name[0] not in "._" and not DOCUMENTS.fullmatch(name) and file.is_file():
                yield file


def saved_files(path: Path) -> list[Path] | None:
    """The Arrow files of a Dataset or DatasetDict that was saved with `save_to_disk`; None for any other folder.

    Raises DataError if a file that state.json names is missing.
    """
    if not (path / STATE).is_file() and not (path / DICT).is_file():
        return None
    found = []
    for state in sorted([path / STATE] if (path / STATE).is_file() else path.glob(f"*/{STATE}")):
        try:
            names = [str(f["filename"]) for f in json.loads(state.read_bytes())["_data_files"]]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise DataError(f"{state}: not the state of a saved dataset ({type(e).__name__}: {e}); save it again") from None
        for name in names:
            if name not in os.listdir(state.parent):
                raise DataError(f"{state.parent / name}: missing, but {STATE} lists it; copy the dataset again")
            found.append(state.parent / name)
    if not found:
        raise DataError(f"{path}: a saved dataset without data files; save it again")
    return found


def split_of(file: Path, folder: Path) -> str | None:
    """The split in the path of a file below `folder`: the first folder or file name that begins with the name of a split."""
    if (folder / DICT).is_file():
        return file.relative_to(folder).parts[0]
    for part in file.relative_to(folder).parts:
        if match := SPLITS.match(part):
            return match.group(1)
    return None


def splits_of(files: list[Path], folder: Path) -> dict[Path, str]:
    """{file: split} for the files whose path names a split."""
    return {f: s for f in files if (s := split_of(f, folder))}
