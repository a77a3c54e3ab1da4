"""Encoded pictures and sounds in formats that Pillow and libsndfile do not write alone."""

import shutil
import tempfile
from pathlib import Path

import numpy as np


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
