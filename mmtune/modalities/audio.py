"""Sounds: anything libsndfile reads, as mono float32 samples with their rate; resampling by soxr for any pair of rates."""

import base64
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtune.contracts import Modality, Option
from mmtune.errors import RecipeError, Rejected
from mmtune.html.render import render_macro
from mmtune.modalities.augmentations import mask_sound, mix_sounds
from mmtune.modalities.perceptual_hash import NEAR_SOUNDS, sound_key
from mmtune.modalities.spectrogram import spectrogram, wave

MAX_SECONDS = 3600.0
SERVED_SECONDS, SERVED_RATE = 120.0, 2 * 96_000  # samples a second of all channels: what a header says bounds the memory
TYPES = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mpeg", b"\xff\xfb": "mpeg", b"\xff\xf3": "mpeg"}
CARD_SECONDS, CARD_RATES = 5, (8000, 24000)  # browsers play no rate below; nobody misses what lies above in a small player
CARD_BYTES, MP3_RATES = 24_000, (8000, 11025, 12000, 16000)  # hundreds of cards fit a page; rates that MP3 knows


@dataclass(frozen=True, slots=True)
class Sound:
    """Mono samples [N] float32 (nominally -1..1) at `rate` samples a second."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def resampled(self, rate: int) -> "Sound":
        """This sound at another rate (soxr, high quality); itself when the rate is the same."""
        if rate == self.rate:
            return self
        import soxr

        samples = soxr.resample(self.samples, self.rate, rate, quality="HQ")
        return Sound(samples if len(samples) else np.zeros(1, np.float32), rate)


def _sound(samples: np.ndarray, rate: int) -> Sound:
    """Mean of the channels of [N] or [N, C], checked."""
    samples = np.asarray(samples)
    if samples.dtype.kind in "iu":
        samples = samples.astype(np.float32) / float(np.iinfo(samples.dtype).max)
    samples = samples.astype(np.float32)
    if samples.ndim == 2:
        samples = samples.mean(axis=1, dtype=np.float32)
    if samples.ndim != 1:
        raise Rejected(f"a sound is [samples] or [samples, channels]; got shape {samples.shape}")
    if not len(samples):
        raise Rejected("no samples")
    if not np.isfinite(samples).all():
        raise Rejected("samples that are not finite (NaN or infinity)")
    if rate <= 0:
        raise Rejected(f"sample rate {rate} is not positive")
    return Sound(np.ascontiguousarray(samples), int(rate))


class Audio(Modality):
    """Signals are `Sound`."""

    name = "audio"
    extensions = ("wav", "flac", "ogg", "mp3", "opus", "aiff", "aif", "au")
    columns = ("audio", "audio_path", "sound", "wav", "clip")
    near_duplicate_distance = NEAR_SOUNDS
    options = {"max_seconds": Option(float, MAX_SECONDS, "reject sounds longer than this")}
    request_limits = {"max_seconds": SERVED_SECONDS}

    def decode(self, data: bytes, max_seconds: float = MAX_SECONDS * 24) -> Sound:
        import soundfile

        if not data:
            raise Rejected("empty file")
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as f:
                if f.samplerate <= 0 or f.frames / f.samplerate > max_seconds:
                    raise Rejected(f"too long: {f.frames / max(f.samplerate, 1):.0f} s, limit {max_seconds:g} (--max-seconds)")
                if f.frames * f.channels > 2**31:
                    raise Rejected(f"too large: {f.frames} frames of {f.channels} channels")
                samples, rate = f.read(dtype="float32", always_2d=True), f.samplerate
        except Rejected:
            raise
        except Exception as e:  # libsndfile and its wrapper raise several types on broken bytes
            raise Rejected(f"not a readable sound: {str(e).splitlines()[0][:200] if str(e) else type(e).__name__}") from None
        return _sound(samples, rate)

    def check(self, data: bytes, max_seconds: float = MAX_SECONDS, **_: float) -> None:
        self.decode(data, max_seconds)

    def check_header(self, data: bytes, max_seconds: float = SERVED_SECONDS, **_: float) -> int:
        import soundfile

        try:
            with soundfile.SoundFile(io.BytesIO(data)) as f:
                rate, frames, channels = f.samplerate, f.frames, f.channels
        except Exception as e:  # as in decode
            raise Rejected(f"not a readable sound: {str(e).splitlines()[0][:200] if str(e) else type(e).__name__}") from None
        if rate <= 0 or frames / rate > max_seconds:
            raise Rejected(f"too long: {frames / max(rate, 1):.1f} s, limit {max_seconds:g}")
        if frames * channels > max_seconds * SERVED_RATE:
            raise Rejected(f"too large: {frames} frames of {channels} channels, limit {max_seconds * SERVED_RATE:.0f} samples")
        return frames * (channels + 1) * 4

    def coerce(self, value: Any) -> Sound:
        """A path, bytes, a `Sound`, or a pair (array [N] or [N, C], rate)."""
        if isinstance(value, Sound):
            return _sound(value.samples, value.rate)
        if isinstance(value, bytes):
            return self.decode(value)
        if isinstance(value, str | Path):
            return self.from_file(value)
        if isinstance(value, tuple | list) and len(value) == 2 and np.ndim(value[1]) == 0:
            return _sound(np.asarray(value[0]), int(value[1]))
        raise Rejected(
            f"a sound is a path or (samples, rate); got {type(value).__name__}: an array without its rate means nothing"
        )

    def accepts(self, value: object) -> bool:
        """A `Sound`, a pair (samples, rate), or a path with a sound's suffix."""
        if isinstance(value, tuple):
            return len(value) == 2 and isinstance(value[1], int | float)
        return isinstance(value, Sound) or super().accepts(value)

    def near_duplicate_key(self, signal: Sound) -> int | None:
        return sound_key(signal.samples, signal.rate)

    def augment(
        self,
        shift: bool = False,
        gain_db: float = 0.0,
        noise_db: float | None = None,
        polarity: bool = False,
        mask_time: float = 0.0,
        mask_freq: float = 0.0,
        masks: int = 1,
        **unknown: Any,
    ) -> Callable[[Any, random.Random], Any]:
        """`shift`: rotate in time; `gain_db`: gain at most, either way; `noise_db`: white noise this far below the signal
        at the loudest (None = off); `polarity`: invert half of the time; `mask_time`, `mask_freq` (SpecAugment): largest share
        of the time and of the mel scale that a mask hides (0 = off); `masks`: their number, of each kind."""
        if unknown:
            known = "shift, gain_db, noise_db, polarity, mask_time, mask_freq, masks, mixup"
            raise RecipeError(f"augment.audio.{next(iter(unknown))}: unknown; known: {known}")
        for key, value in (("mask_time", mask_time), ("mask_freq", mask_freq)):
            if not 0 <= value <= 1:
                raise RecipeError(f"augment.audio.{key}: {value} is not a share from 0 to 1")
        if masks < 1:
            raise RecipeError(f"augment.audio.masks: {masks} is not 1 or more")
        return Augment(shift, gain_db, noise_db, polarity, (mask_time, mask_freq, masks))

    def mix(self, signal: Sound, other: Sound, share: float) -> Sound:
        """Both at once, `other` with `share` of the energy, repeated or cut to the length of `signal`."""
        return Sound(mix_sounds(signal.samples, other.resampled(signal.rate).samples, share), signal.rate)

    def to_html(self, data: bytes) -> str:
        import soundfile

        sound = self.decode(data)
        out = io.BytesIO()
        soundfile.write(out, sound.samples[: sound.rate * 30], sound.rate, format="WAV", subtype="PCM_16")
        return render_macro("values.html.j2", "player", base64.b64encode(out.getvalue()).decode(), "wav")

    def thumbnail_html(self, data: bytes, label: str = "") -> str:
        """Waveform and spectrogram of the whole sound over a player: all of it unchanged where that is small, else its first
        seconds, as MP3 where they are still large; the line under it says so. About 40 kB at most, whatever the sound."""
        sound = self.decode(data)
        kind, played, note = _player(sound)
        top = f"{sound.rate / 2000:.3g} kHz"
        return render_macro(
            "values.html.j2",
            "sound",
            base64.b64encode(played).decode(),
            kind,
            label,
            wave(sound.samples, 80),
            base64.b64encode(spectrogram(sound.samples, sound.rate, 160, 64)).decode(),
            top,
            f"{sound.seconds:.3g} s, up to {top}{note}",
        )

    def media_type(self, data: bytes) -> str:
        kind = next((t for start, t in TYPES.items() if data.startswith(start)), None)
        return f"audio/{kind}" if kind else super().media_type(data)

    def input_component(self, **options: Any) -> Any:
        import gradio

        return gradio.Audio(sources=["microphone", "upload"], type="filepath", buttons=[], **options)


def _player(sound: Sound) -> tuple[str, bytes, str]:
    """(MIME subtype, file, what the listener should know of it) of a sound's first CARD_SECONDS."""
    import soundfile

    start = Sound(sound.samples[: sound.rate * CARD_SECONDS], sound.rate)
    cut = f"; plays the first {CARD_SECONDS} s" if sound.seconds > CARD_SECONDS else ""
    low, high = CARD_RATES
    played, out = start.resampled(min(max(sound.rate, low), high)), io.BytesIO()
    soundfile.write(out, played.samples.clip(-1, 1), played.rate, format="FLAC", subtype="PCM_16")
    if len(out.getvalue()) <= CARD_BYTES:
        return "flac", out.getvalue(), cut
    # Exact where it is small: a fine crackle may be what tells two sounds apart. Else coarser, and said so.
    played = start.resampled(max([r for r in MP3_RATES if r <= sound.rate], default=low))
    out = io.BytesIO()
    soundfile.write(out, played.samples.clip(-1, 1), played.rate, format="MP3", subtype="MPEG_LAYER_III")
    coarse = f"{cut or '; plays'} as MP3" + (f", up to {played.rate / 2000:.3g} kHz" if played.rate < sound.rate else "")
    return "mpeg", out.getvalue(), coarse


class Augment:
    """Time shift, gain, white noise, polarity and masks on a Sound."""

    def __init__(
        self, shift: bool, gain_db: float, noise_db: float | None, polarity: bool, masks: tuple[float, float, int] = (0, 0, 1)
    ):
        self.shift, self.gain_db, self.noise_db, self.polarity, self.masks = shift, gain_db, noise_db, polarity, masks

    def __call__(self, sound: Sound, rng: random.Random) -> Sound:
        x = sound.samples
        if self.shift:
            x = np.roll(x, rng.randrange(len(x)))
        if self.gain_db:
            x = x * np.float32(10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20))
        if self.noise_db is not None:
            level = float(np.sqrt(np.mean(x**2))) * 10 ** (-(self.noise_db + rng.uniform(0, 20)) / 20)
            noise = np.random.default_rng(rng.getrandbits(64)).standard_normal(len(x), np.float32)
            x = x + noise * np.float32(level)
        if self.polarity and rng.random() < 0.5:
            x = -x
        if self.masks[0] or self.masks[1]:
            x = mask_sound(x, sound.rate, *self.masks, rng)
        return Sound(np.ascontiguousarray(x, np.float32), sound.rate)
