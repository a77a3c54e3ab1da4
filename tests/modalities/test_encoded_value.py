"""`encode` takes the values of Hugging Face datasets, and files opened in binary mode."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

import mmtune
from mmtune import modalities
from mmtune.errors import Rejected
from tests.support.data_helpers import picture, sound


def test_images_of_datasets_and_open_files_are_the_same_image(tmp_path: Path) -> None:
    data = picture(1)
    (tmp_path / "a.png").write_bytes(data)
    written = io.BytesIO()
    written.write(data)  # its position is at the end
    with open(tmp_path / "a.png", "rb") as file, tempfile.NamedTemporaryFile() as temporary:
        temporary.write(data)
        temporary.seek(0)
        values = [
            str(tmp_path / "a.png"),
            data,
            {"bytes": data, "path": None},
            {"bytes": data, "path": "gone.png"},
            {"bytes": None, "path": str(tmp_path / "a.png")},
            written,
            file,
            temporary,
            bytearray(data),
        ]
        vectors = mmtune.load("tiny:clip").encode(image=values)
    assert vectors.shape[0] == 9 and np.abs(vectors - vectors[0]).max() < 1e-6
    assert np.abs(vectors[0] - mmtune.load("tiny:clip").encode(image=picture(2))).max() > 1e-3


def test_sounds_of_datasets_and_open_files(tmp_path: Path) -> None:
    data = sound(1)
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    audio = modalities.get("audio")
    (tmp_path / "a.wav").write_bytes(data)
    values: list[object] = [
        {"bytes": data, "path": "a.wav"},
        io.BytesIO(data),
        {"array": samples, "sampling_rate": rate, "path": None},
        {"path": str(tmp_path / "a.wav"), "array": samples, "sampling_rate": rate},
    ]
    for value in values:
        made = audio.coerce(value)
        assert made.rate == rate and np.array_equal(made.samples, samples)


def test_what_holds_nothing_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for name in ("image", "audio"):
        with pytest.raises(Rejected, match="neither bytes nor a path"):
            modalities.get(name).coerce({"bytes": None, "path": None})
        with open(tmp_path / "a.txt") as file, pytest.raises(Rejected, match="binary mode"):
            modalities.get(name).coerce(file)
