"""Long recordings: find segments with sound, and cut clips, without holding a recording in memory."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmtune.errors import MissingExtra, Rejected
from mmtune.modalities.mpeg_frames import readable_sound

FRAME_SECONDS = 0.02
BLOCK_SECONDS = 30.0
NOISE_QUANTILE = 0.2
"""The level of the noise is this quantile of the frames: a recording is assumed to be quiet for a fifth of its time."""
FLOOR_DB = -90.0
"""Level below which everything is silence, whatever the noise is."""
ONSET_RATE = 22_050
DETECTORS = ("energy", "onset")
MAX_FLAC_CHANNELS, MAX_FLAC_RATE = 8, 655_350


@dataclass(frozen=True)
class Recording:
    """What the header of a recording says. frames: samples of a channel; subtype: how samples are stored, e.g. PCM_16."""

    frames: int
    rate: int
    channels: int
    subtype: str

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def open_recording(path: str | Path) -> Recording:
    """Read the header of a recording that libsndfile can read. Raises Rejected otherwise."""
    import soundfile

    try:
        with soundfile.SoundFile(readable_sound(path)) as f:
            if not f.frames or f.samplerate <= 0:
                raise Rejected("no samples")
            return Recording(f.frames, f.samplerate, f.channels, f.subtype)
    except (soundfile.LibsndfileError, OSError) as e:
        raise Rejected(f"not a readable sound ({_reason(e)})") from None


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0].rpartition(": ")[2] or type(error).__name__


def clip(path: str | Path, start: float, end: float) -> tuple[bytes, str]:
    """Cut a clip out of a recording, with all its channels, and encode it without loss. Returns its bytes and their extension.

    start, end: seconds from the beginning
    """
    import soundfile

    try:
        with soundfile.SoundFile(readable_sound(path)) as f:
            first, last = round(start * f.samplerate), min(round(end * f.samplerate), f.frames)
            f.seek(first)
            samples = f.read(max(last - first, 1), dtype="float64", always_2d=True)
            if len(samples) < last - first:
                raise Rejected(f"ends after {(first + len(samples)) / f.samplerate:.2f} s, before its header says")
            flac = f.channels <= MAX_FLAC_CHANNELS and f.samplerate <= MAX_FLAC_RATE
            deep = f.subtype not in ("PCM_16", "PCM_S8", "PCM_U8", "MPEG_LAYER_III", "VORBIS", "OPUS", "ULAW", "ALAW")
            out = io.BytesIO()
            kind, subtype = ("FLAC", "PCM_24" if deep else "PCM_16") if flac else ("WAV", "FLOAT")
            soundfile.write(out, samples, f.samplerate, format=kind, subtype=subtype)
            return out.getvalue(), kind.lower()
    except (soundfile.LibsndfileError, OSError) as e:
        raise Rejected(f"not a readable sound ({_reason(e)})") from None


def _blocks(path: str | Path, seconds: float) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (mono samples float32 [n], rate) of consecutive blocks."""
    import soundfile

    try:
        with soundfile.SoundFile(readable_sound(path)) as f:
            size = round(seconds * f.samplerate)
            for block in f.blocks(size, dtype="float32", always_2d=True):
                yield block.mean(axis=1), f.samplerate
    except (soundfile.LibsndfileError, OSError) as e:
        raise Rejected(f"not a readable sound ({_reason(e)})") from None


def detect_segments(
    path: str | Path, detector: str = "energy", threshold_db: float = 12.0, gap: float = 0.2
) -> list[tuple[float, float]]:
    """Find the segments of a recording. Returns [(start, end)] in seconds.

    detector: "energy": where the level is above that of the noise; "onset": from each onset to the next one
    threshold_db: for "energy": how far above the noise, in dB
    gap: for "energy": segments with shorter pauses between them are joined; for "onset": the shortest distance of two onsets, in seconds

    Raises Rejected if the recording cannot be read, and MissingExtra if the library of "onset" is not installed.
    """
    return _by_energy(path, threshold_db, gap) if detector == "energy" else _by_onset(path, gap)


def _by_energy(path: str | Path, threshold_db: float, gap: float) -> list[tuple[float, float]]:
    levels: list[np.ndarray] = []
    total = 0.0
    for samples, rate in _blocks(path, BLOCK_SECONDS):
        size = max(round(FRAME_SECONDS * rate), 1)
        total += len(samples) / rate
        padded = np.pad(samples, (0, -len(samples) % size))
        levels.append(10 * np.log10(np.mean(np.square(padded.reshape(-1, size), dtype=np.float64), axis=1) + 1e-12))
    level = np.concatenate(levels) if levels else np.zeros(0)
    if not len(level):
        return []
    active = level > max(np.quantile(level, NOISE_QUANTILE) + threshold_db, FLOOR_DB)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    seconds = edges.reshape(-1, 2) * FRAME_SECONDS
    joined: list[tuple[float, float]] = []
    for start, end in seconds.tolist():
        if joined and start - joined[-1][1] < gap:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return [(start, min(end, total)) for start, end in joined]


def _by_onset(path: str | Path, gap: float) -> list[tuple[float, float]]:
    try:
        import librosa
    except ModuleNotFoundError:
        raise MissingExtra('finding onsets needs librosa: pip install "mmtune[pairs]"') from None
    from mmtune.modalities.resample import resample

    hop, strengths, total = 512, [], 0.0
    for samples, rate in _blocks(path, BLOCK_SECONDS):
        total += len(samples) / rate
        at_rate = resample(samples, rate, ONSET_RATE)
        # whole hops only, so that frame n of all blocks together starts at n hops
        at_rate = at_rate[: max(len(at_rate) // hop, 1) * hop]
        strengths.append(librosa.onset.onset_strength(y=at_rate, sr=ONSET_RATE, hop_length=hop)[: max(len(at_rate) // hop, 1)])
    if not strengths:
        return []
    wait = max(round(gap * ONSET_RATE / hop), 1)
    times = librosa.onset.onset_detect(
        onset_envelope=np.concatenate(strengths), sr=ONSET_RATE, hop_length=hop, units="time", wait=wait
    ).tolist()
    return [(start, end) for start, end in zip(times, [*times[1:], total], strict=True) if end > start]
