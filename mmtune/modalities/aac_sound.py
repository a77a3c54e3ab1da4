"""Decode AAC and ALAC sounds (.m4a and .aac files) with PyAV, whose wheels contain FFmpeg. Needs the extra `aac`.

libsndfile, which decodes all other sounds, reads neither of these codecs.
"""

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import Rejected
from mmtune.modalities.truncated_sound import check_length

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

SLACK = 4096
"""Samples that may be missing at the end: the encoder's delay and padding are whole frames of 1024 or 2048 samples."""


def container_format(data: bytes) -> str | None:
    """FFmpeg's name of the container of an MP4 or ADTS (.aac) file, by its first bytes; None for any other file."""
    if data[4:8] == b"ftyp":
        return "mp4"
    return "aac" if len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0 else None


def stated_length(data: bytes) -> tuple[int, int, int]:
    """(frames, channels, sample rate) in the header of a file; ADTS files state no length, it is estimated from their bit rate.

    Raises Rejected if the header cannot be read, or if the extra is not installed.
    """
    with _opened(data) as container:
        stream = _sound_stream(container)
        return round(_seconds(container, stream) * stream.rate), stream.channels, stream.rate


def decode_aac(data: bytes, max_seconds: float, max_samples: int) -> tuple[np.ndarray, int]:
    """Decode a file: float32 samples [N, C] and the sample rate.

    Raises Rejected if it cannot be decoded, is truncated, is longer than `max_seconds` or has more than `max_samples` samples in
    all channels together, or if the extra is not installed.
    """
    with _opened(data) as container:
        import av

        stream = _sound_stream(container)
        seconds = _seconds(container, stream)
        if seconds > max_seconds:
            raise Rejected(f"too long: {seconds:.0f} s, limit {max_seconds:g} (--max-seconds)")
        parts, frames, rate = [], 0, stream.rate
        to_float = av.AudioResampler(format="fltp")
        for frame in container.decode(stream):
            rate = frame.sample_rate
            for converted in to_float.resample(frame):
                parts.append(converted.to_ndarray())
                frames += parts[-1].shape[1]
            if frames / rate > max_seconds or frames * stream.channels > max_samples:
                raise Rejected(f"too long: over {frames / rate:.0f} s, limit {max_seconds:g} (--max-seconds)")
    if not frames:
        raise Rejected("no samples")
    samples = np.concatenate(parts, axis=1).T
    if container_format(data) == "mp4":
        stated = round(seconds * rate)
        check_length(frames, stated, rate, SLACK)
        samples = samples[:stated]  # the rest is padding of the last frame
    return samples, rate


@contextlib.contextmanager
def _opened(data: bytes) -> "Iterator[InputContainer]":
    """Open a file. Raises Rejected instead of any exception of PyAV, in the `with` block too."""
    try:
        import av
    except ImportError:
        raise Rejected('to read a sound in AAC or ALAC (.m4a), install the extra: pip install "mmtune[aac]"') from None
    try:
        with av.open(io.BytesIO(data), "r", format=container_format(data)) as container:
            yield container
    except Rejected:
        raise
    except Exception as e:  # on broken bytes PyAV raises FFmpegError, ValueError and AttributeError
        raise Rejected(f"not a readable sound: {getattr(e, 'strerror', '') or type(e).__name__}") from None


def _sound_stream(container: "InputContainer") -> "AudioStream":
    if not container.streams.audio:
        raise Rejected("not a sound: an MP4 file without a sound track")
    stream = container.streams.audio[0]
    if not stream.rate:
        raise Rejected("not a readable sound: its sample rate is 0")
    return stream


def _seconds(container: "InputContainer", stream: "AudioStream") -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6
