"""Encoded pictures and sounds in formats that Pillow and libsndfile do not write alone."""

import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import soundfile


def aac(samples: np.ndarray, rate: int, container: str = "ipod", channels: int = 1, faststart: bool = False) -> bytes:
    """Encode samples [N] as AAC. container: "ipod" (.m4a) or "adts" (.aac); faststart: the header before the samples."""
    import av

    place = Path(tempfile.mkdtemp()) / "sound"  # FFmpeg reads the file again to move the header
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(place), "w", format=container, options=options) as file:
        stream = file.add_stream("aac", rate=rate)
        stream.layout = "mono" if channels == 1 else "stereo"
        for start in range(0, len(samples), 1024):
            block = np.repeat(samples[None, start : start + 1024], channels, axis=0)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout=stream.layout.name)
            frame.sample_rate, frame.pts = rate, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    data = place.read_bytes()
    shutil.rmtree(place.parent)
    return data


def encoded(modality: str, ending: str) -> bytes:
    """A file of this ending: a picture of noise, or a short tone; another one for each ending."""
    seed = sum(map(ord, ending))
    if modality == "image":
        return _picture(ending, seed)
    samples = (0.3 * np.sin(2 * np.pi * (300 + seed) * np.arange(8000) / 16_000)).astype(np.float32)
    if ending in ("m4a", "aac"):
        return aac(samples, 16_000, "ipod" if ending == "m4a" else "adts")
    kind, subtype = {"ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"), "mp3": ("MP3", "MPEG_LAYER_III")}.get(
        ending, (ending.upper().replace("AIF", "AIFF").replace("AIFFF", "AIFF"), "PCM_16")
    )
    out = io.BytesIO()
    soundfile.write(out, samples, 16_000, format=kind, subtype=subtype)
    return out.getvalue()


def _picture(ending: str, seed: int) -> bytes:
    import pillow_heif

    kind = {"jpg": "JPEG", "jpeg": "JPEG", "jfif": "JPEG", "tif": "TIFF", "tiff": "TIFF", "ppm": "PPM", "pgm": "PPM"}
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 48, 3), np.uint8)
    picture = PIL.Image.fromarray(pixels).convert("L" if ending == "pgm" else "RGB")
    out = io.BytesIO()
    if ending in ("heic", "heif"):
        pillow_heif.from_pillow(picture).save(out, quality=80 if ending == "heic" else 90)
    else:
        picture.save(out, kind.get(ending, ending.upper()))
    return out.getvalue()
