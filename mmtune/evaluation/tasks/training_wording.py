"""Tell whether class names are worded like the captions that a model was trained on. Other wordings cost much accuracy.

An artifact keeps a hash of each training caption, so the exact wording of a class name can be recognised without the captions.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.data.identity_labels import stable_label
from mmtune.model.artifact.trained_rows import trained_on
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


def wording_note(model: "Model", tower: str, names: Mapping[str, Sequence[str]], templates: Sequence[str]) -> str | None:
    """Return a warning if few class names, in their templates, are training captions; it names a common template that makes more so.

    None if the model's training captions are not known, if at least half of the class names are some, or if the model has prompts for
    class names.

    tower: the text modality
    names: {class: its names}
    templates: the prompt templates that were given
    """
    trained = trained_on(model) or {}
    if tower not in trained or (not templates and ZERO_SHOT in model.prompts.get(tower, {})):
        return None
    known, words = set(trained[tower].tolist()), sorted({n for of in names.values() for n in of})

    def share(template: str) -> float:
        return sum(_label(tower, template.replace("{}", n)) in known for n in words) / len(words)

    given = max(share(t) for t in templates or ["{}"])
    if given >= ENOUGH:
        return None
    most, found = max(((share(t), t) for t in COMMON), key=lambda x: x[0])
    few = f"only {given:.0%} of the class names are" if given else "no class name is"
    start = f"zero_shot: {few} worded like a caption that the model was trained on, which can cost much accuracy"
    if most > given:
        return f'{start}; with --prompt "{found}" {most:.0%} of the names are training captions'
    return f"{start}; no common template is, either: give the training wording by --prompt, or by --class-names (predict: --classes)"


def _label(tower: str, text: str) -> int:
    return stable_label(modalities.get(tower).content_key(text.encode()))
