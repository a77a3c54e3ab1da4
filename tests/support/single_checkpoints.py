"""Small random single encoders, written by transformers."""

import json

import torch

from tests.support import checkpoints

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = SMALL | {"image_size": 32, "patch_size": 8}
STAGES = {"image_size": 32, "patch_size": 4, "depths": [1, 1], "num_heads": [2, 2], "embed_dim": 16, "window_size": 4}
NETS = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
IMAGES = {
    "vit": ("ViT", PATCHES, "cls", 1),
    "deit": ("DeiT", PATCHES, "pooler", 2),
    "dinov2": ("Dinov2", PATCHES, "cls", 1),
    "dinov2_with_registers": ("Dinov2WithRegisters", PATCHES | {"num_register_tokens": 3}, "mean", 4),
    "dinov3_vit": ("DINOv3ViT", PATCHES | {"num_register_tokens": 2}, "pooler", 3),
    "dinov3_convnext": ("DINOv3ConvNext", NETS, "mean", 1),
    "beit": ("Beit", PATCHES, "pooler", 1),
    "siglip_vision_model": ("SiglipVision", PATCHES, "pooler", 0),
    "swin": ("Swin", STAGES, "pooler", 0),
    "convnext": ("ConvNext", NETS, "pooler", 0),
    "convnextv2": ("ConvNextV2", NETS, "mean", 0),
    "resnet": ("ResNet", NETS | {"embedding_size": 8, "layer_type": "basic"}, "pooler", 0),
}
CONVOLUTIONS = {"conv_dim": [16, 16, 32], "conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "num_feat_extract_layers": 3}
WAVEFORM = SMALL | CONVOLUTIONS | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 8}
SOUNDS = {
    "wav2vec2": ("Wav2Vec2", WAVEFORM | {"feat_extract_norm": "group"}),
    "wav2vec2-layer": ("Wav2Vec2", WAVEFORM | {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
    "hubert": ("Hubert", WAVEFORM | {"feat_extract_norm": "layer"}),
    "wavlm": ("WavLM", WAVEFORM | {"feat_extract_norm": "layer"}),
    "unispeech-sat": ("UniSpeechSat", WAVEFORM | {"feat_extract_norm": "group"}),
    "data2vec-audio": ("Data2VecAudio", WAVEFORM),
}


def small(cls: str, config: dict, out):
    """A seeded random model, saved by transformers."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, f"{cls}Model")(getattr(transformers, f"{cls}Config")(**config)).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    model.save_pretrained(out)
    return model


def image_folder(kind: str, out):
    from transformers import ViTImageProcessor

    cls, config, pooling, prefix = IMAGES[kind]
    model = small(cls, config, out)
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(out)
    return model, processor, pooling, prefix


def decoder_folder(out, cls: str = "Qwen3", padding: str = "left"):
    """A small decoder whose tokenizer appends the end token, as that of Qwen3-Embedding does."""
    from tokenizers import processors

    config = SMALL | {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 40, "max_position_embeddings": 64}
    model = small(cls, config | {"pad_token_id": 0, "eos_token_id": 1}, out)
    tokenizer, _ = checkpoints.tokenizer_plain(64)
    end = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.backend_tokenizer.post_processor = end
    tokenizer.padding_side, tokenizer.model_input_names = padding, ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(out)
    file = out / "tokenizer_config.json"  # save_pretrained leaves the side out
    file.write_text(json.dumps({**json.loads(file.read_text()), "padding_side": padding}))
    return model, tokenizer
