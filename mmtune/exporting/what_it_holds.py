"""Say what of a model a format cannot hold, in sentences for users."""

from typing import TYPE_CHECKING

from mmtune import modalities

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def settings_notes(model: "Model", *, prompts: bool = False, dim: bool = False, pooling: bool = False) -> list[str]:
    """Return one sentence for each setting of the model that the format does not apply by itself.

    prompts, dim, pooling: whether the format applies prompt templates, truncation, and the pooling of windows
    """
    notes = []
    if not prompts:
        for m, roles in model.prompts.items():
            shown = "; ".join(f"{role}: {' | '.join(templates)}" for role, templates in roles.items())
            notes.append(
                f"the prompt templates for {m} are not applied by the export ({shown}): put them around texts yourself"
            )
    if not dim and model.dim < model.width:
        notes.append(f"vectors are not truncated: take the first {model.dim} dimensions and normalise them again")
    if not pooling:
        for m, tower in model.towers.items():
            if hasattr(tower.preprocess, "windows"):
                how = {"max": "their maximum in each dimension"}.get(
                    model.window_pooling.get(m, ""), "the mean of their vectors"
                )
                notes.append(f"a long {m} is embedded window by window in mmtune, and its vector is {how}, normalised again")
    return notes


def head_reason(model: "Model", modality: str) -> str:
    """Return why a format without additional layers cannot hold a tower, or "" if it can."""
    return f"the {modality} tower has a head (a layer after the checkpoint's own)" if modality in model.heads else ""


def text_modality(model: "Model") -> str | None:
    """Return the model's first modality whose signals are texts, or None."""
    return next((m for m in model.towers if modalities.get(m).language), None)
