"""AAC sounds (.m4a, .aac) are decoded with the extra `aac`; without it, and broken ones, are refused in one line."""

import io
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from mmtune import modalities
from mmtune.errors import Rejected
from tests.support.media_files import aac

RATE, SECONDS = 16_000, 1.5
SAMPLES = (0.4 * np.sin(2 * np.pi * 440 * np.arange(int(RATE * SECONDS)) / RATE)).astype(np.float32)
AUDIO = modalities.get("audio")


@pytest.mark.parametrize(("container", "channels"), [("ipod", 1), ("ipod", 2), ("adts", 1)])
def test_the_samples_of_the_encoded_sound_come_back(container: str, channels: int, tmp_path: Path) -> None:
    data = aac(SAMPLES, RATE, container, channels)
    sound = AUDIO.decode(data)
    assert sound.rate == RATE and sound.samples.dtype == np.float32 and sound.samples.ndim == 1
    if container == "ipod":
        assert len(sound.samples) == len(SAMPLES)
        middle = slice(RATE // 4, -RATE // 4)  # a codec needs a frame to start and to end
        assert np.corrcoef(sound.samples[middle], SAMPLES[middle])[0, 1] > 0.999
        assert abs(np.std(sound.samples[middle]) / np.std(SAMPLES[middle]) - 1) < 0.02
    else:
        assert len(SAMPLES) <= len(sound.samples) <= len(SAMPLES) + 3 * 1024
    AUDIO.check(data, max_seconds=2)
    for check in (AUDIO.check, AUDIO.check_header):
        if container == "ipod":
            with pytest.raises(Rejected, match="too long"):
                check(data, max_seconds=1)
    assert AUDIO.media_type(data) == {"ipod": "audio/mp4", "adts": "audio/aac"}[container]
    (tmp_path / "x.m4a").write_bytes(data)
    assert np.array_equal(AUDIO.coerce(tmp_path / "x.m4a").samples, sound.samples)


def test_a_cut_file_is_said_and_a_damaged_one_is_no_crash() -> None:
    whole = aac(SAMPLES, RATE, "ipod", 1, faststart=True)
    with pytest.raises(Rejected, match="truncated: the file has|not a readable sound"):
        AUDIO.decode(whole[: len(whole) // 2])
    for seed in range(60):
        rng = random.Random(seed)
        bad = bytearray(whole)
        for _ in range(rng.choice([1, 20, 400])):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        try:
            assert np.isfinite(AUDIO.decode(bytes(bad)).samples).all()
        except Rejected as e:
            assert "\n" not in str(e)


def test_a_film_without_sound_is_refused() -> None:
    with pytest.raises(Rejected):
        AUDIO.decode(b"\0\0\0\x1cftypM4A \0\0\2\0" + bytes(200))


def test_without_the_extra_the_refusal_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = aac(SAMPLES, RATE, "ipod", 1)
    monkeypatch.setitem(sys.modules, "av", None)
    for read in (AUDIO.decode, AUDIO.check_header, lambda d: AUDIO.coerce(io.BytesIO(d))):
        with pytest.raises(Rejected, match=r'^to read a sound in AAC .*pip install "mmtune\[aac\]"$'):
            read(data)
