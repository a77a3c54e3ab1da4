"""Load cross-encoders (see `mmtune.model.cross_encoder_files`)."""

from pathlib import Path

from mmtune.backbones.cross_encoders import CrossEncoder
from mmtune.errors import ModelError, first_line
from mmtune.model.artifact.load import load as load_dual
from mmtune.model.cross_encoder import CrossEncoderModel
from mmtune.model.cross_encoder_files import fingerprint_of_parts
from mmtune.model.cross_encoder_format import FORMAT, KIND, MANIFEST, SEQUENCE, TOWERS, WEIGHTS
from mmtune.model.joint_scorer import JointScorer, TokenShape
from mmtune.model.sequence_cross_encoder import load_sequence_cross_encoder
from mmtune.recipe.block import check
from mmtune.recipe.cross_encoder_block import CrossEncoderBlock
from mmtune.runtime.devices import default_device
from mmtune.runtime.files import read_json
from mmtune.runtime.format_number import check_format


def load_cross_encoder(directory: str | Path, device: str | None = None) -> CrossEncoderModel | CrossEncoder:
    """Load a cross-encoder in eval mode. One of two texts (`cross_encoder.model`) is a scorer of strings without towers.

    directory: what `mmtune train` of a recipe with `cross_encoder:` wrote to RUN/artifact, or RUN
    device: None means a CUDA GPU, else Apple's GPU (MPS), else the CPU

    Nothing is unpickled. Raises ModelError if a file is missing, edited or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(directory)
    path = path if (path / MANIFEST).is_file() else path / "artifact"
    if not (path / MANIFEST).is_file():
        raise ModelError(f"{directory}: not a cross-encoder (no {MANIFEST}); train one with a recipe that has `cross_encoder:`")
    try:
        stored = read_json(path / MANIFEST)
        check_format(stored.get("format"), FORMAT, path / MANIFEST, ModelError, missing=1)
        if stored.get(KIND) == SEQUENCE:
            return load_sequence_cross_encoder(path, str(stored["fingerprint"]), device)
        settings = {k: stored[k] for k in ("format", "pairs", "tokens", "layers", "width", "attention_heads")}
        weights = load((path / WEIGHTS).read_bytes())
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        raise ModelError(f"{path}: damaged cross-encoder ({type(e).__name__}: {first_line(e)})") from None
    dual = load_dual(path / TOWERS, device)
    if fingerprint_of_parts(dual.fingerprint, settings, weights) != stored["fingerprint"]:
        raise ModelError(
            f"{path}: its content does not have the fingerprint {stored['fingerprint']}: a file was edited or damaged"
        )
    layers = {k: settings[k] for k in ("layers", "width", "attention_heads")}
    config = check(CrossEncoderBlock, layers, str(path / MANIFEST))
    shapes = {m: TokenShape(*s) for m, s in settings["tokens"].items()}
    joint = JointScorer(shapes, [(a, b) for a, b in settings["pairs"]], config, dual.dim)
    try:
        joint.load_state_dict(weights)
    except RuntimeError as e:
        raise ModelError(f"{path / WEIGHTS}: {first_line(e)}") from None
    model = CrossEncoderModel(dual, joint).to(device or default_device())
    model.eval()
    return model
