"""Load image towers of timm: `timm:NAME`, `timm:NAME@FILE` and `timm:DIR`.

NAME is a model of timm (`timm.list_models()`, with or without a tag of pretrained weights), FILE a checkpoint of it
(.safetensors, or .bin, .pth and .pt without pickled code), and DIR a directory in timm's local-dir layout. The embedding is the
input of the classifier. Options: `?pooling=` one of timm's global poolings, `?size=` the side of the input image in pixels.
"""

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image as PILImage
import torch
from torch import Tensor, nn

from mmtune.backbones import Backbone, Tower
from mmtune.backbones.checkpoint_files import Untyped
from mmtune.backbones.checkpoint_options import split_options
from mmtune.backbones.crop_before_resize import centre_crop_of_resized, shortest_edge_size
from mmtune.contracts import JsonObject
from mmtune.errors import ModelError, first_line
from mmtune.runtime.plugins import nearest

if TYPE_CHECKING:
    from torchvision.transforms import Compose

CONFIG = "timm.json"
PREPROCESSING = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
"""Keys of the settings that timm's transform of evaluation depends on."""
MOST_CONVOLUTIONS_OF_A_TRANSFORMER = 4
"""A network with more convolutions than this is a convolutional one."""
RESAMPLING = {"bilinear": 2, "bicubic": 3, "nearest": 0, "lanczos": 1}
"""Names of Pillow's resampling filters -> their numbers."""


class TimmPreprocess:
    """Turn one RGB image into {"image": [3, H, W]} by timm's transform of evaluation."""

    def __init__(self, config: JsonObject):
        """config: the settings PREPROCESSING of the checkpoint"""
        from timm.data import create_transform

        options = {k: config[k] for k in PREPROCESSING}
        self.transform: Compose = create_transform(**options | {"input_size": tuple(config["input_size"])})
        _, self.height, self.width = config["input_size"]
        self.edge = int(self.width / float(config["crop_pct"]))
        self.input_size = float(max(self.height, self.width) / float(config["crop_pct"]))
        self.crops = config["crop_mode"] == "center" and self.width == self.height
        self.resample = RESAMPLING.get(str(config["interpolation"]))

    def __call__(self, signal: PILImage.Image, rng: random.Random | None = None) -> dict[str, Tensor]:
        thin = None
        if self.crops and self.resample is not None:
            size = shortest_edge_size(*signal.size, self.edge)
            thin = centre_crop_of_resized(signal, size, (self.width, self.height), self.resample)
        if thin is None:
            return {"image": self.transform(signal)}
        pixels: Untyped = thin
        for step in self.transform.transforms[2:]:  # after resizing and cropping
            pixels = step(pixels)
        return {"image": pixels}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"image": torch.stack([i["image"] for i in items])}


def load(checkpoint: str) -> Backbone:
    """Load a model of timm with its pretrained weights, or those of a file.

    Raises ModelError if the model is unknown, if the file belongs to another model, or if the weights cannot be downloaded.
    """
    path, options = split_options("timm", checkpoint, ["pooling", "size"])
    if (size := options.get("size", "0")) and not size.isdigit():
        raise ModelError(f"timm:{checkpoint}: size must be a number of pixels; got {size!r}")
    name, _, file = path.partition("@")
    if file and not Path(file).expanduser().is_file():
        raise ModelError(f"timm:{path}: no such file: {file}")
    directory = Path(name).expanduser()
    local = directory.is_dir() or name.startswith((".", "/", "~"))
    if local and not (directory / "config.json").is_file():
        raise ModelError(f"timm:{checkpoint}: no config.json in that directory; timm's local-dir layout has one")
    try:
        source = f"local-dir:{directory}" if local else name
        module = _create(source, not file)
        if file:
            _load_file(module, Path(file).expanduser(), f"timm:{path}")
        config = _config(module, options.get("pooling"), int(size))
        return _backbone(module, config)
    except ModelError:
        raise
    except Exception as e:  # timm and the hub's client raise many unrelated exception types
        raise ModelError(f"timm:{checkpoint}: {first_line(e)}") from None


def rebuild(directory: Path) -> Backbone:
    """Build the backbone with uninitialised weights from its files in an artifact."""
    config = json.loads((directory / CONFIG).read_text())
    return _backbone(_create(config["architecture"], False, **config["arguments"]), config)


def _create(name: str, pretrained: bool, **arguments: Untyped) -> Untyped:
    import timm

    if ":" not in name and not timm.is_model(name):
        raise ModelError(f"timm:{name}: no such model{nearest(name.partition('.')[0], timm.list_models())[:400]}")
    module: Untyped = timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
    return module


def _load_file(module: Untyped, file: Path, where: str) -> None:
    """Load the weights of a file, except those of the classifier. Raises ModelError if they are not this model's weights."""
    from timm.models import load_state_dict

    if file.suffix not in (".safetensors", ".bin", ".pth", ".pt"):
        raise ModelError(f"{where}: weights must be a .safetensors, .bin, .pth or .pt file")
    try:
        state = load_state_dict(str(file), weights_only=True)
    except Exception as e:  # safetensors, zip and the restricted unpickler of torch raise unrelated exception types
        raise ModelError(
            f"{where}: the file cannot be read without running its code, or is damaged ({type(e).__name__})"
        ) from None
    given = module.pretrained_cfg.get("classifier") or ()
    classifier = tuple(f"{c}." for c in ((given,) if isinstance(given, str) else given))
    own = module.state_dict()
    state = {k: v for k, v in state.items() if k in own or not k.startswith(classifier or "\0")}
    wrong = sorted(own.keys() ^ state.keys()) or sorted(k for k, v in own.items() if v.shape != state[k].shape)
    if wrong:
        raise ModelError(f"{where}: the file does not hold the weights of this model: {len(wrong)} differ, first {wrong[0]!r}")
    module.load_state_dict(state)


def _config(module: Untyped, pooling: str | None, size: int) -> JsonObject:
    """Return the settings that the embeddings depend on, as they are stored with the model."""
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(module, {"input_size": (3, size, size)} if size else {})
    arguments = {k: v for k, v in getattr(module, "_model_args", {}).items() if k not in ("num_classes", "pretrained_cfg")}
    return {
        "architecture": module.pretrained_cfg["architecture"],
        "arguments": arguments,
        "pooling": pooling,
        "resized": bool(size) and bool(module.pretrained_cfg.get("fixed_input_size")),
        **{k: list(v) if isinstance(v, tuple) else v for k, v in data.items() if k in PREPROCESSING},
    }


POOLINGS = ("avg", "max", "avgmax", "catavgmax", "fast", "token", "map")
"""Poolings of timm's models: the first five of convolutional networks, and of transformers avg, max, avgmax, token and map."""


def _set_pooling(module: Untyped, pooling: str) -> None:
    """Set the pooling of the network. Raises ValueError, naming those that it accepts, for another one."""

    def accepted(name: str) -> bool:
        try:
            with torch.no_grad():
                copy.deepcopy(module).reset_classifier(0, name)
        except Exception:  # timm raises assertions and other types
            return False
        return True

    try:
        module.reset_classifier(0, pooling)
    except Exception:
        known = ", ".join(p for p in POOLINGS if p != pooling and accepted(p))
        raise ValueError(f"pooling {pooling!r}: this model has {known}") from None


def _backbone(module: Untyped, config: JsonObject) -> Backbone:
    if config["pooling"]:
        _set_pooling(module, config["pooling"])
    if config["resized"]:  # the position embeddings are interpolated
        module.set_input_size(img_size=tuple(config["input_size"][1:]))
    module.float().eval()
    network: nn.Module = module
    with torch.inference_mode():
        dim = network(torch.zeros(1, *config["input_size"])).shape[-1]
    convolutional = sum(isinstance(m, nn.Conv2d) for m in network.modules()) > MOST_CONVOLUTIONS_OF_A_TRANSFORMER

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        images = inputs["image"]
        if convolutional and images.device.type == "cpu":  # the layout of oneDNN's fast kernels
            images = images.contiguous(memory_format=torch.channels_last)
        out: Tensor = network(images)
        return out

    tower = Tower("image", dim, TimmPreprocess(config), encode, [network])
    files = {CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()}
    return Backbone("timm", network, {"image": tower}, [], files, info={"pooling": config["pooling"] or "timm's default"})
