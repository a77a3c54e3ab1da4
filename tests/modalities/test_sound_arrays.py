"""Arrays of samples of every usual shape and type are the sound that a file of them is; cut-off files are refused."""

import io
import struct

import numpy as np
import pytest
import soundfile

from mmtune import modalities
from mmtune.errors import Rejected

audio = modalities.get("audio")
WAVE = np.sin(np.arange(44_100) / 9) * 0.5


def file_of(samples: np.ndarray, form: str = "WAV", subtype: str = "PCM_16", rate: int = 44_100) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=form, subtype=subtype)
    return out.getvalue()


def test_the_shorter_axis_is_the_channels():
    channels = np.stack([WAVE, np.zeros_like(WAVE)]).astype(np.float32)
    want = audio.decode(file_of(channels.T, subtype="FLOAT")).samples
    for value in (channels, channels.T, np.ascontiguousarray(channels.T)):
        assert np.array_equal(audio.coerce((value, 44_100)).samples, want)
    assert np.array_equal(audio.coerce((channels[:1], 44_100)).samples, channels[0])
    assert np.array_equal(audio.coerce((channels[:1].T, 44_100)).samples, channels[0])
    square = np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)
    assert audio.coerce((square, 8000)).samples.tolist() == [0.5, 0.5]  # as [samples, channels]
    assert len(audio.decode(file_of(channels[:, :1].T)).samples) == 1  # a file's axes are known
    with pytest.raises(Rejected, match=r"got \(2, 2, 2\)"):
        audio.coerce((np.zeros((2, 2, 2)), 8000))


def test_integers_equal_the_file_of_their_type():
    rng = np.random.default_rng(0)
    for kind, subtype in ((np.int16, "PCM_16"), (np.int32, "PCM_32")):
        limits = np.iinfo(kind)
        samples = rng.integers(limits.min, limits.max, 1000, dtype=kind, endpoint=True)
        samples[:2] = limits.min, limits.max
        np.testing.assert_allclose(
            audio.coerce((samples, 8000)).samples, audio.decode(file_of(samples, "WAV", subtype)).samples
        )
    unsigned = rng.integers(0, 256, 1000, dtype=np.uint8)
    wave = file_of(np.zeros(1000), "WAV", "PCM_U8")
    start = wave.index(b"data") + 8
    wave = wave[:start] + unsigned.tobytes() + wave[start + 1000 :]
    np.testing.assert_allclose(audio.coerce((unsigned, 8000)).samples, audio.decode(wave).samples)
    assert not audio.coerce((np.full(100, 128, np.uint8), 8000)).samples.any()  # silence


@pytest.mark.parametrize("kind", [np.int64, np.uint32, bool, complex, object, "U4"])
def test_samples_without_a_known_full_scale_are_refused(kind):
    with pytest.raises(Rejected, match=r"whose full scale is not known; give floats in -1\.\.1, or uint8, int16"):
        audio.coerce((np.zeros(10).astype(kind), 8000))


FORMATS = [("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("WAVEX", "FLOAT"), ("RF64", "PCM_16"), ("W64", "PCM_16")]
OTHERS = [("AIFF", "PCM_16"), ("AU", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")]


@pytest.mark.parametrize("form, subtype", FORMATS + OTHERS)
def test_a_sound_that_ends_before_its_header_says_is_refused(form, subtype):
    data = file_of(WAVE, form, subtype)
    assert abs(audio.decode(data).seconds - 1) < 0.06
    audio.check(data)
    audio.check_header(data)
    with pytest.raises(Rejected) as refused:
        audio.check(data[: len(data) // 2])
    if (form, subtype) in [*FORMATS, *OTHERS[:2], OTHERS[-1]]:
        words = str(refused.value).split()
        assert words[0] == "truncated:" and abs(float(words[8]) - 1) < 0.01
        assert abs(float(words[4]) - (0.4 if form == "MP3" else 0.5)) < 0.02
    if (form, subtype) in FORMATS:
        with pytest.raises(Rejected, match="truncated: the file has 0[.]4.* s of the .* s in its header"):
            audio.check_header(data[: len(data) // 2])


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_of_a_pipe_states_no_length(size):
    data = file_of(WAVE)
    at = data.index(b"data") + 4
    assert len(audio.decode(data[:at] + struct.pack("<I", size) + data[at + 4 :]).samples) == 44_100
    audio.check_header(data[:at] + struct.pack("<I", size) + data[at + 4 :])


def test_a_wav_that_lacks_a_few_samples_is_read():
    assert len(audio.decode(file_of(WAVE)[:-200]).samples) == 44_000
