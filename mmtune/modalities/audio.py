"""The modality "audio": any file libsndfile reads, as mono float32 samples with their rate."""

import base64
import io
from pathlib import Path

import numpy as np

from mmtune.contracts import Augmentation, Modality, Option
from mmtune.errors import RecipeError, Rejected
from mmtune.html.render import render_macro
from mmtune.modalities.audio_augmentation import AudioAugmentation, MaskSpectrogram, mix_sounds
from mmtune.modalities.audio_player import small_player
from mmtune.modalities.perceptual_hash import SOUND_DISTANCE, sound_hash
from mmtune.modalities.sound import Sound, mono_sound
from mmtune.modalities.spectrogram import spectrogram, waveform_path
from mmtune.modalities.truncated_sound import check_decoded_length, check_header_length

__all__ = ["Audio", "Sound"]

MAX_SECONDS = 3600.0
REQUEST_SECONDS = 120.0
REQUEST_RATE = 2 * 96_000  # samples a second of all channels, at most: a header's numbers bound the memory of decoding
SUBTYPES = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mpeg", b"\xff\xfb": "mpeg", b"\xff\xf3": "mpeg"}
"""First bytes of a file -> its media subtype."""


class Audio(Modality):
    """Sounds. Signals are `Sound`: mono samples with their rate."""

    name = "audio"
    extensions = ("wav", "flac", "ogg", "mp3", "opus", "aiff", "aif", "au", "m4a")
    columns = ("audio", "audio_path", "sound", "wav", "clip")
    near_duplicate_distance = SOUND_DISTANCE
    options = {"max_seconds": Option(float, MAX_SECONDS, "reject sounds longer than this")}
    request_limits = {"max_seconds": REQUEST_SECONDS}

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
                check_header_length(f)
                samples, rate = f.read(dtype="float32", always_2d=True), f.samplerate
                check_decoded_length(f, len(samples))
        except Rejected:
            raise
        except Exception as e:  # libsndfile and its wrapper raise several types on broken bytes
            raise Rejected(f"not a readable sound: {str(e).splitlines()[0][:200] if str(e) else type(e).__name__}") from None
        return mono_sound(samples.mean(axis=1, dtype=np.float32), rate)

    def check(self, data: bytes, max_seconds: float = MAX_SECONDS, **_: float) -> None:
        self.decode(data, max_seconds)

    def check_header(self, data: bytes, max_seconds: float = REQUEST_SECONDS, **_: float) -> int:
        import soundfile

        try:
            with soundfile.SoundFile(io.BytesIO(data)) as f:
                rate, frames, channels = f.samplerate, f.frames, f.channels
                if rate > 0:
                    check_header_length(f)
        except Rejected:
            raise
        except Exception as e:  # as in decode
            raise Rejected(f"not a readable sound: {str(e).splitlines()[0][:200] if str(e) else type(e).__name__}") from None
        if rate <= 0 or frames / rate > max_seconds:
            raise Rejected(f"too long: {frames / max(rate, 1):.1f} s, limit {max_seconds:g}")
        if frames * channels > max_seconds * REQUEST_RATE:
            raise Rejected(f"too large: {frames} frames of {channels} channels, limit {max_seconds * REQUEST_RATE:.0f} samples")
        return frames * (channels + 1) * 4

    def coerce(self, value: object) -> Sound:
        """A path, bytes, a `Sound`, or a pair (array [N], [N, C] or [C, N], rate); see `mono_sound`."""
        if isinstance(value, Sound):
            return mono_sound(value.samples, value.rate)
        if isinstance(value, bytes):
            return self.decode(value)
        if isinstance(value, str | Path):
            return self.from_file(value)
        if isinstance(value, tuple | list) and len(value) == 2 and np.ndim(value[1]) == 0:
            return mono_sound(np.asarray(value[0]), int(value[1]))
        raise Rejected(
            f"a sound is a path or (samples, rate); got {type(value).__name__}: an array without its rate means nothing"
        )

    def accepts(self, value: object) -> bool:
        """A `Sound`, a pair (samples, rate), or a path with a sound's suffix."""
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
        """`shift`: rotate in time; `gain_db`: gain or attenuation at most; `noise_db`: white noise, at the loudest this many dB
        below the signal (None = off); `polarity`: invert half of the time; `mask_time`, `mask_freq`: largest share of the time
        and of the mel scale that a mask covers (SpecAugment; 0 = off); `masks`: number of masks of each kind."""
        if unknown:
            known = "shift, gain_db, noise_db, polarity, mask_time, mask_freq, masks, mixup"
            raise RecipeError(f"augment.audio.{next(iter(unknown))}: unknown; known: {known}")
        for key, value in (("mask_time", mask_time), ("mask_freq", mask_freq)):
            if not 0 <= value <= 1:
                raise RecipeError(f"augment.audio.{key}: {value} is not a share from 0 to 1")
        if masks < 1:
            raise RecipeError(f"augment.audio.masks: {masks} is not 1 or more")
        mask = MaskSpectrogram(mask_time, mask_freq, masks) if mask_time or mask_freq else None
        return AudioAugmentation(shift, gain_db, noise_db, polarity, mask)

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
        """Waveform and spectrogram of the whole sound over a player: of the unchanged sound where that is small, else of its
        first seconds, as MP3 where they are still large; the line under it says so. About 40 kB at most, whatever the sound."""
        sound = self.decode(data)
        kind, played, note = small_player(sound)
        top = f"{sound.rate / 2000:.3g} kHz"
        return render_macro(
            "values.html.j2",
            "sound",
            base64.b64encode(played).decode(),
            kind,
            label,
            waveform_path(sound.samples, 80),
            base64.b64encode(spectrogram(sound.samples, sound.rate, 160, 64)).decode(),
            top,
            f"{sound.seconds:.3g} s, up to {top}{note}",
        )

    def media_type(self, data: bytes) -> str:
        kind = next((t for start, t in SUBTYPES.items() if data.startswith(start)), None)
        return f"audio/{kind}" if kind else super().media_type(data)

    def input_component(self, label: str, elem_id: str) -> object:
        import gradio

        return gradio.Audio(sources=["microphone", "upload"], type="filepath", buttons=[], label=label, elem_id=elem_id)
