"""Build the towers of a dual encoder of transformers: CLIP, SigLIP, CLAP and all others of `DUAL_ENCODERS`.

The models share one interface: `get_image_features` (or `get_audio_features`), `get_text_features` and a learned logit scale.
The `get_*_features` methods of transformers 5 return output objects, whose `pooler_output` is the projected embedding.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmtune.backbones import Backbone, LogitScale, Preprocess, Tower
from mmtune.backbones.checkpoint_files import Untyped, read_saved_files, read_source_files
from mmtune.backbones.hf_audio_preprocess import ClapPreprocess
from mmtune.backbones.hf_dual_encoder_table import DUAL_ENCODERS
from mmtune.backbones.hf_image_preprocess import ImagePreprocess
from mmtune.backbones.hf_tokenizer import TokenPreprocess
from mmtune.backbones.hf_weights import attention_setter, build
from mmtune.errors import ModelError, first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def load_dual_encoder(directory: Path, config: "PretrainedConfig", load_weights: bool) -> Backbone:
    """Build the backbone of a dual encoder.

    directory: the checkpoint
    config: its configuration, whose `model_type` is a key of DUAL_ENCODERS
    load_weights: False means to build the architecture only, with uninitialised weights
    """
    import transformers

    names = DUAL_ENCODERS[config.model_type]
    if not hasattr(transformers, names.model):
        raise ModelError(
            f"hf:{directory}: transformers {transformers.__version__} has no {names.model}; install a newer transformers"
        )
    processor: Untyped = _processor(directory)
    module: Untyped = build(getattr(transformers, names.model), directory, config, load_weights, replaced=names.unused)
    _replace_temperature(module)
    for name in [n for n, _ in module.named_modules() if n.rpartition(".")[2] in names.unused]:
        module.set_submodule(name, nn.Identity())
    if names.causal_text:
        for layer in module.text_model.modules():
            if hasattr(layer, "is_causal"):
                layer.is_causal = True
    other, text = names.modalities
    modules = {m: [n for n in owned if hasattr(module, n)] for m, owned in zip(names.modalities, names.modules, strict=True)}

    def tower(modality: str, dim: int, preprocess: Preprocess) -> Tower:
        parts = [getattr(module, n) for n in modules[modality]]
        return Tower(modality, dim, preprocess, names.features(module, modality), parts)

    def free_tower(modality: str) -> None:
        for name in modules[modality]:
            setattr(module, name, nn.Identity())

    if other == "audio":
        preprocess: Preprocess = ClapPreprocess(processor.feature_extractor, bool(config.audio_config.enable_fusion))
    else:
        preprocess = ImagePreprocess(processor.image_processor)
    limit = min(n for n in (names.max_tokens, _positions(getattr(module, modules[text][0])), 1 << 20) if n is not None)
    tokens = TokenPreprocess(processor.tokenizer, config.text_config, limit, names.full_length)
    dim, text_dim = names.dims(config)
    towers = {other: tower(other, dim, preprocess), text: tower(text, text_dim, tokens)}
    if load_weights and config.model_type == "vision-text-dual-encoder":
        _check_pooled_outputs(directory, towers)
    return Backbone(
        "hf",
        module,
        towers,
        _logit_scales(module, f"{other}->{text}", f"{text}->{other}"),
        read_source_files(directory),
        free_tower,
        attention_setter(module),
        use_cpu_kernels=True,
        first_token_encoders=[getattr(module, names.first_token_encoder)] if names.first_token_encoder else [],
        files_of_format_1=lambda: read_saved_files(config, processor),
    )


def _processor(directory: Path) -> Untyped:
    """Load the checkpoint's processor. Its attributes are `tokenizer` and `image_processor` or `feature_extractor`."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    processor = AutoProcessor.from_pretrained(directory, trust_remote_code=False)
    if not hasattr(processor, "tokenizer"):  # nothing in the directory names a processor, so only one half was loaded
        image_processor = AutoImageProcessor.from_pretrained(directory, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        return _Processor(image_processor, tokenizer)
    return processor


class _Processor:
    """An image processor and a tokenizer that were loaded one by one."""

    def __init__(self, image_processor: Untyped, tokenizer: "PreTrainedTokenizerBase"):
        self.image_processor, self.tokenizer = image_processor, tokenizer

    def save_pretrained(self, directory: str) -> None:
        self.image_processor.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)


def _replace_temperature(module: Untyped) -> None:
    """Replace a learned temperature (logits = cosine / temperature, as in ALIGN) by the equal logit scale exp(logit_scale)."""
    if hasattr(module, "temperature"):
        temperature = module.temperature.detach().float().clamp(min=1e-6)
        del module.temperature
        module.logit_scale = nn.Parameter(-temperature.log())


def _positions(text_model: nn.Module) -> int | None:
    """Return how many tokens have a position embedding in `text_model`; None if it has no table of position embeddings.

    In models derived from RoBERTa, the table has a `padding_idx`, and positions are counted from `padding_idx` + 1.
    """
    for name, layer in text_model.named_modules():
        if isinstance(layer, nn.Embedding) and name.rpartition(".")[2].startswith("position_embedding"):
            return layer.num_embeddings - (0 if layer.padding_idx is None else layer.padding_idx + 1)
    return None


def _check_pooled_outputs(directory: Path, towers: dict[str, Tower]) -> None:
    """Raise ModelError unless both towers of a VisionTextDualEncoder give a pooled output, which its projections need."""
    import PIL.Image

    signals = {"image": PIL.Image.new("RGB", (64, 64)), "text": "a"}
    for name, tower in towers.items():
        try:
            with torch.no_grad():
                tower.encode(tower.preprocess.collate([tower.preprocess(signals[name])]))
        except (TypeError, AttributeError) as e:
            raise ModelError(
                f"hf:{directory}: the {name} encoder of this dual encoder ({type(tower.modules[0]).__name__}) has no pooled "
                f"output, which its projection needs ({first_line(e)})"
            ) from None


def _logit_scales(module: Untyped, forward: str, backward: str) -> list[LogitScale]:
    """Return the module's logit scales: CLAP has one per direction, BLIP has none, all others have one for both directions.

    forward, backward: the two directions, e.g. "image->text" and "text->image"
    """
    if hasattr(module, "logit_scale_a"):
        return [LogitScale(module.logit_scale_a, None, [forward]), LogitScale(module.logit_scale_t, None, [backward])]
    if not hasattr(module, "logit_scale"):
        return []
    return [LogitScale(module.logit_scale, getattr(module, "logit_bias", None), [forward, backward])]
