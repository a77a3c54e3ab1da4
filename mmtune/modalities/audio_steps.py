"""Augmentations of sounds by torchaudio and audiomentations, for `augment: {audio: [...]}`.

All random numbers come from the generator that is passed in (see `library_random`). Each class says which labels it makes wrong.
"""

import math
import random
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import RecipeError
from mmtune.modalities.augmentation_checks import checked_range, library_transform, require_extra, sorted_files
from mmtune.modalities.library_random import draw_from_rows, seeded_row
from mmtune.modalities.sound import Sound

if TYPE_CHECKING:
    from audiomentations.core.transforms_interface import BaseTransform

SOUND_FILES = ("wav", "flac", "ogg", "mp3", "opus", "aiff", "aif")
AUDIOMENTATIONS = (
    *("AddBackgroundNoise", "AddColorNoise", "AddGaussianNoise", "AddGaussianSNR", "AddShortNoises", "AdjustDuration"),
    *("AirAbsorption", "Aliasing", "ApplyImpulseResponse", "BandPassFilter", "BandStopFilter", "BitCrush", "Clip"),
    *("ClippingDistortion", "Gain", "GainTransition", "HighPassFilter", "HighShelfFilter", "Limiter", "LoudnessNormalization"),
    *("LowPassFilter", "LowShelfFilter", "Mp3Compression", "Normalize", "Padding", "PeakingFilter", "PitchShift"),
    *("PolarityInversion", "RepeatPart", "Resample", "Reverse", "RoomSimulator", "SevenBandParametricEQ", "Shift"),
    *("TanhDistortion", "TimeMask", "TimeStretch", "Trim"),
)
"""Transforms of audiomentations; those of them that need further libraries say so (RoomSimulator: pyroomacoustics)."""


class Speed:
    """Play faster or slower, which also changes the pitch (torchaudio.functional.speed). Wrong where rotation speed, tempo or pitch is the label."""

    def __init__(self, factor: tuple[float, float] = (0.9, 1.1)):
        """
        factor: [MIN, MAX] of the speed, drawn uniformly in steps of 0.01; 1.1 makes a sound shorter and higher
        """
        self.factor = checked_range("factor", factor, 0.1, 10)
        if math.ceil(100 * factor[0] - 1e-6) > math.floor(100 * factor[1] + 1e-6):
            raise RecipeError(f"factor: there is no multiple of 0.01 in {list(factor)}")
        try:
            import torchaudio  # noqa: F401
        except ImportError as e:
            raise require_extra("speed", "torchaudio", e) from None

    def __call__(self, sound: Sound, rng: random.Random) -> Sound:
        low, high = math.ceil(100 * self.factor[0] - 1e-6), math.floor(100 * self.factor[1] + 1e-6)
        return Sound(change_speed(sound.samples, rng.randint(low, high)), sound.rate)


def change_speed(samples: np.ndarray, percent: int) -> np.ndarray:
    """Resample samples [N] so that they play at `percent` of their speed at the same rate: [ceil(100 * N / percent)].

    This is torchaudio.functional.speed, which cuts the new rate to an integer, where that rate is an integer.
    """
    import torch
    from torchaudio.functional import resample

    if percent == 100:
        return samples
    with torch.no_grad():
        return resample(torch.from_numpy(np.ascontiguousarray(samples, np.float32)), percent, 100).numpy()


class Audiomentations:
    """Any waveform transform of audiomentations by its class name. Wrong where what it changes is the label: loudness (Gain), pitch, order (Reverse)."""

    def __init__(self, name: str, **options: object):
        """
        name: name of the class, e.g. PitchShift; the other keys are its arguments, without p
        """
        library = _audiomentations(name)
        if name == "RoomSimulator" and options.setdefault("use_ray_tracing", False):
            raise RecipeError(
                "RoomSimulator: use_ray_tracing: its rays are random in each call, so that a resumed run would differ"
            )
        self.name, self.transform = name, library_transform(library, name, AUDIOMENTATIONS, options)
        self.transform.p = 1.0  # type: ignore[attr-defined]  # the recipe's p decides
        self._try()

    def _try(self) -> None:
        """Apply the transform once, so that what it refuses only when it is called is found before training."""
        noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
        try:
            self(Sound(noise, 16_000), random.Random(0))
        except ImportError as e:
            raise require_extra(self.name, "a further library", e) from None

    def __call__(self, sound: Sound, rng: random.Random) -> Sound:
        transform = _independent(self.transform)  # a call writes what it drew to the object, which other threads use, too
        try:
            with seeded_row(rng.getrandbits(32)):
                changed = transform(sound.samples, sound.rate)
        except ImportError:
            raise
        except Exception as e:  # a library raises almost anything for a sound that it cannot change
            raise RecipeError(f"{self.name}: {type(e).__name__}: {e}".partition("\n")[0]) from None
        return Sound(np.ascontiguousarray(changed, np.float32), sound.rate)


def _independent(transform: "BaseTransform") -> "BaseTransform":
    """Copy a transform and the transforms inside it, but not the caches of its files (as `copy.copy` does, with a warning)."""
    from audiomentations.core.transforms_interface import BaseTransform

    made = object.__new__(type(transform))
    for key, value in vars(transform).items():
        if isinstance(value, BaseTransform):
            value = _independent(value)
        elif isinstance(value, list):
            value = [_independent(v) if isinstance(v, BaseTransform) else v for v in value]
        setattr(made, key, dict(value) if key == "parameters" else value)
    return made


def _audiomentations(step: str) -> ModuleType:
    try:
        import audiomentations
    except ImportError as e:
        raise require_extra(step, "audiomentations", e) from None
    draw_from_rows("audiomentations")
    return audiomentations


class TimeStretch(Audiomentations):
    """Change the tempo without the pitch (audiomentations TimeStretch). Wrong where rotation speed or tempo is the label."""

    def __init__(self, rate: tuple[float, float] = (0.9, 1.1), keep_length: bool = False):
        """
        rate: [MIN, MAX] of the tempo, drawn uniformly; 1.1 is faster
        keep_length: whether the result is cut or padded with silence to the length of the original
        """
        low, high = checked_range("rate", rate, 0.1, 10)
        super().__init__("TimeStretch", min_rate=low, max_rate=high, leave_length_unchanged=keep_length)


class PitchShift(Audiomentations):
    """Change the pitch without the tempo (audiomentations PitchShift). Wrong where the pitch is the label, such as a tone of rotation."""

    def __init__(self, semitones: tuple[float, float] = (-2.0, 2.0)):
        """
        semitones: [MIN, MAX] of the shift, drawn uniformly; 12 is an octave
        """
        low, high = checked_range("semitones", semitones, -24, 24)
        super().__init__("PitchShift", min_semitones=low, max_semitones=high)


class Gain(Audiomentations):
    """Change the loudness (audiomentations Gain). Wrong where loudness is the label; without effect where the tower normalises it."""

    def __init__(self, db: tuple[float, float] = (-6.0, 6.0)):
        """
        db: [MIN, MAX] of the gain in dB, drawn uniformly
        """
        low, high = checked_range("db", db, -120, 120)
        super().__init__("Gain", min_gain_db=low, max_gain_db=high)


class LowPass(Audiomentations):
    """Remove high frequencies (audiomentations LowPassFilter). Wrong where a fault shows only above the cut-off."""

    def __init__(self, hertz: tuple[float, float] = (2000.0, 7500.0)):
        """
        hertz: [MIN, MAX] of the cut-off frequency, drawn uniformly on the mel scale
        """
        low, high = checked_range("hertz", hertz, 1, 1e6)
        super().__init__("LowPassFilter", min_cutoff_freq=low, max_cutoff_freq=high)


class HighPass(Audiomentations):
    """Remove low frequencies (audiomentations HighPassFilter). Wrong where a fault shows only below the cut-off, such as hum."""

    def __init__(self, hertz: tuple[float, float] = (20.0, 400.0)):
        """
        hertz: [MIN, MAX] of the cut-off frequency, drawn uniformly on the mel scale
        """
        low, high = checked_range("hertz", hertz, 1, 1e6)
        super().__init__("HighPassFilter", min_cutoff_freq=low, max_cutoff_freq=high)


class BackgroundNoise(Audiomentations):
    """Add a random part of a sound of a folder (audiomentations AddBackgroundNoise). Wrong where the noises contain what is labelled."""

    def __init__(self, folder: str, snr_db: tuple[float, float] = (5.0, 30.0)):
        """
        folder: directory of sounds, searched with its subfolders; a shorter sound is repeated
        snr_db: [MIN, MAX] of the signal-to-noise ratio in dB, drawn uniformly
        """
        low, high = checked_range("snr_db", snr_db, -100, 100)
        paths = sorted_files(folder, SOUND_FILES)
        super().__init__("AddBackgroundNoise", sounds_path=paths, min_snr_db=low, max_snr_db=high)


class Room(Audiomentations):
    """Convolve with an impulse response of a folder (audiomentations ApplyImpulseResponse): reverberation, or another microphone. Wrong where the room is the label."""

    def __init__(self, folder: str):
        """
        folder: directory of impulse responses as sounds, searched with its subfolders; without recordings of rooms, use
        {audiomentations: {name: RoomSimulator}}
        """
        super().__init__("ApplyImpulseResponse", ir_path=sorted_files(folder, SOUND_FILES))
