"""What is installed, what is missing for which feature and how to install it, and whether the GPU is really used."""

import importlib.metadata
import importlib.util
import platform
import re
from dataclasses import dataclass

from mmtune.contracts import JsonObject
from mmtune.runtime.results import ResultFields

FEATURES = {
    "cpu": "fast exact and approximate search, the default store of `mmtune index`",
    "mining": "BM25 as a source of negatives, hybrid search",
    "lora": "tune: {how: lora}",
    "qlora": "tune: {how: qlora}",
    "optimizers": "8-bit optimizers",
    "pairs": "mmtune pairs, mmtune label",
    "otel": "traces of mmtune serve",
    "pml": "losses and miners of pytorch-metric-learning",
    "augment": "augmentation of sounds",
    "sweep": "mmtune sweep",
    "serve": "mmtune serve, mmtune demo's page",
    "completion": "mmtune completion",
    "trackers": "wandb, mlflow, trackio",
    "lancedb": "the store lancedb",
    "pgvector": "the store pgvector",
    "qdrant": "the store qdrant",
    "qdrant-edge": "the store qdrant-edge",
    "ray": "--engine ray of mmtune embed, mine, pack, train and index embed",
    "aac": "sounds in .m4a and .aac files",
    "heif": "pictures in .heic files",
    "onnx": "towers in ONNX files, mmtune export --to onnx",
    "openvino": "mmtune export --to openvino",
    "beats": "sound towers of the BEATs family",
    "tflite": "towers in TFLite files",
    "http": "data at http:// and https://",
    "s3": "data at s3://",
    "gcs": "data at gs://",
    "zstd": "shards compressed by zstd",
}
"""Extra of the package -> what it is for."""
MAIN = ("torch", "transformers", "open_clip_torch", "timm", "sentence-transformers", "peft", "numpy", "faiss-cpu", "faiss-gpu")


@dataclass
class Environment(ResultFields):
    """What `mmtune doctor --env` finds.

    system: Python, operating system, mmtune
    packages: version of the main libraries; None if not installed
    features: {extra: {"for", "missing", "install"}}; missing: packages that are not installed, or too old
    device: what torch computes on, as found by computing on it
    problems: what is wrong, one line each
    """

    system: dict[str, str]
    packages: dict[str, str | None]
    features: dict[str, JsonObject]
    device: JsonObject
    problems: list[str]

    def __str__(self) -> str:
        lines = ["  ".join(f"{k} {v}" for k, v in self.system.items())]
        lines.append("  ".join(f"{k} {v}" for k, v in self.packages.items() if v))
        lines.append("device: " + ", ".join(f"{k} {v}" for k, v in self.device.items()))
        ready = [extra for extra, f in self.features.items() if not f["missing"]]
        lines.append(f"ready: {', '.join(ready) or 'no extra'}")
        for f in self.features.values():
            if f["missing"]:
                lines.append(f"missing: {f['for']}: {f['install']}")
        return "\n".join([*lines, *(f"problem: {p}" for p in self.problems)])


def inspect_environment() -> Environment:
    """Look at the installed packages, and compute a product of matrices on the device that training would use."""
    from mmtune.runtime.version import __version__

    system = {"mmtune": __version__, "python": platform.python_version(), "system": platform.platform(terse=True)}
    packages = {name: _version(name) for name in MAIN}
    features: dict[str, JsonObject] = {}
    wanted = _requirements()
    for extra, purpose in FEATURES.items():
        missing = [text for text, installed in wanted.get(extra, {}).items() if not installed]
        features[extra] = {"for": purpose, "missing": missing, "install": f'pip install "mmtune[{extra}]"'}
    device, problems = _device()
    if packages["faiss-cpu"] and packages["faiss-gpu"]:
        problems.append("faiss-cpu and faiss-gpu are both installed, and share one module: uninstall one")
    if not packages["faiss-cpu"] and not packages["faiss-gpu"]:
        problems.append('no faiss: pip install "mmtune[cpu]" (or mmtune[gpu])')
    return Environment(system, packages, features, device, problems)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements() -> dict[str, dict[str, bool]]:
    """Return the requirements of each extra, as the package declares them, and whether they are installed in that version."""
    from packaging.requirements import Requirement

    found: dict[str, dict[str, bool]] = {}
    for text in importlib.metadata.requires("mmtune") or []:
        requirement = Requirement(text)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", text)
        if extra is None or requirement.marker is not None and not requirement.marker.evaluate({"extra": extra[1]}):
            continue
        installed = _version(requirement.name)
        fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
        found.setdefault(extra[1], {})[f"{requirement.name}{requirement.specifier}"] = fits
    return found


def _device() -> tuple[JsonObject, list[str]]:
    """Compute on the default device. Returns what was found, and what is wrong."""
    import torch

    from mmtune.runtime.devices import default_device

    name = str(default_device())
    problems = []
    found: JsonObject = {"device": name, "torch built for CUDA": torch.version.cuda or "no", "threads": torch.get_num_threads()}
    if name.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name()
        try:
            before = torch.cuda.memory_allocated()
            x = torch.ones(256, 256, device=name)
            right = float((x @ x)[0, 0]) == 256.0 and torch.cuda.memory_allocated() > before
            found["used"] = "yes, a product of matrices was computed on it" if right else "no"
            if not right:
                problems.append("the GPU computes a product of matrices wrongly: check its driver")
        except RuntimeError as e:
            found["used"] = "no"
            problems.append(f"torch cannot compute on the GPU: {str(e).strip()[:200]}")
    elif platform.system() == "Linux" and _has_nvidia_device():
        problems.append(
            f"this machine has an NVIDIA GPU that torch does not use (torch {torch.__version__}): install a torch that is built "
            "for your CUDA, and check `nvidia-smi`"
        )
    return found, problems


def _has_nvidia_device() -> bool:
    from pathlib import Path

    return any(Path("/dev").glob("nvidia[0-9]*"))
