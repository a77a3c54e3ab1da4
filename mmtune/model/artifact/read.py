"""An artifact directory -> its model. The files are hashed and compared with the manifest before any of them is parsed."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune import backbones
from mmtune.backbones import Backbone
from mmtune.backbones.cpu_fast import CpuKernels
from mmtune.errors import ModelError
from mmtune.model.artifact.format import MANIFEST, PARTS, WEIGHTS, Manifest, read_manifest
from mmtune.model.dual_encoder import Model
from mmtune.model.fingerprint import fingerprint
from mmtune.model.layout import BackboneEntry

if TYPE_CHECKING:
    from torch import Tensor


def read_artifact(directory: Path, cpu_kernels: CpuKernels = "auto") -> Model:
    """The model that `save` wrote to `directory`. Raises ModelError naming what is missing, edited or damaged.

    Nothing is unpickled, no hub is asked, and the manifest never causes an import: its families must be registered
    (`backbones.TABLE`). The fingerprint is computed from the files, so that nothing of an edited artifact is parsed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    manifest = read_manifest(directory)
    if not (directory / WEIGHTS).is_file():
        raise ModelError(f"{directory}: the weights are missing: no {WEIGHTS}")
    files = _files(directory, manifest)
    try:
        mark = fingerprint(_weights(directory / WEIGHTS), files, manifest.layout)
    except (SafetensorError, OSError) as e:
        raise ModelError(f"{directory / WEIGHTS}: {str(e).splitlines()[0]}") from None
    if mark != manifest.fingerprint:
        raise ModelError(
            f"{directory}: its content gives {mark}, not its fingerprint {manifest.fingerprint}: "
            "a file was edited or damaged; restore it, or save the model anew"
        )
    layout = manifest.layout
    built = [(_backbone(directory, i, entry, files, cpu_kernels), entry.modalities) for i, entry in enumerate(layout.backbones)]
    model = Model(built, layout.dim, layout.heads)
    model.ensure_logit_scales([(a, b) for a, _, b in (key.partition("~") for key in layout.own_scales)])
    model.settings = layout.settings
    try:
        load_model(model, str(directory / WEIGHTS), strict=True)
    except (SafetensorError, RuntimeError) as e:
        raise ModelError(f"{directory / WEIGHTS}: {str(e).splitlines()[0]}") from None
    model.eval().set_fingerprint(mark)
    model.info = {"source": str(directory), **manifest.info}
    return model


def _files(directory: Path, manifest: Manifest) -> dict[str, bytes]:
    """Every file below `parts/`, by "number/path", compared with the manifest's hashes where it has them."""
    files: dict[str, bytes] = {}
    for i in range(len(manifest.layout.backbones)):
        folder = directory / PARTS / str(i)
        if not folder.is_dir():
            raise ModelError(f"{directory}: the preprocessing is missing: no {PARTS}/{i}")
        files |= {f"{i}/{name}": data for name, data in backbones.read_files(folder).items()}
    if manifest.files:
        stray = sorted(files.keys() - manifest.files.keys())
        missing = sorted(manifest.files.keys() - files.keys())
        edited = [n for n in sorted(files.keys() & manifest.files.keys()) if sha256(files[n]) != manifest.files[n]]
        for names, what in ((missing, "is missing"), (edited, "was edited"), (stray, "does not belong to it: remove it")):
            if names:
                others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
                restore = "" if names is stray else "; restore it, or save the model anew"
                raise ModelError(f"{directory}: {PARTS}/{names[0]} {what}{others}{restore}")
    return files


def sha256(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def _weights(path: Path) -> "Iterator[tuple[str, Tensor]]":
    """(name, tensor) of every entry of the state dict: safetensors stores a tensor that has several names once, and the other
    names in its header."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as f:
        for name in f.keys():  # noqa: SIM118 (a safe_open handle is no dict)
            yield name, f.get_tensor(name)
        for name, kept in (f.metadata() or {}).items():
            if kept in f.keys():  # noqa: SIM118
                yield name, f.get_tensor(kept)


def _backbone(directory: Path, number: int, entry: BackboneEntry, files: dict[str, bytes], cpu_kernels: CpuKernels) -> Backbone:
    """Backbone `number` with its weights uninitialised and its unused towers freed."""
    folder = directory / PARTS / str(number)
    try:
        backbone = backbones.rebuild(entry.family, folder, cpu_kernels)
    except (OSError, ValueError, KeyError) as e:
        raise ModelError(f"{folder}: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from e
    # upstream may write other files than it read (another version of it); the fingerprint is about those that lie there
    backbone.files = {n.partition("/")[2]: data for n, data in files.items() if n.startswith(f"{number}/")}
    if missing := set(entry.modalities) - set(backbone.towers):
        raise ModelError(f"{directory / MANIFEST}: {entry.family} has no {missing.pop()} tower there")
    for unused in set(backbone.towers) - set(entry.modalities):
        backbone.free_tower(unused)
    return backbone
