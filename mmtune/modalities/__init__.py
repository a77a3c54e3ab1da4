"""The modalities: one table, name -> class. A fourth one is one new file and one line in TABLE, or `register`.

What the author of a modality needs is importable from here: `Modality`, `Option`, `Rejected`, `Signal`.
"""

from collections.abc import Iterable, Mapping
from functools import cache

from mmtune.contracts import Augmentation, Modality, Option, Signal
from mmtune.errors import RecipeError, Rejected
from mmtune.modalities.augmentation_chain import AugmentationChain
from mmtune.runtime import plugins

__all__ = [
    "Augmentation",
    "Modality",
    "Option",
    "Rejected",
    "Signal",
    "by_extension",
    "get",
    "names",
    "non_language",
    "register",
]

TABLE = {
    "image": "mmtune.modalities.image:Image",
    "audio": "mmtune.modalities.audio:Audio",
    "text": "mmtune.modalities.text:Text",
}
AUGMENTATIONS: dict[str, object] = {
    "mask_spectrogram": "mmtune.modalities.audio_augmentation:MaskSpectrogram",
    "trivial_augment": "mmtune.modalities.image_augmentation:TrivialAugment",
}
"""Name -> class of an augmentation that `augment.NAME.custom` of a recipe can name, beside the options of each modality."""
RESERVED = {"id", "group", "split"}
"""Columns that every row has: no modality can have their names."""


def names() -> list[str]:
    """Every modality, in the table's order."""
    return list(TABLE)


@cache
def _load(target: str) -> Modality:
    return plugins.import_target(target, "modality")()


def get(name: str) -> Modality:
    """The modality called `name`. Raises RecipeError naming the known ones."""
    if name not in TABLE:
        raise RecipeError(f"no modality called {name!r}{plugins.nearest(name, TABLE)} (modalities.register adds one)")
    return _load(TABLE[name])


def register(name: str, target: str) -> None:
    """Add a modality from outside: `target` is "package.module:Class", searched for in the working directory too. The class's
    `name` must equal `name`. Raises RecipeError for a name that is a column of every row."""
    if name in RESERVED:
        raise RecipeError(f"a modality cannot be called {name!r}: every row has a column of that name")
    plugins.register(TABLE, name, target, "modality")


def register_augmentation(name: str, target: object) -> None:
    """Add an augmentation from outside: `target` is a class, or "package.module:Class". The class takes its options as keyword
    arguments; an instance is an `Augmentation`: a call (signal, rng) -> signal."""
    plugins.register(AUGMENTATIONS, name, target, "augmentation")


def with_custom_augmentations(
    first: Augmentation | None, custom: Mapping[str, Mapping[str, object]], key: str
) -> "Augmentation":
    """`first`, then the augmentations of `custom` (registered name or package.module:Class -> options) in their order. Raises
    RecipeError, naming `key`, for one that cannot be found or made."""
    steps = [first] if first else []
    for name, options in custom.items():
        cls = plugins.resolve(AUGMENTATIONS, name, "augmentation", key=key)
        try:
            step = cls(**options)
        except TypeError as e:
            raise RecipeError(f"{key}.{name}: {e}") from None
        if not callable(step):
            raise RecipeError(f"{key}.{name}: an instance of {name} cannot be called with (signal, rng)")
        steps.append(step)
    return steps[0] if len(steps) == 1 else AugmentationChain(steps)


def non_language(names: Iterable[str]) -> list[str]:
    """Those of `names` that are not language; all of them where every one is."""
    names = list(names)
    return [n for n in names if not get(n).language] or names


def by_extension() -> dict[str, str]:
    """File suffix (lower case, no dot) -> modality name."""
    return {e: n for n in TABLE for e in get(n).extensions}
