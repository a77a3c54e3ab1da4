"""MP3s whose first frame does not state their length: libsndfile guesses it from the size of the file, and reads that much."""

import io

import numpy as np
import pytest
import soundfile

from mmtune.errors import Rejected
from mmtune.modalities.audio import Audio
from mmtune.modalities.mpeg_frames import frames, with_frame_count
from mmtune.modalities.sound_clips import clip, open_recording

RATES = [8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000]  # MPEG 2.5, 2 and 1


def encoded(samples, rate, mode="VARIABLE") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="MP3", compression_level=0.5, bitrate_mode=mode)
    return out.getvalue()


def without_tag(data: bytes) -> bytes:
    """The file without its first frame, which states the length."""
    first = next(frames(data))
    assert b"Xing" in data[: first.size] or b"Info" in data[: first.size]
    return data[first.offset + first.size :]


def id3(size: int) -> bytes:
    """A tag of `size` bytes, e.g. a picture of the cover."""
    return (
        b"ID3\x03\x00\x00"
        + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127])
        + b"\xff\xfb\x90\x00" * (size // 4)
    )


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """4 s of noise, then 4 s of silence, at any rate: a variable bit rate falls."""
    return np.random.default_rng(0).normal(size=200_000).astype(np.float32) * 0.3


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_mp3_without_length_is_read_to_its_end(sound, rate, mode, channels):
    loud = sound[: rate * 4]
    samples = np.concatenate([loud, np.zeros_like(loud)])
    samples = samples if channels == 1 else np.stack([samples, samples], axis=1)
    whole = encoded(samples, rate, mode)
    expected = Audio().decode(whole)
    for start in (b"", id3(8192), id3(512) + id3(4096)):
        bare = start + without_tag(whole)
        decoded = Audio().decode(bare)
        assert decoded.rate == rate
        assert 0 <= len(decoded.samples) - len(expected.samples) <= 3 * 1152  # without the tag the encoder's delay is kept
        at = int(np.argmax(np.correlate(decoded.samples[: rate + 3456], expected.samples[:rate], "valid")))
        shared = slice(rate // 2, rate * 7)
        np.testing.assert_allclose(decoded.samples[at:][shared], expected.samples[shared], atol=1e-3)


def test_a_file_that_states_its_length_stays_as_it_is(sound):
    for mode in ("VARIABLE", "CONSTANT"):
        data = id3(4096) + encoded(sound, 44_100, mode)
        assert with_frame_count(data) is data
    out = io.BytesIO()
    soundfile.write(out, sound, 44_100, format="FLAC")
    for data in (b"", b"ID3", b"\xff", out.getvalue(), id3(64) + out.getvalue(), b"\xff\xfb" * 50, id3(64)):
        assert with_frame_count(data) is data


def test_a_truncated_file_is_rejected(sound):
    data = id3(4096) + encoded(sound, 44_100)
    with pytest.raises(Rejected, match="truncated: the file has"):
        Audio().decode(data[: len(data) * 2 // 3])


def test_joined_files_are_read_to_the_end_of_the_last(sound):
    one = encoded(sound[:88_200], 44_100)
    assert abs(len(Audio().decode(one + one).samples) - 2 * 88_200) < 4 * 1152
    assert abs(len(Audio().decode(one + id3(512) + one + b"TAG".ljust(128)).samples) - 2 * 88_200) < 4 * 1152


def test_a_long_recording_without_length_is_cut_at_its_end(sound, tmp_path):
    path = tmp_path / "machine.mp3"
    path.write_bytes(id3(8192) + without_tag(encoded(np.concatenate([sound, sound * 0]), 44_100)))
    recording = open_recording(path)
    assert 400_000 <= recording.frames <= 400_000 + 3 * 1152
    last, kind = clip(path, recording.seconds - 1, recording.seconds)
    assert (soundfile.info(io.BytesIO(last)).frames, kind) == (44_100, "flac")
