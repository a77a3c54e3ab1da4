"""Tell whether class names are worded like the captions that a model was trained on. Other wordings cost much accuracy.

An artifact keeps a hash of each training caption, of streamed ones up to 131,072 distinct ones (a random sample of more), so the exact
wording of a class name can be recognised without the captions.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.data.identity_labels import stable_label
from mmtune.model.artifact.label_sample import in_sample
from mmtune.model.artifact.trained_rows import known_contents, trained_on
from mmtune.recipe.prompts_block import ZERO_SHOT

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

COMMON = (
    "{}",
    "a {}",
    "a photo of {}",
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "the sound of {}",
    "the sound of a {}",
    "this is a sound of {}",
    "this is a photo of a {}",
)
"""Templates that are tried: those usual for CLIP and CLAP."""
ENOUGH = 0.5
"""No warning if at least this share of the class names are training captions."""
MIN_NAMES = 5
"""Names that must be judged where only a sample of the training captions is known; with fewer there is no warning."""


def wording_note(model: "Model", tower: str, names: Mapping[str, Sequence[str]], templates: Sequence[str]) -> str | None:
    """Return a warning if few class names, in their templates, are training captions; it names a common template that makes more so.

    None if the model's training captions are not known, if at least half of the class names are some, or if the model has prompts for
    class names.

    tower: the text modality
    names: {class: its names}
    templates: the prompt templates that were given
    """
    found = known_contents(trained_on(model), tower)
    if found is None or (not templates and ZERO_SHOT in model.prompts.get(tower, {})):
        return None
    known, level = set(found[0].tolist()), found[1]
    words = sorted({n for of in names.values() for n in of})

    def share(template: str) -> float | None:
        """Share of the names that are training captions; None if too few could be in the sample of the captions."""
        labels = np.array([_label(tower, template.replace("{}", n)) for n in words], np.int64)
        judged = labels[in_sample(labels, level)]
        if len(judged) < (1 if level == 0 else MIN_NAMES):
            return None
        return sum(label in known for label in judged.tolist()) / len(judged)

    shares = [share(t) for t in templates or ["{}"]]
    if any(s is None for s in shares):
        return None
    given = max(s for s in shares if s is not None)
    if given >= ENOUGH:
        return None
    most, template = max(((share(t) or 0.0, t) for t in COMMON), key=lambda x: x[0])
    few = f"only {given:.0%} of the class names are" if given else "no class name is"
    start = f"zero_shot: {few} worded like a caption that the model was trained on, which can cost much accuracy"
    if most > given:
        return f'{start}; with --prompt "{template}" {most:.0%} of the names are training captions'
    return f"{start}; no common template is, either: give the training wording by --prompt, or by --class-names (predict: --classes)"


def _label(tower: str, text: str) -> int:
    return stable_label(modalities.get(tower).content_key(text.encode()))
