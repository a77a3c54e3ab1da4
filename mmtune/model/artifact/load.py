"""MODEL string -> model: an artifact or adapters directory, a family's checkpoint, or one checkpoint a modality."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmtune import backbones
from mmtune.backbones import Backbone
from mmtune.errors import ModelError
from mmtune.model.artifact import adapters
from mmtune.model.dual_encoder import Model, from_spec
from mmtune.runtime.files import read_json

MANIFEST = "mmtune.json"
WEIGHTS = "weights.safetensors"
FORMAT = 1


def load(model: "str | Path | Mapping[str, str]", device: str | None = None, *, dim: int | None = None) -> Model:
    """The model that MODEL names, in eval mode, on `device` (default: the accelerator if there is one).

    An artifact is checked against its fingerprint; nothing is unpickled and no hub is asked. dim: its vectors are cut to the
    first so many dimensions, of unit length again (`Model.prefix`): a space of its own. Raises ModelError.
    """
    spec: Any = str(model) if isinstance(model, Path) else model
    if isinstance(spec, str) and (Path(spec) / MANIFEST).is_file():
        found = _artifact(Path(spec))
    elif isinstance(spec, str) and (Path(spec) / adapters.MANIFEST).is_file():
        found = adapters.load_adapters(spec)
    elif isinstance(spec, str) and ":" not in spec and (Path(spec).exists() or "/" in spec):
        if not Path(spec).exists():
            raise ModelError(f"{spec}: no such directory; for a checkpoint of a hub write hf:{spec}")
        raise ModelError(f"{spec}: not an artifact (no {MANIFEST}); for a checkpoint write hf:{spec} or open_clip:{spec}")
    else:
        found = from_spec(spec)
    found.info.setdefault("source", spec if isinstance(spec, str) else dict(spec))
    found = found if dim is None else found.prefix(dim)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return found.to(device).eval()


def _artifact(directory: Path) -> Model:
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    manifest = read_json(directory / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ModelError(f"{directory}: artifact format {manifest.get('format')!r}; this mmtune reads {FORMAT}: update mmtune")
    if not (directory / WEIGHTS).is_file():
        raise ModelError(f"{directory}: the weights are missing: no {WEIGHTS}")
    layout = manifest["layout"]
    parts: list[tuple[Backbone, list[str]]] = []
    for i, entry in enumerate(layout["parts"]):
        folder = directory / "parts" / str(i)
        if not folder.is_dir():
            raise ModelError(f"{directory}: the preprocessing is missing: no parts/{i}")
        try:
            part = backbones.rebuild(entry["family"], folder)
        except (OSError, ValueError, KeyError) as e:
            raise ModelError(f"{folder}: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from e
        part.files = backbones.read_files(folder)  # what lies there is what the fingerprint must be about
        for unused in set(part.towers) - set(entry["modalities"]):
            part.free_tower(unused)
        parts.append((part, entry["modalities"]))
    model = Model(parts, layout["dim"], layout["heads"])
    model.ensure_logit_scales([tuple(key.split("~")) for key in layout["own_scales"]])
    model.settings = layout["settings"]
    try:
        load_model(model, str(directory / WEIGHTS), strict=True)
    except (SafetensorError, RuntimeError) as e:
        raise ModelError(f"{directory / WEIGHTS}: {str(e).splitlines()[0]}") from None
    model.eval()
    if model.fingerprint != manifest["fingerprint"]:
        raise ModelError(
            f"{directory}: its content gives {model.fingerprint}, not its fingerprint {manifest['fingerprint']}: "
            "a file was edited or damaged; restore it, or save the model anew"
        )
    model.info = {"source": str(directory), **manifest.get("info", {})}
    return model
