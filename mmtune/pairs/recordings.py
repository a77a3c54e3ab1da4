"""Recordings and their annotations: which files there are, and which segments belong to which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmtune import modalities
from mmtune.data.identity_labels import identity_string
from mmtune.data.pack.columns import named_column
from mmtune.data.pack.file_names import existing_path
from mmtune.data.sources.row_source import InvalidRow, open_source
from mmtune.errors import DataError
from mmtune.pairs.carried_columns import attribute_strings
from mmtune.pairs.drop_counts import DropCounts
from mmtune.pairs.invalid_rows import count_invalid
from mmtune.pairs.segment_annotations import FILE_NAMES, Segment, read_sidecar, read_table

SIDECARS = (".txt", ".labels.txt", ".selections.txt", ".Table.1.selections.txt", ".csv", ".tsv", ".jsonl")
"""Endings of annotation files beside a recording: NAME.txt or NAME.wav.txt, as Audacity and Raven name them."""


@dataclass
class Recording:
    """A recording.

    name: its path relative to the source, which is its key for splits
    path: the file
    attributes: values of its row, if the source is a table; its folder, if the source is a folder with subfolders
    segments: its annotated segments; None if it has no annotation
    """

    name: str
    path: Path
    attributes: Mapping[str, str] = field(default_factory=dict)
    segments: list[Segment] | None = None


def _media_suffixes() -> set[str]:
    """Endings of files that may be recordings: those of modalities whose values have a duration (an option `max_seconds`)."""
    return {e for n in modalities.names() if "max_seconds" in modalities.get(n).options for e in modalities.get(n).extensions}


def recording_modality() -> str:
    """The modality of recordings."""
    return next(n for n in modalities.names() if "max_seconds" in modalities.get(n).options)


def find_recordings(source: Path, column: str | None, drops: DropCounts) -> list[Recording]:
    """Find the recordings of a file, a folder, or a table with a row for each recording.

    column: column of a table that names the files; None means a usual name
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    suffixes = _media_suffixes()
    if source.is_file() and source.suffix.lower()[1:] in suffixes:
        return [Recording(source.name, source)]
    if source.is_dir():
        files = sorted(p for p in source.rglob("*") if p.suffix.lower()[1:] in suffixes and not p.name.startswith("."))
        if not files:
            raise DataError(f"{source}: no recordings in it ({', '.join(sorted(suffixes))})")
        folders = {p: {"folder": p.parent.name} if p.parent != source else {} for p in files}
        return [Recording(p.relative_to(source).as_posix(), p, folders[p]) for p in files]
    table = open_source(source)
    usual = (*modalities.get(recording_modality()).columns, *FILE_NAMES)
    lower = {c.lower(): c for c in table.columns}
    found = named_column(table, column, "recording") if column else next((lower[n] for n in usual if n in lower), None)
    if found is None:
        raise DataError(f"{source}: no column with recordings; name it with --recording; columns: {', '.join(table.columns)}")
    recordings: dict[str, Recording] = {}
    for number, cells in table.rows(set()):
        if isinstance(cells, InvalidRow):
            count_invalid(drops, cells, f"row {number}")
            continue
        name = identity_string(cells.get(found))
        path = Path(existing_path(str(table.folder / name))) if name else None
        if name is None or path is None or not path.is_file():
            drops.add("no such file", f"row {number}: {name or 'empty'}", unit="recordings")
        elif name in recordings:
            drops.add("named by an earlier row", f"row {number}: {name}", unit="recordings")
        else:
            attributes = attribute_strings({c: v for c, v in cells.items() if c != found})
            recordings[name] = Recording(name, path, attributes)
    return list(recordings.values())


def sidecars_of(recording: Path) -> list[Path]:
    """The annotation files beside a recording."""
    stems = (recording.name, recording.stem)
    return [p for ending in SIDECARS for stem in dict.fromkeys(stems) if (p := recording.with_name(stem + ending)).is_file()]


def annotate(recordings: Sequence[Recording], annotations: Sequence[Path], drops: DropCounts) -> list[Path]:
    """Give each recording its segments: those of the tables `annotations`, and of the files beside it. Returns the files that were read."""
    by_name: dict[str, Recording] = {}
    for r in recordings:
        # a table may name a recording by its path, its file name or its name without an ending, where that is unambiguous
        for key in {r.name, r.path.name, r.path.stem, r.path.as_posix()}:
            by_name[key] = r if key not in by_name or key == r.name else by_name[key]
    read = []
    for path in annotations:
        if not path.exists():
            raise DataError(f"{path}: no such file of annotations")
        read.append(path)
        for name, segment in read_table(path, drops):
            owner = recordings[0] if name is None and len(recordings) == 1 else by_name.get((name or "").replace("\\", "/"))
            owner = owner or by_name.get((name or "").replace("\\", "/").rpartition("/")[2])
            if owner is None:
                drops.add(
                    "of a recording that is not in the source", f"{segment.where}: {name or 'no file named'}", unit="segments"
                )
            else:
                owner.segments = [*(owner.segments or []), segment]
    for recording in recordings if not annotations else ():
        if files := sidecars_of(recording.path):
            read.append(files[0])
            recording.segments = read_sidecar(files[0], drops)
    return read
