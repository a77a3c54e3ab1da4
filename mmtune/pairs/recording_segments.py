"""Cut long recordings into clips with captions, by their annotations or, where there are none, by detection."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from mmtune import modalities
from mmtune.errors import DataError, Rejected
from mmtune.modalities.sound_clips import DETECTORS, clip, detect_segments, open_recording
from mmtune.pairs.caption_template import CaptionTemplate
from mmtune.pairs.drop_counts import DropCounts
from mmtune.pairs.hash_split import hash_split, parse_shares, warn_empty
from mmtune.pairs.pairs_result import PairsResult
from mmtune.pairs.pairs_writer import PairsWriter, source_identity
from mmtune.pairs.recordings import Recording, annotate, find_recordings, recording_modality
from mmtune.pairs.segment_annotations import LABEL, Segment
from mmtune.runtime.files import write_bytes
from mmtune.runtime.progress import Progress

OWN = ("id", "group", "recording", "start", "end", "split")


@dataclass(frozen=True)
class CutOptions:
    """How segments become clips.

    pad: seconds that are added before and after a segment
    shortest, longest: seconds; shorter segments are dropped, longer ones cut into equal pieces
    """

    pad: float
    shortest: float
    longest: float

    def check(self) -> None:
        """Raise DataError for values that make no clips."""
        if self.pad < 0 or self.shortest < 0 or self.longest <= 0 or self.shortest > self.longest:
            raise DataError(
                f"--pad {self.pad:g}, --min-seconds {self.shortest:g}, --max-seconds {self.longest:g}: give a padding of 0 or more, and "
                "0 or more seconds of which the maximum is not below the minimum"
            )

    def pieces(self, segment: Segment, seconds: float, name: str, drops: DropCounts) -> Iterator[tuple[float, float]]:
        """Yield (start, end) of the clips of a segment of a recording that has `seconds`."""
        where = segment.where or f"{name} at {segment.start:.2f} s"
        if segment.start >= seconds:
            return drops.add("starts after the end of its recording", where, unit="segments")
        if segment.end <= segment.start:
            return drops.add("ends where it starts, or before", where, unit="segments")
        if segment.end > seconds + 0.05:
            drops.add("the part after the end of its recording", where, unit="parts of segments")
        start, end = max(segment.start - self.pad, 0.0), min(segment.end + self.pad, seconds)
        if end - start < self.shortest:
            return drops.add(f"shorter than {self.shortest:g} s (--min-seconds)", where, unit="segments")
        count = math.ceil(round((end - start) / self.longest, 6))
        for n in range(count):
            yield start + (end - start) * n / count, start + (end - start) * (n + 1) / count


def _attribute_columns(recordings: Sequence[Recording]) -> list[str]:
    """The columns of all recordings and segments, in the order in which they occur."""
    columns: dict[str, None] = {}
    for r in recordings:
        columns |= dict.fromkeys(r.attributes)
        for segment in r.segments or ():
            columns |= dict.fromkeys(segment.attributes)
    return list(columns)


def pairs_from_segments(
    source: str | Path,
    out: str | Path,
    *,
    annotations: Sequence[str | Path] = (),
    recording: str | None = None,
    caption: str = "{" + LABEL + "}",
    group: str | None = None,
    detect: str | None = None,
    threshold_db: float = 12.0,
    gap: float = 0.2,
    pad: float = 0.0,
    min_seconds: float = 0.1,
    max_seconds: float = 30.0,
    split: Sequence[str] = (),
    split_by: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    quiet: bool = True,
) -> PairsResult:
    """Cut recordings into clips with captions; see `mmtune.pairs_from_segments`."""
    if detect is not None and detect not in DETECTORS:
        raise DataError(f"--detect {detect}: one of {', '.join(DETECTORS)}")
    options = CutOptions(pad, min_seconds, max_seconds)
    options.check()
    shares = parse_shares(split) if split else {}
    template = CaptionTemplate(caption)
    drops = DropCounts()
    recordings = find_recordings(Path(source), recording, drops)
    read = annotate(recordings, [Path(a) for a in annotations], drops)
    columns = _attribute_columns(recordings)
    known = [*columns, "recording"]
    if caption != "{" + LABEL + "}":
        template.check(known, str(source))
    for option, name in (("--group", group), ("--split-by", split_by)):
        if name is not None and name not in known:
            raise DataError(f"{source}: no column {name!r} ({option}); columns: {', '.join(known)}")
    if not read and detect is None:
        raise DataError(
            f"{source}: no annotations beside the recordings; name a table with --annotations, or add --detect energy"
        )
    arguments = {
        "options": [pad, min_seconds, max_seconds, threshold_db, gap],
        "caption": caption,
        "group": group,
        "detect": detect,
        "split": shares,
        "split by": split_by,
        "seed": seed,
        "recording": recording,
    }
    language = next(n for n in modalities.names() if modalities.get(n).language)
    carried = {c: c if c not in (*OWN, recording_modality(), language) else f"source.{c}" for c in columns}
    types: dict[str, pa.DataType] = dict.fromkeys(["id", "group", recording_modality(), language, "recording"], pa.string())
    types |= {"start": pa.float64(), "end": pa.float64(), **({"split": pa.string()} if shares else {})}
    types |= dict.fromkeys(carried.values(), pa.string())
    identities = [source_identity(p) for p in dict.fromkeys([Path(source), *read])]
    with PairsWriter(out, "segments", arguments, identities, columns=types, base=False, overwrite=overwrite) as writer:
        if writer.finished is not None:
            return writer.finished
        writer.drops = drops
        cutter = _Cutter(writer, options, template, group, detect, threshold_db, gap, carried)
        keys = {r.name: _split_key(r, split_by) for r in recordings}
        with Progress("recordings", len(recordings), unit="recordings", quiet=quiet) as progress:
            for r in recordings:
                cutter.cut(r, {"split": hash_split(keys[r.name], shares, seed)} if shares else {})
                progress.advance(1)
        if not cutter.clips:
            raise DataError(f"{source}: no clip was cut ({drops.reasons()})")
        if shares:
            warn_empty(cutter.of_split, shares, len(set(keys.values())), split_by or "recording")
        measures = {"clips": cutter.clips, "detected": cutter.detected, "seconds": round(cutter.seconds, 3)}
        return writer.publish(len(recordings), {**measures, **({"splits": dict(cutter.of_split)} if shares else {})})


def _split_key(recording: Recording, column: str | None) -> str:
    """What must not be in two splits: the recording, or the value of a column in its row or in its first annotation."""
    if column in (None, "recording"):
        return recording.name
    first = recording.segments[0].attributes if recording.segments else {}
    return {**first, **recording.attributes}.get(column or "") or recording.name


class _Cutter:
    """Cuts recordings and writes their clips. clips, detected, seconds, of_split: counts of what was written."""

    def __init__(
        self,
        writer: PairsWriter,
        options: CutOptions,
        template: CaptionTemplate,
        group: str | None,
        detect: str | None,
        threshold_db: float,
        gap: float,
        carried: Mapping[str, str],
    ):
        self.writer, self.options, self.template, self.group = writer, options, template, group
        self.detect, self.threshold_db, self.gap, self.carried = detect, threshold_db, gap, carried
        self.clips = self.detected = 0
        self.seconds = 0.0
        self.of_split: Counter[str] = Counter()
        self._ids: Counter[str] = Counter()
        self._language = next(n for n in modalities.names() if modalities.get(n).language)

    def cut(self, recording: Recording, extra: Mapping[str, str]) -> None:
        """Write the clips of one recording. extra: further cells of their rows."""
        drops = self.writer.drops
        try:
            seconds = open_recording(recording.path).seconds
            segments = recording.segments
            if segments is None and self.detect is None:
                return drops.add("no annotation", recording.name, unit="recordings")
            if segments is None:
                found = detect_segments(recording.path, self.detect or "", self.threshold_db, self.gap)
                segments = [Segment(start, end) for start, end in found]
                self.detected += len(segments)
            if not segments:
                return drops.add("no segment in it", recording.name, unit="recordings")
            for segment in sorted(segments, key=lambda s: (s.start, s.end)):
                for start, end in self.options.pieces(segment, seconds, recording.name, drops):
                    self._write(recording, segment, start, end, extra)
        except Rejected as e:
            drops.add(str(e), recording.name, unit="recordings")

    def _write(self, recording: Recording, segment: Segment, start: float, end: float, extra: Mapping[str, str]) -> None:
        attributes = {"recording": Path(recording.name).stem, **recording.attributes, **segment.attributes}
        id = f"{recording.name}:{start:.3f}-{end:.3f}"
        self._ids[id] += 1
        if self._ids[id] > 1:
            id += f"#{self._ids[id]}"  # two labels of one segment
        data, suffix = clip(recording.path, start, end)
        name = f"clips/{recording.name.replace('/', '_')}_{round(start * 1000):09d}_{self.clips}.{suffix}"
        write_bytes(self.writer.files / name, data)
        self.clips += 1
        self.seconds += end - start
        self.of_split.update(extra.values())
        caption = self.template.fill(attributes)
        if caption is None:
            self.writer.drops.add(f"{self.template.source!r} has no attribute for it", segment.where or id, unit="captions")
        self.writer.add_row(
            **{
                **{self.carried[c]: v for c, v in {**recording.attributes, **segment.attributes}.items()},
                **extra,
                "id": id,
                "group": attributes.get(self.group) if self.group else None,
                recording_modality(): name,
                self._language: caption,
                "recording": recording.name,
                "start": round(start, 6),
                "end": round(end, 6),
            }
        )
