"""Augmentations of captions, for `augment: {text: [...]}`. All random numbers come from the generator that is passed in."""

import random
import re

from mmtune.errors import RecipeError


class DropWords:
    """Leave out each word with a probability. Wrong where one word is the label, or "not" is among the words."""

    def __init__(self, probability: float = 0.1):
        """
        probability: of each word; if all words would be left out, the text stays unchanged
        """
        self.probability = _share("probability", probability)

    def __call__(self, text: str, rng: random.Random) -> str:
        return " ".join(w for w in text.split() if rng.random() >= self.probability) or text


class Templates:
    """Write a caption into a random template, e.g. for captions that are only class names. Wrong where a template says what a row is not ("a photo of {}" for a drawing)."""

    def __init__(self, templates: list[str]):
        """
        templates: texts with one {}, where the caption goes; "{}" leaves it as it is
        """
        if not templates:
            raise RecipeError("templates: is empty")
        for template in templates:
            if template.count("{}") != 1:
                raise RecipeError(f"templates: {template!r} does not contain {{}} once")
        self.templates = templates

    def __call__(self, text: str, rng: random.Random) -> str:
        return rng.choice(self.templates).replace("{}", text)


class DropAttributes:
    """Leave out attributes of a caption, so that it also matches shorter queries. Wrong where an attribute alone tells two groups apart."""

    def __init__(self, probability: float = 0.3, separator: str = ",", words: list[str] | None = None):
        """
        probability: of each attribute
        separator: the parts of a caption after the first separator are attributes ("bag, red, 30 cm": red and 30 cm)
        words: instead: these words are the attributes, in any case
        """
        self.probability, self.separator = _share("probability", probability), separator
        if not separator:
            raise RecipeError("separator: is empty")
        if words is not None and not words:
            raise RecipeError("words: is empty")
        by_length = sorted(map(re.escape, words or ()), key=len, reverse=True)
        self.words = re.compile(rf"(?<!\w)(?:{'|'.join(by_length)})(?!\w)", re.IGNORECASE) if words else None

    def __call__(self, text: str, rng: random.Random) -> str:
        if self.words is not None:
            kept = self.words.sub(lambda word: "" if rng.random() < self.probability else word[0], text)
            return " ".join(kept.split()) or text
        first, *attributes = text.split(self.separator)
        return self.separator.join([first, *(a for a in attributes if rng.random() >= self.probability)]).strip() or text


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise RecipeError(f"{name}: {value} is not a number from 0 to 1")
    return value
