"""Old names say the new name and the version that drops them, once."""

import subprocess
import sys
import warnings

import pytest

from mmtune.runtime import deprecation
from mmtune.runtime.version import __version__

TWICE = """
from mmtune.recipe.recipe import Recipe
for _ in range(2):
    recipe = Recipe.parse({"model": "tiny:clip", "data": {"train": "x", "general": "y"}})
assert recipe.data.retention == "y"
"""


def test_an_old_recipe_key_is_named_once_with_the_version_that_drops_it():
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=True)
    line = f"the key `general` is called `retention` now; the old name goes in mmtune {deprecation.REMOVED_IN}"
    assert done.stderr.count(line) == 1


def test_every_warning_can_be_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FutureWarning, match="a is called b now"):
            deprecation.warn_renamed("a", "b")


def test_what_this_version_accepts_is_not_overdue():
    def number(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")[:2])

    assert number(__version__) < number(deprecation.REMOVED_IN), "remove the old names, or name a later version"
