"""Save cross-encoders: a directory with the towers (an artifact of their own), the joint layers, and a manifest."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.errors import ModelError
from mmtune.model.cross_encoder_format import FORMAT, MANIFEST, METRICS, TOWERS, WEIGHTS
from mmtune.model.joint_scorer import JointScorer
from mmtune.runtime.files import atomic_dir, write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from mmtune.model.cross_encoder import CrossEncoderModel


def settings_of(joint: JointScorer) -> JsonObject:
    """Everything but towers and weights that the scores depend on."""
    config = joint.config
    return {
        "format": FORMAT,
        "pairs": [list(p) for p in joint.pairs],
        "tokens": {m: list(s) for m, s in joint.shapes.items()},
        "layers": config.layers,
        "width": config.width,
        "attention_heads": config.attention_heads,
    }


def fingerprint_of_parts(towers: str, settings: JsonObject, weights: "Mapping[str, Tensor]") -> str:
    """Compute a fingerprint from that of the towers, `settings_of`, and the weights of the joint layers."""
    import torch

    digest = hashlib.sha256(f"{towers}\n{json.dumps(settings, sort_keys=True)}\n".encode())
    for name, tensor in sorted(weights.items()):
        t = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode() + t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"ce{FORMAT}-{digest.hexdigest()[:32]}"


def fingerprint_of(model: "CrossEncoderModel") -> str:
    """Compute the fingerprint of a cross-encoder in memory."""
    assert isinstance(model.joint, JointScorer)
    return fingerprint_of_parts(model.dual[0].fingerprint, settings_of(model.joint), model.joint.state_dict())


def save_cross_encoder(
    model: "CrossEncoderModel",
    directory: str | Path,
    metrics: Mapping[str, object] | None = None,
    info: Mapping[str, object] | None = None,
) -> str:
    """Save a cross-encoder, atomically, and return its fingerprint.

    metrics: scores, for metrics.json
    info: facts about the run, for the manifests

    Raises ModelError if `directory` exists and is no cross-encoder.
    """
    from safetensors.torch import save

    directory = Path(directory)
    assert isinstance(model.joint, JointScorer)
    if directory.exists() and any(directory.iterdir()) and not (directory / MANIFEST).is_file():
        raise ModelError(f"{directory}: contains files that are not a cross-encoder's; save into a new or empty directory")
    was_training, (dual,) = model.training, model.dual
    model.eval()
    dual.eval()
    fingerprint = fingerprint_of(model)
    with atomic_dir(directory) as tmp:
        dual.save(tmp / TOWERS, info=info)
        write_bytes(tmp / WEIGHTS, save({k: v.detach().cpu().contiguous() for k, v in model.joint.state_dict().items()}))
        write_json(tmp / MANIFEST, {"fingerprint": fingerprint, **settings_of(model.joint), "info": dict(info or {})})
        write_json(tmp / METRICS, dict(metrics or {}))
    model.train(was_training)
    return fingerprint
