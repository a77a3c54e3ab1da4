"""Odd files are handled, broken ones rejected with a reason."""

import io

import numpy as np
import PIL.Image
import pytest
import soundfile

from mmtune import modalities
from mmtune.errors import RecipeError, Rejected

image, audio, text = (modalities.get(n) for n in ("image", "audio", "text"))


def bytes_of(picture: PIL.Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>"""


@pytest.mark.parametrize("form, said", [("PNG", "exif"), ("JPEG", "exif"), ("JPEG", "xmp")])
def test_rotation_is_undone(form, said):
    picture = PIL.Image.new("RGB", (64, 32), "red")
    picture.paste("blue", (0, 0, 32, 32))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn clockwise
    shown = image.decode(bytes_of(picture, form, **{said: exif if said == "exif" else XMP}))
    assert shown.size == (32, 64)
    for y, colour in ((8, (0, 0, 255)), (56, (255, 0, 0))):
        assert np.abs(np.subtract(shown.getpixel((16, y)), colour)).max() < 5


def test_transparency_lies_over_white():
    picture = PIL.Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    picture.putpixel((0, 0), (0, 0, 255, 255))
    shown = image.decode(bytes_of(picture, "PNG"))
    assert shown.mode == "RGB" and shown.getpixel((3, 3)) == (255, 255, 255) and shown.getpixel((0, 0)) == (0, 0, 255)
    palette = PIL.Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 0, 200, 0])
    assert image.decode(bytes_of(palette, "PNG", transparency=1)).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_sixteen_bits_grey_and_one_bit():
    assert image.decode(bytes_of(PIL.Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG")).getpixel((1, 1))[0] > 200
    wide = PIL.Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    assert [image.decode(bytes_of(wide, "PNG")).getpixel((i, 0))[0] for i in range(3)] == [0, 128, 255]
    assert image.decode(bytes_of(PIL.Image.new("L", (3, 3), 77), "PNG")).getpixel((1, 1)) == (77, 77, 77)
    assert image.decode(bytes_of(PIL.Image.new("1", (3, 3), 1), "PNG")).getpixel((1, 1)) == (255, 255, 255)


def test_first_frame_of_an_animation():
    frames = [PIL.Image.new("RGB", (6, 6), c) for c in ("red", "blue")]
    data = bytes_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert image.decode(data).getpixel((3, 3)) == (255, 0, 0)


def test_the_header_is_believed_before_a_pixel_is_read():
    with pytest.raises(Rejected, match=r"too large: 300 x 300 pixels, limit 1000 \(--max-pixels\)"):
        image.check(bytes_of(PIL.Image.new("RGB", (300, 300)), "PNG"), max_pixels=1000)


@pytest.mark.parametrize(
    "value", [np.zeros((5, 6), np.uint8), np.zeros((5, 6, 3), np.uint8), np.zeros((5, 6, 4)), PIL.Image.new("L", (6, 5))]
)
def test_pictures_from_memory(value):
    assert image.coerce(value).size == (6, 5) and image.coerce(value).mode == "RGB"


@pytest.mark.parametrize(
    "form, subtype",
    [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")],
)
def test_formats_and_stereo(form, subtype):
    x = np.stack([np.sin(np.arange(8820) / 9) * 0.5, np.zeros(8820)], 1)
    out = io.BytesIO()
    soundfile.write(out, x, 44100, format=form, subtype=subtype)
    sound = audio.decode(out.getvalue())
    assert sound.rate == 44100 and sound.samples.ndim == 1 and abs(len(sound.samples) - 8820) < 3000
    assert 0.2 < np.abs(sound.samples).max() < 0.3  # the mean of the channels


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 44101, 47999, 96000, 192000])
def test_any_rate_keeps_its_pitch(rate):
    sound = audio.coerce((np.sin(2 * np.pi * 440 * np.arange(rate) / rate), rate)).resampled(16000)
    assert abs(len(sound.samples) - 16000) <= 2
    spectrum = np.abs(np.fft.rfft(sound.samples[:16000]))
    assert abs(spectrum.argmax() * 16000 / min(16000, len(sound.samples)) - 440) < 2


def test_integers_are_scaled_and_nan_is_refused():
    assert np.abs(audio.coerce((np.array([32767, -32767], np.int16), 8000)).samples).max() == pytest.approx(1, abs=1e-4)
    with pytest.raises(Rejected, match="not finite"):
        audio.coerce((np.array([0.0, np.nan]), 8000))
    with pytest.raises(Rejected, match="an array cannot be used without its sample rate"):
        audio.coerce(np.zeros(100))


BROKEN = [
    (image, b"", "empty file"),
    (image, b"hello", "not a readable picture"),
    (audio, b"", "empty file"),
    (audio, b"RIFF0000WAVE", "not a readable sound"),
    (text, b"   ", "empty text"),
    (text, b"\xff\xfe\xfa", "not UTF-8 text"),
]


@pytest.mark.parametrize("kind, data, reason", BROKEN)
def test_broken_values_give_a_reason(kind, data, reason):
    with pytest.raises(Rejected, match=reason):
        kind.check(data)


def test_a_missing_file_is_named():
    for kind in (image, audio):
        with pytest.raises(Rejected, match="/no/such/file: No such file"):
            kind.coerce("/no/such/file")


@pytest.mark.parametrize(
    "kind, options",
    [
        (image, {"crop": 0.5, "flip": True, "rotate": 10, "color": 0.3}),
        (audio, {"shift": True, "gain_db": 6, "noise_db": 20, "polarity": True}),
        (text, {"drop_words": 0.5}),
    ],
)
def test_augmentation_is_a_function_of_its_generator(kind, options):
    import random

    noise, wave = PIL.Image.effect_noise((40, 30), 90).convert("RGB"), np.sin(np.arange(800) / 7)
    signal = {"image": noise, "audio": audio.coerce((wave, 8000)), "text": "a b c d e f g"}[kind.name]

    augment = kind.augment(**options)

    def numbers(seed: int) -> list:
        value = augment(signal, random.Random(seed))
        return list(value) if isinstance(value, str) else np.asarray(getattr(value, "samples", value)).ravel().tolist()

    assert numbers(1) == numbers(1) and any(numbers(s) != numbers(1) for s in range(2, 6))
    with pytest.raises(RecipeError, match="unknown; known:"):
        kind.augment(nonsense=1)


def test_shows_are_self_contained():
    out = io.BytesIO()
    soundfile.write(out, np.zeros(800), 8000, format="WAV")
    assert image.to_html(bytes_of(PIL.Image.new("RGB", (9, 9)), "PNG")).startswith('<img alt="" src="data:image/jpeg;base64,')
    assert "<audio controls" in audio.to_html(out.getvalue()) and text.to_html(b"<b>") == "<p>&lt;b&gt;</p>"
