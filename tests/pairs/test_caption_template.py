"""Captions from templates: what a missing attribute takes with it."""

import pytest

from mmtune.errors import DataError
from mmtune.pairs.caption_template import CaptionTemplate

BOOT = {"brand": "Nike", "title": "boot", "color": "red", "material": "mesh", "size": "42"}


def fill(template: str, *missing: str) -> str | None:
    return CaptionTemplate(template).fill({k: v for k, v in BOOT.items() if k not in missing})


@pytest.mark.parametrize(
    ("template", "missing", "caption"),
    [
        ("{brand} {title}, {color}", (), "Nike boot, red"),
        ("{brand} {title}, {color}", ("color",), "Nike boot"),
        ("{brand} {title}, {color}", ("brand",), "boot, red"),
        ("{brand} {title}, {color}", ("brand", "title"), "red"),
        ("{brand} {title}, {color}", ("brand", "title", "color"), None),
        ("a photo of a {color} {title} by {brand}.", ("brand",), "a photo of a red boot."),
        ("a photo of a {color} {title} by {brand}.", ("color",), "a photo of a boot by Nike."),
        ("{title}, made of {material}, {color}", ("material",), "boot, red"),
        ("{title}, made of {material}, {color}", ("material", "color"), "boot"),
        ("{title} ({color}, {material}) - {brand}", (), "boot (red, mesh) - Nike"),
        ("{title} ({color}, {material}) - {brand}", ("color",), "boot (mesh) - Nike"),
        ("{title} ({color}, {material}) - {brand}", ("color", "material"), "boot - Nike"),
        ("{brand}: {title} [in {color}][ of {material}]", ("color",), "Nike: boot of mesh"),
        ("{brand}: {title} [in {color}][ of {material}]", ("brand", "material"), "boot in red"),
        ("{title}[, size {size}]", ("title",), "size 42"),
        ("{short|title} {{x}} [[y]]", (), "boot {x} [y]"),
        ("{title!} in {color}", ("title",), None),
        ("{title!} in {color}", ("color",), "boot"),
    ],
)
def test_a_missing_attribute_leaves_with_its_punctuation(template, missing, caption):
    assert fill(template, *missing) == caption


def test_values_are_used_as_they_are_whatever_signs_they_have():
    assert CaptionTemplate("{a}, {b}").fill({"a": "{b} [x], 3.5\n mm", "b": " "}) == "{b} [x], 3.5 mm"
    assert CaptionTemplate("{a|b}").names == ["a", "b"]


@pytest.mark.parametrize("template", ["{a", "a}", "[{a}", "{a}]", "({a}", "{}", "no attribute", "{!}"])
def test_a_broken_template_is_one_clear_message(template):
    with pytest.raises(DataError, match="caption template") as e:
        CaptionTemplate(template)
    assert repr(template) in str(e.value) and "\n" not in str(e.value)


def test_an_unknown_attribute_names_the_nearest_column():
    with pytest.raises(DataError, match=r"shop.csv: no column 'colour'.*did you mean \{color\}\?"):
        CaptionTemplate("{colour}").check(["color", "title"], "shop.csv")
