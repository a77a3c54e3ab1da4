"""Read the model of an artifact directory. All files are hashed and compared with the manifest before any of them is parsed."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune import backbones
from mmtune.backbones import Backbone
from mmtune.backbones.cpu_fast import CpuKernels
from mmtune.backbones.weight_names import renamed
from mmtune.errors import ModelError, first_line
from mmtune.model.artifact.format import MANIFEST, PARTS, WEIGHTS, Manifest, is_system_file, read_manifest
from mmtune.model.dual_encoder import Model
from mmtune.model.fingerprint import fingerprint, format_of
from mmtune.model.layout import BackboneEntry

if TYPE_CHECKING:
    from torch import Tensor


def read_artifact(directory: Path, cpu_kernels: CpuKernels = "auto") -> Model:
    """Read the model that `save` wrote to `directory`.

    Nothing is unpickled, and the network is not accessed. The manifest cannot cause an import, because its model families must
    be registered (`backbones.TABLE`). The fingerprint is computed from the files first, so an edited artifact is refused before
    it is parsed. Raises ModelError if a file is missing, edited or damaged.
    """
    from safetensors import SafetensorError

    manifest = read_manifest(directory)
    if not (directory / WEIGHTS).is_file():
        raise ModelError(f"{directory}: the weights are missing: no {WEIGHTS}")
    files = _files(directory, manifest)
    try:
        actual = fingerprint(_weights(directory / WEIGHTS), files, manifest.layout, format_of(manifest.fingerprint))
    except (SafetensorError, OSError) as e:
        raise ModelError(f"{directory / WEIGHTS}: {first_line(e)}") from None
    if actual != manifest.fingerprint:
        raise ModelError(
            f"{directory}: the fingerprint of its content is {actual}, but the manifest has {manifest.fingerprint}: "
            "a file was edited or damaged; restore it, or save the model again"
        )
    layout = manifest.layout
    built = [(_backbone(directory, i, entry, files, cpu_kernels), entry.modalities) for i, entry in enumerate(layout.backbones)]
    model = Model(built, layout.dim, layout.heads, head_kinds=layout.head_kinds)
    model.ensure_logit_scales([(a, b) for a, _, b in (key.partition("~") for key in layout.added_logit_scales)])
    model.settings, model.fingerprint_format = layout.settings, format_of(manifest.fingerprint)
    try:
        _load_weights(model, directory / WEIGHTS)
    except (SafetensorError, RuntimeError) as e:
        raise ModelError(f"{directory / WEIGHTS}: {first_line(e)}") from None
    model.eval().set_fingerprint(actual)
    model.info = {"source": str(directory), **manifest.info}
    return model


def _load_weights(model: Model, path: Path) -> None:
    """Load all weights of a model; another version of transformers may have named them (see `backbones.weight_names`)."""
    from safetensors import safe_open
    from safetensors.torch import load_model

    names = model.state_dict().keys()
    with safe_open(path, framework="pt") as f:
        same = names >= set(f.keys())
    if same:
        load_model(model, str(path), strict=True)
    else:
        model.load_state_dict(renamed(dict(_weights(path)), names))


def _files(directory: Path, manifest: Manifest) -> dict[str, bytes]:
    """Read all files under `parts/`, with the keys "number/path", and compare them with the hashes in the manifest, if any.

    Raises ModelError if a file is missing, was edited, or is not in the manifest.
    """
    files: dict[str, bytes] = {}
    for i in range(len(manifest.layout.backbones)):
        folder = directory / PARTS / str(i)
        if not folder.is_dir():
            raise ModelError(f"{directory}: the preprocessing is missing: no {PARTS}/{i}")
        files |= {f"{i}/{name}": data for name, data in backbones.read_files(folder).items() if not is_system_file(name)}
    if not manifest.files and format_of(manifest.fingerprint) > 1:
        raise ModelError(f"{directory / MANIFEST}: the hashes of the files are missing; restore it, or save the model again")
    if manifest.files:
        stray = sorted(files.keys() - manifest.files.keys())
        missing = sorted(manifest.files.keys() - files.keys())
        edited = [n for n in sorted(files.keys() & manifest.files.keys()) if sha256(files[n]) != manifest.files[n]]
        converted = [n for n in edited if sha256(files[n].replace(b"\r\n", b"\n")) == manifest.files[n]]
        line_ends = "has Windows line ends now (CRLF; with git, mark the artifact's files `-text` in .gitattributes)"
        wrong = ((missing, "is missing"), (converted, line_ends), (edited, "was edited"))
        for names, what in (*wrong, (stray, "is not in the manifest: remove it")):
            if names:
                others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
                restore = "" if names is stray else "; restore it, or save the model again"
                raise ModelError(f"{directory}: {PARTS}/{names[0]} {what}{others}{restore}")
    return files


def sha256(data: bytes) -> str:
    """Return the SHA-256 hash of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def _weights(path: Path) -> "Iterator[tuple[str, Tensor]]":
    """Yield the name and the tensor of each entry of the state dict.

    safetensors stores a tensor that has several names only once; its header maps the other names to the stored one.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as f:
        for name in f.keys():  # noqa: SIM118 (a safe_open handle is no dict)
            yield name, f.get_tensor(name)
        for name, stored_name in (f.metadata() or {}).items():
            if stored_name in f.keys():  # noqa: SIM118
                yield name, f.get_tensor(stored_name)


def _backbone(directory: Path, number: int, entry: BackboneEntry, files: dict[str, bytes], cpu_kernels: CpuKernels) -> Backbone:
    """Rebuild a backbone with uninitialised weights, and free the towers that the model does not use.

    number: position of the backbone in the model
    entry: its family and modalities
    files: all files of the artifact, as returned by `_files`
    """
    folder = directory / PARTS / str(number)
    try:
        backbone = backbones.rebuild(entry.family, folder, cpu_kernels)
    except ModelError:
        raise
    except Exception as e:  # the upstream libraries raise many unrelated types
        raise ModelError(f"{folder}: {first_line(e)}") from e
    # another version of transformers may save other files than it loaded; the fingerprint was computed from the stored ones
    backbone.files = {n.partition("/")[2]: data for n, data in files.items() if n.startswith(f"{number}/")}
    backbone.files_of_format_1 = None
    if missing := set(entry.modalities) - set(backbone.towers):
        raise ModelError(f"{directory / MANIFEST}: {PARTS}/{number} ({entry.family}) has no {missing.pop()} tower")
    for unused in set(backbone.towers) - set(entry.modalities):
        backbone.free_tower(unused)
    return backbone
