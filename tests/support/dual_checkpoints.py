"""Small checkpoints of every dual encoder of transformers that can be loaded, with seeded random weights.

They are written by transformers itself (`save_pretrained` of its model and of its processor).
"""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.support.checkpoints import tokenizer_clip, tokenizer_roberta

BLOCK = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = BLOCK | {"image_size": 32, "patch_size": 8}
POSITIONS = 24


def tokenizer_bert(limit: int = POSITIONS) -> tuple[Any, int]:
    from transformers import BertTokenizerFast

    letters = string.ascii_lowercase
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    return BertTokenizerFast(vocab={w: i for i, w in enumerate(words)}, model_max_length=limit), len(words)


def tokenizer_pieces(name: str) -> tuple[Any, int]:
    """A tokenizer of the class `name` (Siglip2Tokenizer or Tipsv2Tokenizer) with letters as its only pieces."""
    import transformers

    special = {"Siglip2Tokenizer": ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], "Tipsv2Tokenizer": ["<pad>", "<unk>"]}[name]
    vocab = {t: i for i, t in enumerate([*special, "▁", *string.ascii_lowercase])}
    return getattr(transformers, name)(vocab=vocab, merges=[]), len(vocab)


def _clip_text() -> tuple[Any, dict[str, Any]]:
    tokenizer, vocab = tokenizer_clip(POSITIONS)
    ids = {"bos_token_id": vocab["<|startoftext|>"], "eos_token_id": vocab["<|endoftext|>"], "pad_token_id": vocab["!"]}
    return tokenizer, BLOCK | ids | {"vocab_size": len(vocab), "max_position_embeddings": POSITIONS}


def _bert_text() -> tuple[Any, dict[str, Any]]:
    tokenizer, words = tokenizer_bert()
    return tokenizer, BLOCK | {"vocab_size": words, "max_position_embeddings": POSITIONS}


def _roberta_text(positions: int) -> tuple[Any, dict[str, Any]]:
    tokenizer, words = tokenizer_roberta(POSITIONS)
    return tokenizer, BLOCK | {"vocab_size": words, "max_position_embeddings": positions, "pad_token_id": 1}


def _pictures() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def _save(out: Path, name: str, config: Any, tokenizer: Any, pictures: Any, processor: str, seed: int = 0) -> Path:
    import transformers

    torch.manual_seed(seed)
    module = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for p in module.parameters():  # some architectures start with zeros, which would hide differences
            p.add_(0.02 * torch.randn_like(p))
        for key, value in module.named_buffers():
            if key.endswith("running_mean"):
                value.add_(0.1 * torch.rand_like(value))
    module.save_pretrained(out)
    getattr(transformers, processor)(image_processor=pictures, tokenizer=tokenizer).save_pretrained(out)
    return out


def aimv2(out: Path) -> Path:
    from transformers import Aimv2Config

    tokenizer, text = _clip_text()
    config = Aimv2Config(text_config=text, vision_config=VISION, projection_dim=24)
    return _save(out, "Aimv2Model", config, tokenizer, _pictures(), "CLIPProcessor")


def align(out: Path) -> Path:
    from transformers import AlignConfig, EfficientNetImageProcessor

    tokenizer, text = _bert_text()
    vision = {
        "image_size": 32,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "kernel_sizes": [3, 5],
        "in_channels": [32, 8],
        "out_channels": [8, 16],
        "strides": [1, 2],
        "num_block_repeats": [1, 2],
        "expand_ratios": [1, 4],
        "hidden_dim": 24,
    }
    config = AlignConfig(text_config=text, vision_config=vision, projection_dim=24, temperature_init_value=0.05)
    pictures = EfficientNetImageProcessor(
        size={"height": 40, "width": 40}, do_center_crop=True, crop_size={"height": 32, "width": 32}
    )
    return _save(out, "AlignModel", config, tokenizer, pictures, "AlignProcessor")


def altclip(out: Path) -> Path:
    from transformers import AltCLIPConfig

    tokenizer, text = _roberta_text(POSITIONS + 2)
    config = AltCLIPConfig(text_config=text | {"project_dim": 24}, vision_config=VISION, projection_dim=24)
    return _save(out, "AltCLIPModel", config, tokenizer, _pictures(), "AltCLIPProcessor")


def blip(out: Path) -> Path:
    from transformers import BlipConfig, BlipImageProcessor

    tokenizer, text = _bert_text()
    text |= {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "encoder_hidden_size": 32}
    config = BlipConfig(text_config=text, vision_config=VISION, image_text_hidden_size=24)
    pictures = BlipImageProcessor(size={"height": 32, "width": 32})
    return _save(out, "BlipForImageTextRetrieval", config, tokenizer, pictures, "BlipProcessor")


def chinese_clip(out: Path) -> Path:
    from transformers import ChineseCLIPConfig, ChineseCLIPImageProcessor

    tokenizer, text = _bert_text()
    config = ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    pictures = ChineseCLIPImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    return _save(out, "ChineseCLIPModel", config, tokenizer, pictures, "ChineseCLIPProcessor")


def clipseg(out: Path) -> Path:
    from transformers import CLIPSegConfig, ViTImageProcessor

    tokenizer, text = _clip_text()
    config = CLIPSegConfig(text_config=text, vision_config=VISION, projection_dim=24, extract_layers=[0, 1], reduce_dim=8)
    pictures = ViTImageProcessor(size={"height": 48, "width": 48})  # other than the model's: it interpolates its positions
    return _save(out, "CLIPSegForImageSegmentation", config, tokenizer, pictures, "CLIPSegProcessor")


def flava(out: Path) -> Path:
    from transformers import FlavaConfig, FlavaImageProcessor

    tokenizer, text = _bert_text()
    config = FlavaConfig(
        text_config=text,
        image_config=VISION,
        multimodal_config=BLOCK,
        image_codebook_config={"hidden_size": 8, "num_blocks_per_group": 1, "num_groups": 4, "vocab_size": 8},
        hidden_size=32,
        projection_dim=24,
    )
    pictures = FlavaImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    return _save(out, "FlavaModel", config, tokenizer, pictures, "FlavaProcessor")


def groupvit(out: Path) -> Path:
    from transformers import GroupViTConfig

    tokenizer, text = _clip_text()
    vision = VISION | {"depths": [1, 1, 1], "num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 0], "patch_size": 4}
    config = GroupViTConfig(text_config=text, vision_config=vision, projection_dim=24, projection_intermediate_dim=32)
    return _save(out, "GroupViTModel", config, tokenizer, _pictures(), "CLIPProcessor")


def metaclip_2(out: Path) -> Path:
    from transformers import MetaClip2Config

    tokenizer, text = _roberta_text(POSITIONS)
    config = MetaClip2Config(text_config=text | {"bos_token_id": 0, "eos_token_id": 2}, vision_config=VISION, projection_dim=24)
    return _save(out, "MetaClip2Model", config, tokenizer, _pictures(), "CLIPProcessor")


def owlvit(out: Path) -> Path:
    from transformers import OwlViTConfig, OwlViTImageProcessor

    tokenizer, text = _clip_text()
    config = OwlViTConfig(text_config=text, vision_config=VISION, projection_dim=24)
    pictures = OwlViTImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    return _save(out, "OwlViTModel", config, tokenizer, pictures, "OwlViTProcessor")


def owlv2(out: Path) -> Path:
    from transformers import Owlv2Config, Owlv2ImageProcessor

    tokenizer, text = _clip_text()
    config = Owlv2Config(text_config=text, vision_config=VISION, projection_dim=24)
    pictures = Owlv2ImageProcessor(size={"height": 32, "width": 32})
    return _save(out, "Owlv2Model", config, tokenizer, pictures, "Owlv2Processor")


def siglip2(out: Path) -> Path:
    from transformers import Siglip2Config, Siglip2ImageProcessor

    tokenizer, words = tokenizer_pieces("Siglip2Tokenizer")
    text = BLOCK | {"vocab_size": words, "max_position_embeddings": 64, "projection_size": 32}
    vision = BLOCK | {"patch_size": 8, "num_patches": 16}
    pictures = Siglip2ImageProcessor(patch_size=8, max_num_patches=24)
    config = Siglip2Config(text_config=text, vision_config=vision)
    return _save(out, "Siglip2Model", config, tokenizer, pictures, "Siglip2Processor")


def tipsv2(out: Path) -> Path:
    from transformers import Tipsv2Config, Tipsv2ImageProcessor

    tokenizer, words = tokenizer_pieces("Tipsv2Tokenizer")
    text = BLOCK | {"vocab_size": words}
    config = Tipsv2Config(text_config=text, vision_config=VISION)
    pictures = Tipsv2ImageProcessor(size={"height": 32, "width": 32})
    return _save(out, "Tipsv2Model", config, tokenizer, pictures, "Tipsv2Processor")


def vision_text(out: Path) -> Path:
    from transformers import BertConfig, VisionTextDualEncoderConfig, ViTConfig, ViTImageProcessor

    tokenizer, text = _bert_text()
    config = VisionTextDualEncoderConfig.from_vision_text_configs(ViTConfig(**VISION), BertConfig(**text), projection_dim=24)
    pictures = ViTImageProcessor(size={"height": 32, "width": 32})
    return _save(out, "VisionTextDualEncoderModel", config, tokenizer, pictures, "VisionTextDualEncoderProcessor")


MAKERS: dict[str, Callable[[Path], Path]] = {
    "aimv2": aimv2,
    "align": align,
    "altclip": altclip,
    "blip": blip,
    "chinese_clip": chinese_clip,
    "clipseg": clipseg,
    "flava": flava,
    "groupvit": groupvit,
    "metaclip_2": metaclip_2,
    "owlv2": owlv2,
    "owlvit": owlvit,
    "siglip2": siglip2,
    "tipsv2": tipsv2,
    "vision-text-dual-encoder": vision_text,
}
"""`model_type` -> the function that writes a checkpoint into a directory."""
