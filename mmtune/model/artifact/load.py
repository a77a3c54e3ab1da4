"""MODEL string -> model: an artifact or adapters directory, a family's checkpoint, or one checkpoint for each modality."""

from collections.abc import Mapping
from pathlib import Path

import torch

from mmtune import backbones
from mmtune.backbones.cpu_fast import CpuKernels
from mmtune.errors import MmtuneError, ModelError
from mmtune.model.artifact import adapters
from mmtune.model.artifact.format import MANIFEST
from mmtune.model.artifact.read import read_artifact
from mmtune.model.compose import from_spec, parse_spec
from mmtune.model.dual_encoder import Model


def load(
    model: str | Path | Mapping[str, str],
    device: str | None = None,
    *,
    dim: int | None = None,
    cpu_kernels: CpuKernels = "auto",
) -> Model:
    """The model that MODEL names, in eval mode, on `device` (default: the accelerator if there is one).

    An artifact is checked against its fingerprint before it is parsed; nothing is unpickled and no hub is asked. dim: truncate
    vectors to their first so many dimensions (`Model.truncated`), a space of its own. cpu_kernels: "auto" uses the faster layers
    of `backbones.cpu_fast`, "off" leaves upstream's modules as they are. Raises ModelError.
    """
    loaded = _load(model, cpu_kernels)
    loaded.info.setdefault("source", dict(model) if isinstance(model, Mapping) else str(model))
    if dim is not None:
        loaded = loaded.truncated(dim)
    return loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _load(model: str | Path | Mapping[str, str], cpu_kernels: CpuKernels) -> Model:
    if isinstance(model, Mapping):
        return from_spec(model, cpu_kernels)
    path = Path(model)
    if (path / MANIFEST).is_file():
        return read_artifact(path, cpu_kernels)
    if (path / adapters.MANIFEST).is_file():
        return load_adapters(path, cpu_kernels=cpu_kernels)
    if isinstance(model, Path) or ":" not in model and (path.exists() or "/" in model):
        if not path.exists():
            raise ModelError(f"{model}: no such directory; for a checkpoint of a hub write hf:{model}")
        raise ModelError(f"{model}: not an artifact (no {MANIFEST}); for a checkpoint write hf:{model} or open_clip:{model}")
    return from_spec(model, cpu_kernels)


def load_adapters(
    directory: str | Path, base: Model | str | Mapping[str, str] | None = None, *, cpu_kernels: CpuKernels = "auto"
) -> Model:
    """The tuned model: adapters merged into their base, by default the one that they name. A Model that is given as the base
    becomes the tuned one itself. Raises ModelError on another base, and for files that are damaged."""
    directory = Path(directory)
    document = adapters.read_manifest(directory)
    if isinstance(base, Model):
        return adapters.merge(directory, document, base)
    stored = base is None
    spec = document.base if base is None else base
    if stored:
        _check_registered(directory, spec)
    try:
        model = _load(spec, cpu_kernels)
    except MmtuneError as e:
        raise ModelError(
            f"{directory}: its base cannot be loaded ({e}); load_adapters(DIR, base=MODEL) takes it from elsewhere"
        ) from None
    return adapters.merge(directory, document, model)


def _check_registered(directory: Path, spec: str | Mapping[str, str]) -> None:
    """ModelError where the base that a stored file names is of a family that would have to be imported first."""
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    for place in spec.values() if isinstance(spec, Mapping) else [spec]:
        family, colon, _ = place.partition(":")
        if colon and not Path(place).exists() and family not in backbones.TABLE:
            raise ModelError(
                f"{directory}: its base {place!r} is of the model family {family!r}, which is not registered; if its code is "
                f'yours, call mmtune.backbones.register("{family}", "package.module") first'
            )
