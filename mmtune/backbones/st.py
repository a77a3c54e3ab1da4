"""Load sentence-transformers checkpoints (`st:DIR_OR_NAME`), whose modules.json lists the modules to run one after another.

Supported are a text Transformer with Pooling, Dense, LayerNorm, Dropout and Normalize, the checkpoint's prompts, token limit
and lower-casing, and the dual encoders of transformers (CLIP, SigLIP, CLAP, ...). Any other module is refused by its name,
because ignoring it would give other embeddings.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtune import backbones
from mmtune.backbones import Backbone, Tower
from mmtune.backbones.checkpoint_files import read_source_files, refuse_adapter, refuse_custom_code, require_file
from mmtune.backbones.checkpoint_options import split_options
from mmtune.backbones.hf_dual_encoder import load_dual_encoder
from mmtune.backbones.hf_snapshot import checkpoint_directory, silence_transformers
from mmtune.backbones.hf_text_module import TextModule, load_text_module, lower_cased
from mmtune.backbones.hf_tokenizer import TokenPreprocess
from mmtune.backbones.hf_weights import attention_setter
from mmtune.backbones.st_modules import (
    AFTER_TRANSFORMER,
    MODULES,
    StModule,
    is_dual_encoder,
    processing_limit,
    read_json,
    read_modules,
    read_prompts,
    read_transformer_settings,
)
from mmtune.backbones.token_pooling import pool, read_modes
from mmtune.contracts import JsonObject
from mmtune.errors import ModelError, first_line

STEPS = "st.json"
"""File of an artifact with the modules and their settings."""


class Dense(nn.Module):
    """A linear layer and an activation; with `residual`, their input is added to the output.

    The names of the weights are those of `sentence_transformers.models.Dense`.
    """

    def __init__(self, config: JsonObject, where: str):
        super().__init__()
        source, target = int(config["in_features"]), int(config["out_features"])
        self.linear = nn.Linear(source, target, bias=bool(config.get("bias", True)))
        self.activation = _activation(str(config.get("activation_function", "torch.nn.modules.activation.Tanh")), where)
        self.adds_input = bool(config.get("use_residual", False))
        if self.adds_input and source != target:
            self.residual = nn.Linear(source, target, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.linear(x))
        return out + (self.residual(x) if hasattr(self, "residual") else x) if self.adds_input else out


class LayerNorm(nn.Module):
    """Layer normalisation of the embedding, with the weight names of `sentence_transformers.models.LayerNorm`."""

    def __init__(self, config: JsonObject):
        super().__init__()
        self.norm = nn.LayerNorm(int(config["dimension"]))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Normalize(nn.Module):
    """L2-normalise the embedding."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


class SentenceEncoder(nn.Module):
    """A transformer, pooling, and the modules after pooling."""

    def __init__(self, transformer: nn.Module, modes: list[str], after: Mapping[str, nn.Module]):
        """transformer: returns last_hidden_state; modes: pooling modes; after: the modules after pooling, by their names"""
        super().__init__()
        self.transformer, self.modes, self.after = transformer, modes, list(after)
        for name, module in after.items():  # attributes, not a list: a list of modules would count as blocks of the tower
            self.add_module(name, module)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        x = pool(self.transformer(**inputs).last_hidden_state, inputs["attention_mask"], self.modes)
        for name in self.after:
            x = self.get_submodule(name)(x)
        return x


def load(checkpoint: str) -> Backbone:
    """Load a checkpoint from a local directory or from the Hugging Face hub, as `hf:` does.

    Raises ModelError if a file is missing, or if a module or setting is not supported.
    """
    silence_transformers()
    checkpoint, _ = split_options("st", checkpoint, [])
    directory = checkpoint_directory(checkpoint, "st")
    require_file(directory, (MODULES,), "list of modules", "st")
    refuse_custom_code(directory, "st")
    modules = read_modules(directory)
    if not modules:
        raise ModelError(f"st:{directory}: {MODULES} is empty")
    for module in modules:
        refuse_custom_code(directory / module.path, "st")
        refuse_adapter(directory / module.path, "st")
    if is_dual_encoder(directory, modules[0]):
        return _dual_encoder(directory, modules)
    _check_kinds(directory, modules)
    try:
        return _text_encoder(directory, modules)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as e:
        raise ModelError(f"st:{checkpoint}: {first_line(e)}") from e


def rebuild(directory: Path) -> Backbone:
    """Build the backbone with uninitialised weights from its files in an artifact."""
    silence_transformers()
    refuse_custom_code(directory, "st")
    steps = json.loads((directory / STEPS).read_text())
    text = load_text_module(directory, "st", load_weights=False, unused=("pooler",))
    _set_limit_and_case(text, steps["max_length"], steps.get("lower_case", False))
    after = {s["name"]: _module(s["kind"], s["config"], str(directory)) for s in steps["modules"]}
    files = backbones.read_files(directory)
    return _backbone(SentenceEncoder(text.module, steps["pooling"], after), text, steps["max_length"], files)


def _dual_encoder(directory: Path, modules: list[StModule]) -> Backbone:
    """Load a dual encoder of transformers; sentence-transformers only calls its encode functions.

    Raises ModelError if its settings would give other inputs than the checkpoint's own.
    """
    from transformers import AutoConfig

    if others := [m.kind for m in modules[1:] if m.kind != "Normalize"]:
        raise ModelError(f"st:{directory}: a {others[0]} module after a dual encoder is not supported; supported: Normalize")
    folder = directory / modules[0].path
    limit = processing_limit(directory, modules[0])
    require_file(folder, ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"), "weights file", "st")
    try:
        backbone = load_dual_encoder(folder, AutoConfig.from_pretrained(folder, trust_remote_code=False), load_weights=True)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as e:
        raise ModelError(f"st:{directory}: {first_line(e)}") from e
    own = next((t.preprocess.limit for t in backbone.towers.values() if isinstance(t.preprocess, TokenPreprocess)), None)
    if limit is not None and own is not None and limit < own:
        raise ModelError(
            f"st:{directory}: processing_kwargs: max_length {limit} is less than the model's limit of {own} tokens"
        )
    if prompts := read_prompts(directory):
        backbone.prompts = {"text": prompts}
    return backbone


def _check_kinds(directory: Path, modules: list[StModule]) -> None:
    """Raise ModelError for modules that are not supported, or in an order that is not."""
    kinds = [m.kind for m in modules]
    wrong = [k for k in kinds[1:] if k not in AFTER_TRANSFORMER]
    if kinds[0] != "Transformer" or wrong:
        raise ModelError(
            f"st:{directory}: a {kinds[0] if kinds[0] != 'Transformer' else wrong[0]} module is not supported; supported: "
            f"Transformer, {', '.join(AFTER_TRANSFORMER)}, and CLIP"
        )
    if kinds[1:2] != ["Pooling"] or kinds.count("Pooling") > 1:
        raise ModelError(f"st:{directory}: the Transformer must be followed by one Pooling module; {MODULES} has {kinds}")


def _text_encoder(directory: Path, modules: list[StModule]) -> Backbone:
    settings = read_transformer_settings(directory, modules[0].path)
    text = load_text_module(directory / modules[0].path, "st", load_weights=True, unused=("pooler",))
    _set_limit_and_case(text, settings.max_length, settings.lower_case)
    pooling = read_modes(read_json(directory, f"{modules[1].path}/config.json", dict), f"st:{directory}: {modules[1].path}")
    steps, after = [], {}
    for number, entry in enumerate(modules[2:], 2):
        config = _settings_of(directory, entry)
        module = _module(entry.kind, config, f"st:{directory}: {entry.path}")
        if module.state_dict():
            module.load_state_dict(_read_weights(directory / entry.path), strict=True)
        name = f"{entry.kind.lower()}_{number}"
        steps.append({"name": name, "kind": entry.kind, "config": config})
        after[name] = module
    document = {"pooling": pooling, "max_length": settings.max_length, "lower_case": settings.lower_case, "modules": steps}
    files = read_source_files(directory / modules[0].path)
    files[STEPS] = (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
    backbone = _backbone(SentenceEncoder(text.module, pooling, after), text, settings.max_length, files)
    if prompts := read_prompts(directory):
        backbone.prompts = {"text": prompts}
    return backbone


def _set_limit_and_case(text: TextModule, max_length: int | None, lower_case: bool) -> None:
    """Change the tokenizer as sentence-transformers does: its token limit, and whether it lower-cases texts."""
    if max_length is not None:
        text.tokenizer.model_max_length = max_length
    if lower_case:
        lower_cased(text.tokenizer)


def _settings_of(directory: Path, entry: StModule) -> JsonObject:
    """Read the settings of a module after pooling that its embedding depends on.

    Raises ModelError if the module reads or writes something else than the embedding of the text.
    """
    if entry.kind in ("Normalize", "Dropout") and not (directory / entry.path / "config.json").is_file():
        return {}
    config = read_json(directory, f"{entry.path}/config.json", dict)
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise ModelError(
                f"st:{directory}: {entry.path}: {key} {config[key]!r} is not supported; supported: sentence_embedding"
            )
    return {k: v for k, v in config.items() if not k.startswith("module_")}


def _module(kind: str, config: JsonObject, where: str) -> nn.Module:
    if kind == "Dense":
        return Dense(config, where)
    if kind == "LayerNorm":
        return LayerNorm(config)
    return Normalize() if kind == "Normalize" else nn.Dropout(float(config.get("dropout", 0.2)))


def _activation(name: str, where: str) -> nn.Module:
    """Create the activation of a Dense module from the name of its class, which must be one of torch.nn."""
    kind = getattr(nn, name.rpartition(".")[2], None) if name.startswith("torch.nn.") else None
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ModelError(f"{where}: the activation {name!r} is not supported; supported are the activations of torch.nn")
    return kind()


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / "model.safetensors").is_file():
        from safetensors.torch import load_file

        return load_file(folder / "model.safetensors")
    require_file(folder, ("model.safetensors", "pytorch_model.bin"), "weights file", "st")
    weights: dict[str, Tensor] = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    return weights


def _backbone(module: SentenceEncoder, text: TextModule, max_length: int | None, files: dict[str, bytes]) -> Backbone:
    tokens = TokenPreprocess(text.tokenizer, text.config, limit=max_length)
    tokens.has_mask = True
    module.float().eval()
    with torch.inference_mode():
        dim = module(tokens.collate([tokens("a")])).shape[1]
    return Backbone(
        "st",
        module,
        {"text": Tower("text", dim, tokens, module, [module])},
        [],
        files,
        select_attention=attention_setter(text.module),
        use_cpu_kernels=True,
        info={"pooling": "+".join(module.modes)},
    )
