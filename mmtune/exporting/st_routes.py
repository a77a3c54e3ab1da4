"""The modules of sentence-transformers that compute what the towers of a model compute."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mmtune.backbones import Backbone
from mmtune.backbones.checkpoint_files import Untyped
from mmtune.backbones.hf_dual_encoder_table import DUAL_ENCODERS, pooled_features
from mmtune.backbones.hf_tokenizer import TokenPreprocess
from mmtune.backbones.st import STEPS
from mmtune.backbones.token_pooling import read_modes
from mmtune.contracts import JsonObject
from mmtune.exporting.hf_checkpoint import dual_encoder_type, write_checkpoint
from mmtune.exporting.timm_checkpoint import unsupported, write_timm_checkpoint
from mmtune.model.heads import ResidualHead
from mmtune.runtime.files import write_json

TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
OTHERS = {
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "Dropout": "sentence_transformers.sentence_transformer.modules.dropout.Dropout",
}
IDENTITY = "torch.nn.modules.linear.Identity"


@dataclass
class Module:
    """One module of sentence-transformers.

    kind: name of its class
    config: content of its configuration file
    weights: its weights
    backbone: for a Transformer: the checkpoint
    """

    kind: str
    config: JsonObject
    weights: dict[str, Tensor] = field(default_factory=dict)
    backbone: Backbone | None = None

    @property
    def type(self) -> str:
        """The import path of its class, as in modules.json."""
        return TRANSFORMER if self.kind == "Transformer" else OTHERS[self.kind]


@dataclass
class Route:
    """The modules that embed values of some modalities, one after another."""

    modalities: list[str]
    modules: list[Module]


def write_module(module: Module, directory: Path) -> None:
    """Write the files of a module."""
    directory.mkdir(parents=True, exist_ok=True)
    if module.backbone is not None:
        if module.backbone.family == "timm":
            write_timm_checkpoint(module.backbone, directory)
        else:
            write_checkpoint(module.backbone, directory)
        write_json(directory / "sentence_bert_config.json", module.config)
        return
    write_json(directory / "config.json", module.config)
    if module.weights:
        from safetensors.torch import save_file

        save_file({k: v.detach().cpu().contiguous() for k, v in module.weights.items()}, directory / "model.safetensors")


def dual_encoder_route(backbone: Backbone, names: list[str]) -> Route | None:
    """Return the route of both towers of a dual encoder of transformers, or None if it is none that one module can compute."""
    kind = dual_encoder_type(backbone)
    if not kind or DUAL_ENCODERS[kind].features is not pooled_features or len(backbone.towers) > len(names):
        return None
    methods = {m: {"method": f"get_{m}_features", "method_output_name": "pooler_output"} for m in names}
    config = _transformer(methods, "sentence_embedding", _processing(backbone, names))
    return Route(list(names), [Module("Transformer", config, backbone=backbone)])


def route_of(backbone: Backbone, modality: str) -> tuple[Route | None, str]:
    """Return the route of a single tower, or None and why there is none."""
    if backbone.family == "st":
        return _sentence_encoder(backbone, modality), ""
    if backbone.family == "timm":
        if reason := unsupported(backbone):
            return None, reason
        method = {modality: {"method": "forward", "method_output_name": "pooler_output"}}
        return Route([modality], [Module("Transformer", _transformer(method, "sentence_embedding", {}), backbone=backbone)]), ""
    if backbone.family != "hf" or dual_encoder_type(backbone):
        if kind := dual_encoder_type(backbone):
            return (
                None,
                f"sentence-transformers has no module for one tower of {kind}, nor for vectors other than get_*_features",
            )
        return None, f"sentence-transformers has no module for towers of the family {backbone.family}"
    if (modes := _text_pooling(backbone)) is not None:
        return Route([modality], [_text_transformer(backbone, modality), *_pooling(backbone, modality, modes)]), ""
    mode = json.loads(backbone.files.get("pooling.json", b"{}")).get("pooling")
    output = {"pooler": ("pooler_output", "sentence_embedding"), "cls": ("last_hidden_state", "token_embeddings")}.get(mode)
    if output is None or "sampling_rate" in backbone.files.get("preprocessor_config.json", b"").decode():
        return None, f"sentence-transformers cannot pool this encoder as mmtune does ({mode or 'its own projection'})"
    method = {modality: {"method": "forward", "method_output_name": output[0]}}
    pooling = _pooling(backbone, modality, ["cls"]) if mode == "cls" else []
    return Route([modality], [Module("Transformer", _transformer(method, output[1], {}), backbone=backbone), *pooling]), ""


def dense_of_head(head: nn.Module) -> Module | None:
    """Return a linear head as a Dense module, or None for a head of another structure."""
    if isinstance(head, ResidualHead) or not isinstance(head, nn.Linear):
        return None
    weights = {"linear.weight": head.weight} | ({} if head.bias is None else {"linear.bias": head.bias})
    return _dense(head.in_features, head.out_features, head.bias is not None, weights)


def truncation(width: int, dim: int) -> Module:
    """Return a Dense module that keeps the first `dim` of `width` dimensions."""
    return _dense(width, dim, False, {"linear.weight": torch.eye(dim, width)})


def _dense(source: int, target: int, bias: bool, weights: dict[str, Tensor]) -> Module:
    config = {"in_features": source, "out_features": target, "bias": bias, "activation_function": IDENTITY}
    return Module("Dense", config, weights)


def _transformer(methods: JsonObject, output: str, processing: JsonObject) -> JsonObject:
    return {
        "transformer_task": "feature-extraction",
        "modality_config": methods,
        "module_output_name": output,
    } | ({"processing_kwargs": processing} if processing else {})


def _processing(backbone: Backbone, names: list[str]) -> JsonObject:
    """Return the arguments by which the processor tokenizes as mmtune does."""
    found = {}
    for m in names:
        tokens = backbone.towers[m].preprocess
        if isinstance(tokens, TokenPreprocess):
            found[m] = {"truncation": True, "max_length": tokens.limit} | (
                {"padding": "max_length"} if tokens.full_length else {}
            )
    return found


def _text_pooling(backbone: Backbone) -> list[str] | None:
    """Return the pooling modes of a text encoder of transformers; None for an encoder of something else."""
    if not isinstance(next(iter(backbone.towers.values())).preprocess, TokenPreprocess) or "pooling" not in backbone.info:
        return None
    modes = str(backbone.info["pooling"]).split("+")
    return None if modes == ["projection"] else modes


def _text_transformer(backbone: Backbone, modality: str) -> Module:
    tokens: Untyped = backbone.towers[modality].preprocess
    method = {modality: {"method": "forward", "method_output_name": "last_hidden_state"}}
    config = _transformer(method, "token_embeddings", {}) | {"max_seq_length": tokens.limit}
    return Module("Transformer", config, backbone=backbone)


def _pooling(backbone: Backbone, modality: str, modes: list[str]) -> list[Module]:
    width = backbone.towers[modality].dim // len(modes)
    mode = modes[0] if len(modes) == 1 else modes
    return [Module("Pooling", {"embedding_dimension": width, "pooling_mode": mode, "include_prompt": True})]


def _sentence_encoder(backbone: Backbone, modality: str) -> Route:
    """Return the modules that a checkpoint of sentence-transformers had."""
    steps = json.loads(backbone.files[STEPS])
    encoder: Untyped = backbone.module
    module = Module("Transformer", {"max_seq_length": steps["max_length"], "do_lower_case": steps.get("lower_case", False)})
    module.backbone = Backbone(
        "hf", encoder.transformer, {}, [], {k: v for k, v in backbone.files.items() if k != STEPS and "/" not in k}
    )
    modes = read_modes({"pooling_mode": steps["pooling"]}, STEPS)
    width = int(encoder.transformer.config.hidden_size)
    pooling = Module("Pooling", {"embedding_dimension": width, "pooling_mode": modes if len(modes) > 1 else modes[0]})
    after = [Module(s["kind"], s["config"], dict(encoder.get_submodule(s["name"]).state_dict())) for s in steps["modules"]]
    return Route([modality], [module, pooling, *after])
