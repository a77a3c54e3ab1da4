"""Words of captions that an augmentation can make wrong: a mirrored arrow to the left points to the right.

The table is asked before training (`mmtune.quality.caption_words`). It has English words; `register_label_words` adds others.
"""

import re
from collections.abc import Iterable, Mapping

_SIDES = ("left", "right", "leftmost", "rightmost", "clockwise", "counterclockwise", "anticlockwise", "mirrored")
_COLOURS = (
    *("red", "green", "blue", "yellow", "orange", "purple", "violet", "pink", "brown", "black", "white", "grey", "gray"),
    *("beige", "turquoise", "cyan", "magenta", "golden", "silver", "colour", "color", "coloured", "colored"),
)
_BRIGHTNESS = ("dark", "bright", "pale", "darker", "brighter")
_LOUDNESS = ("loud", "louder", "loudest", "quiet", "quieter", "quietest", "silent", "faint", "volume", "whisper")
_SPEED = (
    *("rpm", "hz", "khz", "speed", "fast", "faster", "slow", "slower", "slowly", "quickly", "rapid", "tempo", "bpm"),
    *("accelerating", "decelerating"),
)
_PITCH = ("pitch", "high-pitched", "low-pitched", "hz", "khz", "rpm", "treble", "bass")
_POSES = ("upright", "horizontal", "vertical", "diagonal", "tilted", "slanted", "upside", "rotated", *_SIDES)
_UPSIDE_DOWN = ("top", "bottom", "above", "below", "upside", "upper", "lower", *_SIDES)
_ORDER = ("before", "after", "reversed", "rising", "falling")

LABEL_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "image": {
        "flip": _SIDES,
        "vertical_flip": _UPSIDE_DOWN,
        "rotate": _POSES,
        "color": (*_COLOURS, *_BRIGHTNESS),
        "grey": _COLOURS,
        **dict.fromkeys(("trivial", "trivial_augment", "TrivialAugmentWide", "AutoAugment"), (*_COLOURS, *_BRIGHTNESS)),
        **dict.fromkeys(
            ("rand_augment", "RandAugment", "AugMix", "ColorJitter", "RandomPhotometricDistort"), (*_COLOURS, *_BRIGHTNESS)
        ),
        **dict.fromkeys(
            ("Grayscale", "RandomGrayscale", "RandomInvert", "RandomSolarize", "RandomChannelPermutation"), _COLOURS
        ),
        "RandomHorizontalFlip": _SIDES,
        "RandomVerticalFlip": _UPSIDE_DOWN,
        "RandomRotation": _POSES,
        "RandomAffine": _POSES,
    },
    "audio": {
        "gain_db": _LOUDNESS,
        **dict.fromkeys(("gain", "Gain", "GainTransition", "LoudnessNormalization", "Normalize"), _LOUDNESS),
        "speed": tuple(dict.fromkeys((*_SPEED, *_PITCH))),
        "time_stretch": _SPEED,
        "TimeStretch": _SPEED,
        "pitch_shift": _PITCH,
        "PitchShift": _PITCH,
        "Reverse": _ORDER,
    },
}
"""{modality: {option of `augment`: words of captions that it can make wrong}}"""


def register_label_words(modality: str, option: str, words: Iterable[str]) -> None:
    """Add words, e.g. in another language, that the augmentation `option` of `modality` can make wrong."""
    options = LABEL_WORDS.setdefault(modality, {})
    options[option] = (*options.get(option, ()), *(w.lower() for w in words))


def word_pattern(words: Iterable[str]) -> "re.Pattern[str]":
    """Return a pattern that matches any of the words as a whole word, in any case."""
    longest_first = sorted(map(re.escape, words), key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)", re.IGNORECASE)


def destroyed_words(modality: str, options: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """Return {option that is switched on: the words that it can make wrong}."""
    known = LABEL_WORDS.get(modality, {})
    return {name: known[name] for name, value in options.items() if value and name in known}
