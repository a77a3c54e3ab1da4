"""The modality "audio": any file that libsndfile can read, and AAC with the extra `aac`, decoded to mono float32 samples and their sample rate."""

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Augmentation, Modality, Option
from mmtune.errors import RecipeError, Rejected, first_line
from mmtune.html.render import render_macro
from mmtune.modalities.aac_sound import container_format, decode_aac, stated_length
from mmtune.modalities.audio_augmentation import AudioAugmentation, MaskSpectrogram, mix_sounds
from mmtune.modalities.audio_player import small_player
from mmtune.modalities.encoded_value import unwrap_encoded
from mmtune.modalities.mpeg_frames import with_frame_count
from mmtune.modalities.perceptual_hash import SOUND_DISTANCE, sound_hash
from mmtune.modalities.sound import Sound, mono_sound
from mmtune.modalities.spectrogram import frequency_label, spectrogram, spectrogram_picture, waveform_path
from mmtune.modalities.truncated_sound import check_decoded_length, check_header_length

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["Audio", "Sound"]

THUMBNAIL_SIDE = 160  # width of the spectrogram, in pixels
MAX_SECONDS = 3600.0  # default limit in datasets
REQUEST_SECONDS = 120.0  # default limit in HTTP requests
REQUEST_RATE = 2 * 96_000  # limit in HTTP requests: samples a second, all channels together; bounds the memory for decoding
CHAT_SECONDS = 30.0  # of a sound that is sent to a language model
MAX_SAMPLES = 2**31  # of all channels together
SUBTYPES = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mpeg", b"\xff\xfb": "mpeg", b"\xff\xf3": "mpeg"}
"""First bytes of a file -> the subtype of its media type, "audio/SUBTYPE"."""


def _stated_length(data: bytes) -> tuple[int, int, int]:
    """(frames, channels, sample rate) in the header of a file. Raises Rejected if libsndfile cannot read it, or it is truncated."""
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(with_frame_count(data))) as f:
            if f.samplerate > 0:
                check_header_length(f)
            return f.frames, f.channels, f.samplerate
    except Rejected:
        raise
    except Exception as e:  # libsndfile and its wrapper raise several types on broken bytes
        raise Rejected(_unreadable(e)) from None


def _unreadable(error: Exception) -> str:
    """Return the message for a file that libsndfile cannot read."""
    reason = re.sub(r"Error opening <[^>]*>: ", "", first_line(error))  # the address of an object says nothing
    return f"not a readable sound: {reason[:200]}"


class Audio(Modality):
    """The modality "audio". Its signals are of the class `Sound`: mono samples and their sample rate."""

    name = "audio"
    extensions = ("wav", "flac", "ogg", "mp3", "opus", "aiff", "aif", "au", "m4a", "aac")
    columns = ("audio", "audio_path", "sound", "wav", "clip")
    augmentations = {
        "speed": "mmtune.modalities.audio_steps:Speed",
        "time_stretch": "mmtune.modalities.audio_steps:TimeStretch",
        "pitch_shift": "mmtune.modalities.audio_steps:PitchShift",
        "gain": "mmtune.modalities.audio_steps:Gain",
        "low_pass": "mmtune.modalities.audio_steps:LowPass",
        "high_pass": "mmtune.modalities.audio_steps:HighPass",
        "background_noise": "mmtune.modalities.audio_steps:BackgroundNoise",
        "room": "mmtune.modalities.audio_steps:Room",
        "mask_spectrogram": "mmtune.modalities.audio_augmentation:MaskSpectrogram",
        "audiomentations": "mmtune.modalities.audio_steps:Audiomentations",
    }
    near_duplicate_distance = SOUND_DISTANCE
    options = {"max_seconds": Option(float, MAX_SECONDS, "reject sounds longer than this")}
    request_limits = {"max_seconds": REQUEST_SECONDS}

    def decode(self, data: bytes, max_seconds: float = MAX_SECONDS * 24) -> Sound:
        # the default is a last resort against memory exhaustion; `check` applies the real limit
        import soundfile

        if not data:
            raise Rejected("empty file")
        if container_format(data):
            samples, rate = decode_aac(data, max_seconds, MAX_SAMPLES)
            return mono_sound(samples.mean(axis=1, dtype=np.float32), rate)
        try:
            with soundfile.SoundFile(io.BytesIO(with_frame_count(data))) as f:
                if f.samplerate <= 0 or f.frames / f.samplerate > max_seconds:
                    raise Rejected(f"too long: {f.frames / max(f.samplerate, 1):.0f} s, limit {max_seconds:g} (--max-seconds)")
                if f.frames * f.channels > MAX_SAMPLES:
                    raise Rejected(f"too large: {f.frames} frames of {f.channels} channels")
                check_header_length(f)
                samples, rate = f.read(dtype="float32", always_2d=True), f.samplerate
                check_decoded_length(f, len(samples))
        except Rejected:
            raise
        except Exception as e:  # libsndfile and its wrapper raise several types on broken bytes
            raise Rejected(_unreadable(e)) from None
        return mono_sound(samples.mean(axis=1, dtype=np.float32), rate)

    def cut(self, signal: Sound, seconds: float) -> list[tuple[float, Sound]]:
        window = max(1, round(seconds * signal.rate))
        last = len(signal.samples) - window
        if last <= 0:
            return []
        starts = [*range(0, last, max(1, window // 2)), last]
        return [(s / signal.rate, Sound(signal.samples[s : s + window], signal.rate)) for s in starts]

    def check(self, data: bytes, max_seconds: float = MAX_SECONDS, **_: float) -> None:
        self.decode(data, max_seconds)

    def check_header(self, data: bytes, max_seconds: float = REQUEST_SECONDS, **_: float) -> int:
        frames, channels, rate = stated_length(data) if container_format(data) else _stated_length(data)
        if rate <= 0 or frames / rate > max_seconds:
            raise Rejected(f"too long: {frames / max(rate, 1):.1f} s, limit {max_seconds:g}")
        if frames * channels > max_seconds * REQUEST_RATE:
            raise Rejected(f"too large: {frames} frames of {channels} channels, limit {max_seconds * REQUEST_RATE:.0f} samples")
        return frames * (channels + 1) * 4  # float32 samples of all channels, and their mean

    def coerce(self, value: object) -> Sound:
        """Convert a user's value to a `Sound`.

        value: a path, bytes, an open binary file, a Hugging Face dictionary {"bytes", "path"} or {"array", "sampling_rate"}, a
            `Sound`, or a pair (array [N], [N, C] or [C, N], sample rate), see `mono_sound`
        """
        if isinstance(value, Sound):
            return mono_sound(value.samples, value.rate)
        if isinstance(value, Mapping) and {"array", "sampling_rate"} <= set(value):
            value = (value["array"], value["sampling_rate"])
        value = unwrap_encoded(value)
        if isinstance(value, bytes):
            return self.decode(value)
        if isinstance(value, str | Path):
            return self.from_file(value)
        if isinstance(value, tuple | list) and len(value) == 2 and np.ndim(value[1]) == 0:
            return mono_sound(np.asarray(value[0]), int(value[1]))
        raise Rejected(
            f"a sound must be a path or a pair (samples, sample rate); got {type(value).__name__}; "
            "an array cannot be used without its sample rate"
        )

    def encode_value(self, value: object) -> bytes:
        """Encode a value as WAV of float32 samples; the bytes of a file are returned as they are."""
        import soundfile

        if not isinstance(value, Sound) and not (isinstance(value, Mapping) and "array" in value):
            value = unwrap_encoded(value)
        if isinstance(value, bytes):
            return value
        sound, out = self.coerce(value), io.BytesIO()
        soundfile.write(out, sound.samples, sound.rate, format="WAV", subtype="FLOAT")
        return out.getvalue()

    def accepts(self, value: object) -> bool:
        """Accept a `Sound`, a pair (samples, sample rate), or a path with one of `extensions`."""
        if isinstance(value, tuple):
            return len(value) == 2 and isinstance(value[1], int | float)
        return isinstance(value, Sound) or super().accepts(value)

    def near_duplicate_key(self, signal: Sound) -> int | None:
        return sound_hash(signal.samples, signal.rate)

    def augment(
        self,
        shift: bool = False,
        gain_db: float = 0.0,
        noise_db: float | None = None,
        polarity: bool = False,
        mask_time: float = 0.0,
        mask_freq: float = 0.0,
        masks: int = 1,
        **unknown: object,
    ) -> Augmentation:
        """Create an augmentation of sounds.

        shift: whether to shift the sound in time by a random amount; what is shifted out at the end comes in at the start
        gain_db: maximum gain or attenuation, in dB
        noise_db: add white noise that is at least this many dB below the sound; None means no noise
        polarity: whether to invert the sign of the samples, with probability 0.5
        mask_time: maximum fraction of the duration that a time mask covers (SpecAugment); 0 means no time masks
        mask_freq: maximum fraction of the mel scale that a frequency mask covers (SpecAugment); 0 means no frequency masks
        masks: number of time masks and number of frequency masks

        Raises RecipeError for an unknown option or an invalid value.
        """
        if unknown:
            known = "shift, gain_db, noise_db, polarity, mask_time, mask_freq, masks, mixup"
            raise RecipeError(f"augment.audio.{next(iter(unknown))}: unknown; known: {known}")
        for key, value in (("mask_time", mask_time), ("mask_freq", mask_freq)):
            if not 0 <= value <= 1:
                raise RecipeError(f"augment.audio.{key}: {value} is not a share from 0 to 1")
        if gain_db < 0:
            raise RecipeError(f"augment.audio.gain_db: {gain_db} is below 0")
        if masks < 1:
            raise RecipeError(f"augment.audio.masks: {masks} is not 1 or more")
        mask = MaskSpectrogram(mask_time, mask_freq, masks) if mask_time or mask_freq else None
        return AudioAugmentation(shift, gain_db, noise_db, polarity, mask)

    def mix(self, signal: Sound, other: Sound, share: float) -> Sound:
        """Mix two sounds; `other` gets the fraction `share` of the energy, and is repeated or cut to the length of `signal`."""
        return Sound(mix_sounds(signal.samples, other.resampled(signal.rate).samples, share), signal.rate)

    def to_html(self, data: bytes) -> str:
        import soundfile

        sound = self.decode(data)
        out = io.BytesIO()
        soundfile.write(out, sound.samples[: sound.rate * 30], sound.rate, format="WAV", subtype="PCM_16")
        return render_macro("values.html.j2", "player", base64.b64encode(out.getvalue()).decode(), "wav")

    def picture(self, data: bytes, side: int) -> "PIL.Image.Image":
        """Draw the spectrogram of the whole sound."""
        sound = self.decode(data)
        return spectrogram_picture(sound.samples, sound.rate, side, side // 2).convert("RGB")

    def thumbnail_html(self, data: bytes, label: str = "") -> str:
        """Show waveform and spectrogram of the whole sound, with axes, a player, and a line of text; at most about 40 kB.

        A long sound is played only in part, and a large one as MP3 (see `small_player`); the line of text says so.
        """
        return self.view_html(data, label, THUMBNAIL_SIDE)

    def view_html(self, data: bytes, label: str, side: int) -> str:
        """Like `thumbnail_html`, with a spectrogram that is `side` pixels wide."""
        sound = self.decode(data)
        kind, played, note = small_player(sound)
        picture = spectrogram(sound.samples, sound.rate, side, round(0.4 * side))
        return render_macro(
            "values.html.j2",
            "sound",
            base64.b64encode(played).decode(),
            kind,
            label,
            waveform_path(sound.samples, side // 2),
            base64.b64encode(picture).decode(),
            (side, round(0.4 * side)),
            [frequency_label(sound.rate / 2 * part) for part in (1, 0.5, 0)],
            [f"{sound.seconds * part:.3g}{' s' if part == 1 else ''}" for part in (0, 0.5, 1)],
            f"{sound.seconds:.3g} s, up to {frequency_label(sound.rate / 2)}{note}",
        )

    def examples(self) -> list[Sound]:
        noise = np.random.default_rng(0)
        return [Sound((0.1 * noise.standard_normal(8000 * n)).astype(np.float32), 16000) for n in (1, 2, 1)]

    def chat_part(self, data: bytes) -> dict[str, object]:
        """The sound as WAV in base64, mono, its first CHAT_SECONDS seconds."""
        import soundfile

        sound, out = self.decode(data), io.BytesIO()
        soundfile.write(out, sound.samples[: round(sound.rate * CHAT_SECONDS)], sound.rate, format="WAV", subtype="PCM_16")
        return {"type": "input_audio", "input_audio": {"data": base64.b64encode(out.getvalue()).decode(), "format": "wav"}}

    def media_type(self, data: bytes) -> str:
        if (aac := container_format(data)) is not None:
            return f"audio/{aac}"
        kind = next((t for start, t in SUBTYPES.items() if data.startswith(start)), None)
        return f"audio/{kind}" if kind else super().media_type(data)
