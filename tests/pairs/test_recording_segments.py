"""Recordings: annotation formats, detection, clips with exactly the samples of their segment, splits by recording and machine."""

import json

import numpy as np
import pytest
import soundfile

import mmtune
from mmtune.cli import main
from mmtune.errors import DataError
from mmtune.modalities.sound_clips import detect_segments
from mmtune.pairs.hash_split import hash_split
from mmtune.pairs.recording_segments import pairs_from_segments
from mmtune.pairs.segment_annotations import read_sidecar, seconds
from tests.support.pairs_helpers import dropped, rows_of, tone

RAVEN = (
    "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies\n"
    "1\tWaveform 1\t1\t0.5\t1.5\t0\t4000\twren\n1\tSpectrogram 1\t1\t0.5\t1.5\t0\t4000\twren\n"
    "2\tSpectrogram 1\t1\t2.0\t2.5\t0\t4000\tblackbird\n"
)


def clips_of(directory):
    return [(r["recording"], r["start"], r["end"], r.get("text")) for r in rows_of(directory)]


def test_audacity_labels_and_the_samples_of_a_clip(tmp_path):
    tone(tmp_path / "in/a.wav", [(1, 2)], 4.0)
    (tmp_path / "in/a.txt").write_text("2.5\t3.25\tknock, loose\n\\\t100\t2000\n1.0\t2.0\thum\n")
    result = pairs_from_segments(tmp_path / "in", tmp_path / "out", group="label", quiet=True)
    assert clips_of(tmp_path / "out") == [("a.wav", 1.0, 2.0, "hum"), ("a.wav", 2.5, 3.25, "knock, loose")]
    whole, rate = soundfile.read(tmp_path / "in/a.wav", dtype="int16")
    row = rows_of(tmp_path / "out")[1]
    clip, clip_rate = soundfile.read(tmp_path / "out" / row["audio"], dtype="int16")
    assert clip_rate == rate and np.array_equal(clip, whole[round(2.5 * rate) : round(3.25 * rate)])
    assert row["group"] == "knock, loose" and result.measures == {"clips": 2, "detected": 0, "seconds": 1.75}
    packed = mmtune.pack(tmp_path / "out/pairs.parquet", tmp_path / "packed")
    assert packed.packed == 2 and packed.modalities == ["audio", "text"]


def test_raven_tables_count_a_selection_once_and_carry_their_columns(tmp_path):
    tone(tmp_path / "in/bird.flac", [], 3.0)
    (tmp_path / "in/bird.Table.1.selections.txt").write_text(RAVEN)
    pairs_from_segments(tmp_path / "in", tmp_path / "out", caption="the song of a {Species}", quiet=True)
    assert clips_of(tmp_path / "out") == [
        ("bird.flac", 0.5, 1.5, "the song of a wren"),
        ("bird.flac", 2.0, 2.5, "the song of a blackbird"),
    ]
    assert rows_of(tmp_path / "out")[0]["Species"] == "wren"


def test_one_table_for_all_recordings_and_metadata_of_a_table_of_recordings(tmp_path):
    for name in ("m1/a.wav", "m2/b.wav"):
        tone(tmp_path / name, [], 2.0)
    (tmp_path / "recordings.csv").write_text("path,machine,rpm\nm1/a.wav,M1,1700\nm2/b.wav,M2,1800\n")
    (tmp_path / "segments.csv").write_text("file,onset,duration,label\nb,0:01,0.5,crack\nm1/a.wav,0.25,0.5,hum\nzzz,0,1,x\n")
    pairs_from_segments(
        tmp_path / "recordings.csv",
        tmp_path / "out",
        annotations=[tmp_path / "segments.csv"],
        caption="{label}, {rpm} rpm",
        quiet=True,
    )
    assert clips_of(tmp_path / "out") == [("m1/a.wav", 0.25, 0.75, "hum, 1700 rpm"), ("m2/b.wav", 1.0, 1.5, "crack, 1800 rpm")]
    assert [r["machine"] for r in rows_of(tmp_path / "out")] == ["M1", "M2"]
    assert dropped(tmp_path / "out") == {"of a recording that is not in the source": 1}


def test_energy_finds_the_bursts_and_onset_their_beginnings(tmp_path):
    bursts = [(1.0, 1.6), (3.0, 3.5), (3.55, 4.0), (31.2, 32.0)]  # two that a short pause divides; one in the second block
    tone(tmp_path / "a.wav", bursts, 35.0)
    found = detect_segments(tmp_path / "a.wav", "energy")
    assert np.allclose(found, [(1.0, 1.6), (3.0, 4.0), (31.2, 32.0)], atol=0.03)
    onsets = [start for start, _ in detect_segments(tmp_path / "a.wav", "onset")]
    assert all(min(abs(start - onset) for onset in onsets) < 0.08 for start in (1.0, 3.0, 31.2))
    tone(tmp_path / "silence.wav", [], 2.0)
    assert detect_segments(tmp_path / "silence.wav", "energy") == []


def test_detected_clips_are_padded_and_cut_into_pieces(tmp_path):
    tone(tmp_path / "a.wav", [(1.0, 4.0), (6.0, 6.05)], 8.0)
    result = pairs_from_segments(
        tmp_path / "a.wav", tmp_path / "out", detect="energy", pad=0.2, min_seconds=0.6, max_seconds=2.0, quiet=True
    )
    clips = clips_of(tmp_path / "out")
    assert len(clips) == 2 and np.allclose([c[1:3] for c in clips], [(0.8, 2.5), (2.5, 4.2)], atol=0.03)
    assert result.measures["detected"] == 2
    assert dropped(tmp_path / "out") == {"shorter than 0.6 s (--min-seconds)": 1, "'{label}' has no attribute for it": 2}


def test_no_recording_and_no_machine_is_in_two_splits(tmp_path):
    rows, segments = ["path,machine"], ["file,start,end,label"]
    for n in range(12):
        tone(tmp_path / f"r{n}.wav", [], 1.0)
        rows.append(f"r{n}.wav,M{n % 5}")
        segments += [f"r{n}.wav,0,0.4,hum", f"r{n}.wav,0.5,0.9,hum"]
    (tmp_path / "r.csv").write_text("\n".join(rows))
    (tmp_path / "s.csv").write_text("\n".join(segments))
    for by in ("recording", "machine"):
        options = {
            "split": ["train=0.5", "val=0.5"],
            "split_by": by,
            "seed": 1,
            "annotations": [tmp_path / "s.csv"],
            "quiet": True,
        }
        pairs_from_segments(tmp_path / "r.csv", tmp_path / by, **options)
        splits = {}
        for row in rows_of(tmp_path / by):
            splits.setdefault(row[by], set()).add(row["split"])
        assert all(len(s) == 1 for s in splits.values()) and len(set.union(*splits.values())) == 2
        assert all(s == {hash_split(key, {"train": 0.5, "val": 0.5}, 1)} for key, s in splits.items())


def test_a_split_that_gets_nothing_is_said(tmp_path):
    tone(tmp_path / "in/a.wav", [], 1.0)
    (tmp_path / "in/a.txt").write_text("0\t1\thum\n")
    with pytest.warns(mmtune.errors.DataWarning, match=r"no row is in (train|val): 1 x recording are few; try another --seed"):
        result = pairs_from_segments(tmp_path / "in", tmp_path / "out", split=["train=0.5,val=0.5"], quiet=True)
    assert sum(result.measures["splits"].values()) == 1


def test_two_labels_of_one_segment_are_two_rows(tmp_path):
    tone(tmp_path / "in/a.wav", [], 2.0)
    (tmp_path / "in/a.txt").write_text("0\t1\thum\n0\t1\tbuzz\n")
    pairs_from_segments(tmp_path / "in", tmp_path / "out", quiet=True)
    assert [r["id"] for r in rows_of(tmp_path / "out")] == ["a.wav:0.000-1.000", "a.wav:0.000-1.000#2"]


def test_broken_twins_of_recordings(tmp_path, capsys):
    tone(tmp_path / "in/a.wav", [], 2.0)
    (tmp_path / "in/broken.wav").write_bytes(b"RIFF0000WAVE")
    (tmp_path / "in/broken.txt").write_text("0\t1\tx\n")
    tone(tmp_path / "in/none.wav", [], 1.0)
    lines = "1.5\t2.5\tlate\n0.5\t0.5\tpoint\n5\t6\tafter\nx\ty\tz\n1.0\t0.2\tbackwards\n0,2\t0,9\tCaf\u00e9\n0.1"
    (tmp_path / "in/a.txt").write_bytes(lines.encode("cp1252"))
    pairs_from_segments(tmp_path / "in", tmp_path / "out", quiet=True)
    assert clips_of(tmp_path / "out") == [("a.wav", 0.2, 0.9, "Caf\u00e9"), ("a.wav", 1.5, 2.0, "late")]
    reasons = dropped(tmp_path / "out")
    assert {r: n for r, n in reasons.items() if not r.startswith("not a readable sound")} == {
        "not start, end and label": 2,
        "ends where it starts, or before": 2,
        "starts after the end of its recording": 1,
        "the part after the end of its recording": 1,
        "no annotation": 1,
    }
    assert len(reasons) == 6
    command = ["pairs", "segments", str(tmp_path / "in"), "--out", str(tmp_path / "o"), "--quiet"]
    (tmp_path / "wrong.csv").write_text("file,first,last\na.wav,0,1\n")
    for options, message in (
        (["--annotations", str(tmp_path / "wrong.csv")], "no columns for the start and the end"),
        (["--caption", "{species}"], "no column 'species' (--caption '{species}')"),
        (["--group", "machine"], "no column 'machine' (--group)"),
        (["--split", "train=0.8"], "must sum to 1"),
        (["--max-seconds", "0"], "--max-seconds 0"),
    ):
        assert main([*command, *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    (tmp_path / "in/a.txt").unlink()
    (tmp_path / "in/broken.txt").unlink()
    with pytest.raises(DataError, match="no annotations beside the recordings.*--detect energy"):
        pairs_from_segments(tmp_path / "in", tmp_path / "o", quiet=True)


def test_times():
    assert [seconds(t) for t in ("12.5", "12,5", "1:02.5", "1:00:01", 3)] == [12.5, 12.5, 62.5, 3601.0, 3.0]
    for wrong in ("", "x", "1:", "-1", "nan", "1:2:3:4"):
        with pytest.raises(ValueError):
            seconds(wrong)


def test_jsonl_annotations_beside_a_recording(tmp_path):
    from mmtune.pairs.drop_counts import DropCounts

    (tmp_path / "a.jsonl").write_text(json.dumps({"begin": 1, "stop": 2.5, "label": ["a", "b"]}) + "\n")
    (segment,) = read_sidecar(tmp_path / "a.jsonl", DropCounts())
    assert (segment.start, segment.end, dict(segment.attributes)) == (1.0, 2.5, {"label": "a, b"})
