"""Load a model from a MODEL: an artifact directory, an adapters directory, a checkpoint, or one checkpoint per modality."""

from collections.abc import Mapping
from pathlib import Path

from mmtune import backbones
from mmtune.backbones.cpu_fast import CpuKernels
from mmtune.errors import MmtuneError, ModelError
from mmtune.model.artifact import adapters
from mmtune.model.artifact.format import MANIFEST, SEEDS_FILE
from mmtune.model.artifact.hub_snapshot import PREFIX, hub_directory
from mmtune.model.artifact.read import read_artifact
from mmtune.model.compose import from_spec, parse_spec
from mmtune.model.cross_encoder_format import is_cross_encoder
from mmtune.model.dual_encoder import Model
from mmtune.runtime.devices import default_device


def load(
    model: str | Path | Mapping[str, str],
    device: str | None = None,
    *,
    dim: int | None = None,
    cpu_kernels: CpuKernels = "auto",
) -> Model:
    """Load a model in eval mode.

    model: an artifact directory, an adapters directory, "hub:ORG/NAME[@REVISION]" (one of these on the Hugging Face hub),
        "family:checkpoint", or {modality: "family:checkpoint"}
    device: None means a CUDA GPU, else Apple's GPU (MPS), else the CPU
    dim: truncate embeddings to this many dimensions (Matryoshka, see `Model.truncated`)
    cpu_kernels: "auto" replaces layers by the faster ones of `backbones.cpu_fast`; "off" leaves the modules of the upstream
        library as they are

    The content of an artifact is compared with its fingerprint before it is parsed. Loading an artifact never unpickles
    anything and never accesses the network, unless it is on the hub. Raises ModelError if the model cannot be loaded.
    """
    loaded = _load(model, cpu_kernels)
    loaded.info.setdefault("source", dict(model) if isinstance(model, Mapping) else str(model))
    if dim is not None:
        loaded = loaded.truncated(dim)
    return loaded.to(device or default_device()).eval()


def _load(model: str | Path | Mapping[str, str], cpu_kernels: CpuKernels) -> Model:
    if isinstance(model, Mapping):
        return from_spec(model, cpu_kernels)
    path = hub_directory(model) if isinstance(model, str) and model.startswith(PREFIX) else Path(model)
    if (path / MANIFEST).is_file():
        return read_artifact(path, cpu_kernels)
    if (path / adapters.MANIFEST).is_file():
        return load_adapters(path, cpu_kernels=cpu_kernels)
    if path != Path(model):
        name = str(model).removeprefix(PREFIX).partition("@")[0]
        raise ModelError(f"{model}: that repository is not an artifact of mmtune (no {MANIFEST}); write hf:{name} or st:{name}")
    if isinstance(model, Path) or ":" not in model and (path.exists() or "/" in model):
        if is_cross_encoder(path):
            raise ModelError(f"{model}: a cross-encoder scores pairs and has no embeddings; use mmtune.load_cross_encoder")
        if not path.exists():
            raise ModelError(f"{model}: no such directory; for a checkpoint on the Hugging Face hub write hf:{model}")
        if (path / SEEDS_FILE).is_file():
            raise ModelError(
                f"{model}: holds several seeds of a recipe; name the model of one, e.g. {path / 'seed-0' / 'artifact'}"
            )
        if (path / "artifact" / MANIFEST).is_file():
            raise ModelError(f"{model}: this is the directory of a run; name its model, {path / 'artifact'}")
        raise ModelError(f"{model}: not an artifact (no {MANIFEST}); for a checkpoint write hf:{model} or open_clip:{model}")
    return from_spec(model, cpu_kernels)


def load_adapters(
    directory: str | Path, base: Model | str | Mapping[str, str] | None = None, *, cpu_kernels: CpuKernels = "auto"
) -> Model:
    """Load adapters and merge them into their base model. Returns the tuned model.

    directory: the adapters directory
    base: the base model, as a MODEL or as a loaded Model, which is changed in place; None means the MODEL in the manifest
    cpu_kernels: as in `load`

    Raises ModelError if `base` is not the model that the adapters were trained on, if it cannot be loaded, or if a file is
    damaged.
    """
    directory = Path(directory)
    manifest = adapters.read_manifest(directory)
    if isinstance(base, Model):
        return adapters.merge(directory, manifest, base)
    spec = manifest.base if base is None else base
    if base is None:
        _check_registered(directory, spec)
    try:
        model = _load(spec, cpu_kernels)
    except MmtuneError as e:
        raise ModelError(
            f"{directory}: the base model of these adapters cannot be loaded ({e}); if it is stored elsewhere, call "
            "load_adapters(DIR, base=MODEL)"
        ) from None
    return adapters.merge(directory, manifest, model)


def _check_registered(directory: Path, spec: str | Mapping[str, str]) -> None:
    """Raise ModelError if the base in a stored manifest has an unregistered model family, because loading it would import
    code."""
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    for checkpoint in spec.values() if isinstance(spec, Mapping) else [spec]:
        family, colon, _ = checkpoint.partition(":")
        if colon and not Path(checkpoint).exists() and family not in backbones.TABLE:
            raise ModelError(
                f"{directory}: the base {checkpoint!r} has the model family {family!r}, which is not registered; if you trust "
                "its "
                f'code, call mmtune.backbones.register("{family}", "package.module") first'
            )
