"""Export to a folder of open_clip: `open_clip.create_model_and_transforms("local-dir:DIR")`."""

import json
from pathlib import Path

from mmtune.backbones.open_clip import CONFIG, TEXT_CONFIG
from mmtune.errors import ModelError
from mmtune.exporting.format_table import ExportRequest, Written
from mmtune.exporting.what_it_holds import head_reason, settings_notes
from mmtune.model.artifact import load
from mmtune.model.dual_encoder import Model
from mmtune.runtime.files import write_bytes

WEIGHTS = "open_clip_model.safetensors"


class OpenClipFolder:
    """Writes a model whose towers are those of one open_clip checkpoint."""

    quantizes = False
    tolerance = 1e-5

    def write(self, model: Model, directory: Path, request: ExportRequest) -> Written:
        from safetensors.torch import save_model

        if reason := _unsupported(model):
            raise ModelError(f"export to open_clip: {reason}")
        backbone, names = model.backbones[0]
        for name, data in backbone.files.items():
            write_bytes(directory / name, data)
        save_model(backbone.module, str(directory / WEIGHTS), metadata={"format": "pt"})
        usage = (
            'import open_clip\nmodel, _, preprocess = open_clip.create_model_and_transforms("local-dir:DIR")\n'
            'tokenizer = open_clip.get_tokenizer("local-dir:DIR")'
        )
        notes = [
            *settings_notes(model),
            "normalise the vectors: encode_* of open_clip does not, unless normalize=True is given",
        ]
        return Written(dict.fromkeys(names, "."), notes=notes, usage=usage, model="open_clip:DIR")

    def reopen(self, model: Model, directory: Path, written: Written) -> Model | None:
        dim = model.dim if model.dim < model.width else None
        return load(f"open_clip:{directory}", cpu_kernels="off", device="cpu", dim=dim)


def _unsupported(model: Model) -> str:
    """Return why open_clip's format cannot hold the model, or "" if it can."""
    if len(model.backbones) > 1:
        return f"the model consists of {len(model.backbones)} checkpoints, and open_clip holds one"
    backbone, names = model.backbones[0]
    if backbone.family != "open_clip":
        return f"open_clip cannot hold towers of the family {backbone.family}"
    if len(names) < len(backbone.towers):
        return f"the model has only the tower of {names[0]}, and open_clip needs both"
    if reason := next(filter(None, (head_reason(model, m) for m in names)), ""):
        return f"{reason}, which open_clip cannot hold; onnx can"
    if TEXT_CONFIG in backbone.files and "hf_model_name" in json.loads(backbone.files[CONFIG])["model_cfg"]["text_cfg"]:
        return "open_clip reads the configuration of a text tower of transformers from the hub, not from its folder"
    return ""
