"""Export to a folder of transformers: `AutoModel.from_pretrained(DIR)`."""

from pathlib import Path

from mmtune.backbones import Backbone
from mmtune.errors import ModelError
from mmtune.exporting.format_table import ExportRequest, Written
from mmtune.exporting.hf_checkpoint import dual_encoder_type, projected_class, single_tower_class, write_checkpoint
from mmtune.exporting.timm_checkpoint import unsupported, write_timm_checkpoint
from mmtune.exporting.what_it_holds import head_reason, settings_notes
from mmtune.model.artifact import load
from mmtune.model.dual_encoder import Model


class HfFolder:
    """Writes each checkpoint of the model that transformers can hold; with several, one folder each."""

    quantizes = False
    tolerance = 1e-5

    def write(self, model: Model, directory: Path, request: ExportRequest) -> Written:
        written = Written({})
        holds: list[tuple[Backbone, list[str], str]] = []
        for backbone, names in model.backbones:
            only, reason = _held(model, backbone, names)
            if reason:
                written.left_out |= dict.fromkeys(names, reason)
            else:
                holds.append((backbone, names, only))
        if not holds:
            raise ModelError(f"export to hf: {'; '.join(f'{m}: {why}' for m, why in written.left_out.items())}")
        for backbone, names, only in holds:
            folder = "" if len(model.backbones) == 1 else "+".join(names)
            if backbone.family == "timm":
                write_timm_checkpoint(backbone, directory / folder)
            else:
                write_checkpoint(backbone, directory / folder, only=only)
            written.towers |= dict.fromkeys(names, folder or ".")
        written.notes = settings_notes(model)
        if any("1_Pooling/config.json" in b.files for b, _, _ in holds):
            written.notes.append("AutoModel returns token embeddings: pool them as 1_Pooling/config.json says")
        elif any("pooling.json" in b.files for b, _, _ in holds):
            written.notes.append("AutoModel returns hidden states: pool them as pooling.json says")
        written.notes.append("normalise the vectors: transformers does not")
        first, names, only = holds[0]
        cls = (
            single_tower_class(first, only) if only else "AutoModel" if first.family == "timm" else type(first.module).__name__
        )
        place = "DIR" if len(model.backbones) == 1 else f"DIR/{written.towers[names[0]]}"
        written.usage = f'from transformers import AutoProcessor, {cls}\nmodel = {cls}.from_pretrained("{place}").eval()'
        families = {m: "timm" if b.family == "timm" else "hf" for b, names, _ in holds for m in names}
        if len(model.backbones) == 1:
            written.model = f"{families[names[0]]}:DIR"
        else:
            written.model = ",".join(f"{m}={families[m]}:DIR/{folder}" for m, folder in written.towers.items())
        return written

    def reopen(self, model: Model, directory: Path, written: Written) -> Model | None:
        return load(str(written.model).replace("DIR", str(directory)), cpu_kernels="off", device="cpu", dim=_dim(model))


def _dim(model: Model) -> int | None:
    return model.dim if model.dim < model.width else None


def _held(model: Model, backbone: Backbone, names: list[str]) -> tuple[str, str]:
    """Return the modality if only one tower of a dual encoder is used, and why the format cannot hold a backbone ("" if it can)."""
    if backbone.family not in ("hf", "timm"):
        hint = "; export to sentence-transformers" if backbone.family == "st" else ""
        return "", f"a transformers folder cannot hold towers of the family {backbone.family}{hint}"
    if reason := next(filter(None, (head_reason(model, m) for m in names)), ""):
        return "", f"{reason}, which a transformers folder cannot hold; sentence-transformers and onnx can"
    if backbone.family == "timm":
        return "", unsupported(backbone)
    if projected_class(backbone) or not dual_encoder_type(backbone) or len(backbone.towers) == len(names):
        return "", ""
    if single_tower_class(backbone, names[0]):
        return names[0], ""
    return "", f"transformers has no class for the {names[0]} tower of {type(backbone.module).__name__} alone"
