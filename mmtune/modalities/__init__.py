"""The table of modalities. To add one, write a subclass of `Modality` and call `register`, or add a line to TABLE.

To write your own modality, import from here: `Modality`, `Option`, `Rejected`, `Signal`.
"""

from collections.abc import Iterable, Mapping
from functools import cache

from mmtune.contracts import Augmentation, Modality, Option, Signal
from mmtune.errors import MmtuneError, RecipeError, Rejected
from mmtune.modalities.augmentation_chain import AugmentationChain, AugmentationStep
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
"""Name -> class of each augmentation that a recipe can use for any modality, under `augment.MODALITY.custom` and `.steps`. Those of one
modality are in its attribute `augmentations`."""
RESERVED = {"id", "group", "split"}
"""Names of columns that every dataset has, and which therefore cannot be names of modalities."""


def names() -> list[str]:
    """Return the names of all modalities, in the order of TABLE."""
    return list(TABLE)


@cache
def _load(target: str) -> Modality:
    return plugins.import_target(target, "modality")()


def get(name: str) -> Modality:
    """Return the modality called `name`. Raises RecipeError if there is none; the message suggests similar names."""
    if name not in TABLE:
        raise RecipeError(
            f"no modality called {name!r}{plugins.nearest(name, TABLE)} (to add your own, call mmtune.modalities.register)"
        )
    return _load(TABLE[name])


def register(name: str, target: str) -> None:
    """Register your own modality.

    name: its name, which must equal the attribute `name` of the class
    target: "package.module:Class"; installed packages and the working directory are searched

    Raises RecipeError if the name is in RESERVED.
    """
    if name in RESERVED:
        raise RecipeError(f"a modality cannot be called {name!r}, because every dataset has a column of that name")
    plugins.register(TABLE, name, target, "modality")


def register_augmentation(name: str, target: object) -> None:
    """Register your own augmentation.

    name: its name in recipes
    target: its class, or "package.module:Class". The class takes the options of the recipe as keyword arguments. Its instances
        are `Augmentation`s: they are called with (signal, rng) and return a signal.
    """
    plugins.register(AUGMENTATIONS, name, target, "augmentation")


def augmentation_class(modality: str, name: str, key: str) -> type:
    """The class of a step of `augment`: one of the modality's own `augmentations`, a registered one, or package.module:Class.

    Raises RecipeError, which starts with `key`, if there is none; the message suggests a similar name.
    """
    table = {**AUGMENTATIONS, **get(modality).augmentations}
    found: type = plugins.resolve(table, name, "augmentation", key=key)
    return found


def make_step(modality: str, name: str, options: Mapping[str, object], key: str, p: float = 1.0) -> Augmentation:
    """Create the augmentation `name` (see `augmentation_class`) with `options`, applied with probability `p`.

    Raises RecipeError, which starts with `key`, if it cannot be found or created.
    """
    cls = augmentation_class(modality, name, key)
    try:
        step = cls(**options)
    except TypeError as e:
        raise RecipeError(f"{key}.{name}: {e}") from None
    except MmtuneError as e:
        raise type(e)(f"{key}.{name}: {e}") from None
    if not callable(step):
        raise RecipeError(f"{key}.{name}: an instance of {name} cannot be called with (signal, rng)")
    return AugmentationStep(step, p, f"{key}.{name}")


def with_steps(first: Augmentation | None, steps: Iterable[Augmentation]) -> Augmentation:
    """Combine an augmentation, or None, with steps that are applied after it, in their order."""
    every = [*([first] if first else []), *steps]
    return every[0] if len(every) == 1 else AugmentationChain(every)


def non_language(names: Iterable[str]) -> list[str]:
    """Return those of `names` that are not text modalities (`language`), or all of `names` if all are text modalities."""
    names = list(names)
    return [n for n in names if not get(n).language] or names


def by_extension() -> dict[str, str]:
    """Return {file suffix in lower case, without the dot: name of its modality}."""
    return {e: n for n in TABLE for e in get(n).extensions}
