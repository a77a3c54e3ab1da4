"""An augmentation from outside: a class, registered or named by its place, in a recipe."""

import pytest

import mmtune
from mmtune import modalities
from mmtune.data.loader.mixup import make_augmentation
from mmtune.errors import RecipeError
from mmtune.recipe.augment_block import options_model


class Repeat:
    """Writes a caption several times."""

    def __init__(self, times: int = 2):
        self.times = times

    def __call__(self, signal, rng):
        return " ".join([signal] * self.times)


def made(custom):
    return make_augmentation(options_model("text")(custom=custom), data=None)


def test_by_its_place_and_by_a_registered_name():
    assert made({"tests.public.test_custom_augmentation:Repeat": {"times": 3}})("a bag", None) == "a bag a bag a bag"
    mmtune.register_augmentation("repeat", Repeat)
    try:
        assert made({"repeat": {}})("a bag", None) == "a bag a bag"
        with pytest.raises(RecipeError, match=r"augment\.text\.custom\.repeat: .*'tmes'"):
            made({"repeat": {"tmes": 3}})
        with pytest.raises(RecipeError, match="no augmentation 'repaet'; did you mean 'repeat'"):
            made({"repaet": {}})
    finally:
        del modalities.AUGMENTATIONS["repeat"]
