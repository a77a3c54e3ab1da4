"""Small random single encoders, written by transformers."""

import json
from collections.abc import Iterable
from unittest.mock import patch

import pytest
import torch

from tests.support import checkpoints

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = SMALL | {"image_size": 32, "patch_size": 8}
STAGES = {"image_size": 32, "patch_size": 4, "depths": [1, 1], "num_heads": [2, 2], "embed_dim": 16, "window_size": 4}
NETS = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
PYRAMID = NETS | {"image_size": 64, "num_attention_heads": [1, 2, 3, 4]}
IMAGES = {
    "vit": ("ViT", PATCHES, "cls", 1),
    "vit-wide-pooler": ("ViT", PATCHES | {"pooler_output_size": 20}, "pooler", 1),
    "deit": ("DeiT", PATCHES, "pooler", 2),
    "vit_msn": ("ViTMSN", PATCHES, "mean", 1),
    "ijepa": ("IJepa", PATCHES, "mean", 0),
    "dinov2": ("Dinov2", PATCHES, "cls", 1),
    "dinov2-giant": ("Dinov2", PATCHES | {"use_swiglu_ffn": True}, "mean", 1),
    "dinov2_with_registers": ("Dinov2WithRegisters", PATCHES | {"num_register_tokens": 3}, "mean", 4),
    "dinov3_vit": ("DINOv3ViT", PATCHES | {"num_register_tokens": 2}, "pooler", 3),
    "dinov3_vit-gated": ("DINOv3ViT", PATCHES | {"num_register_tokens": 4, "use_gated_mlp": True, "key_bias": True}, "mean", 5),
    "dinov3_convnext": ("DINOv3ConvNext", NETS, "mean", 1),
    "beit": ("Beit", PATCHES, "pooler", 1),
    "beit-relative": ("Beit", PATCHES | {"use_relative_position_bias": True, "use_mean_pooling": False}, "pooler", 1),
    "data2vec-vision": ("Data2VecVision", PATCHES, "mean", 1),
    "clip_vision_model": ("CLIPVision", PATCHES, "mean", 1),
    "siglip_vision_model": ("SiglipVision", PATCHES, "pooler", 0),
    "swin": ("Swin", STAGES, "pooler", 0),
    "swinv2": ("Swinv2", STAGES, "mean", 0),
    "donut-swin": ("DonutSwin", STAGES, "pooler", 0),
    "hiera": (
        "Hiera",
        {"image_size": [32, 32], "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "masked_unit_size": [4, 4]}
        | {"query_stride": [2, 2], "num_query_pool": 1},
        "pooler",
        0,
    ),
    "focalnet": ("FocalNet", STAGES | {"focal_levels": [1, 1], "focal_windows": [3, 3]}, "pooler", 0),
    "convnext": ("ConvNext", NETS, "pooler", 0),
    "convnextv2": ("ConvNextV2", NETS, "mean", 0),
    "cvt": (
        "Cvt",
        {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3], "drop_path_rate": [0.0] * 3},
        "cls",
        1,
    ),
    "efficientnet": ("EfficientNet", {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320}, "pooler", 0),
    "levit": (
        "Levit",
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1]}
        | {"key_dim": [8, 8, 8]},
        "pooler",
        0,
    ),
    "mobilenet_v1": ("MobileNetV1", {"depth_multiplier": 0.25}, "pooler", 0),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.25}, "mean", 0),
    "mobilevit": (
        "MobileViT",
        {"image_size": 128, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 12, 16, 24, 32, 48]}
        | {"num_attention_heads": 2},
        "pooler",
        0,
    ),
    "mobilevitv2": (
        "MobileViTV2",
        {"image_size": 64, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1], "base_attn_unit_dims": [32, 48, 64]},
        "pooler",
        0,
    ),
    "poolformer": ("PoolFormer", NETS, "mean", 0),
    "pvt": ("Pvt", PYRAMID | {"sequence_reduction_ratios": [4, 2, 2, 1]}, "cls", 1),
    "pvt_v2": ("PvtV2", PYRAMID, "mean", 0),
    "regnet": ("RegNet", NETS | {"embedding_size": 8, "groups_width": 8}, "pooler", 0),
    "resnet": ("ResNet", NETS | {"embedding_size": 8}, "pooler", 0),
    "segformer": ("Segformer", NETS | {"num_attention_heads": [1, 2, 3, 4]}, "mean", 0),
    "swiftformer": ("SwiftFormer", {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32]}, "mean", 0),
}
"""Name -> (prefix of the classes in transformers, configuration, a pooling, tokens before the patches) of small image encoders."""
SQUARE = {"size": {"height": 32, "width": 32}}
CROP = {"crop_size": {"height": 32, "width": 32}}
EDGE, OVER = {"size": {"shortest_edge": 32}}, {"size": {"shortest_edge": 36}} | CROP
EDGE_64 = {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}
PROCESSORS = {
    "beit": ("Beit", SQUARE | CROP | {"do_center_crop": True}),
    "beit-relative": ("Beit", SQUARE),
    "convnext": ("ConvNext", EDGE),
    "convnextv2": ("ConvNext", EDGE | {"crop_pct": 0.8}),
    "cvt": ("ConvNext", EDGE),
    "data2vec-vision": ("Beit", SQUARE),
    "deit": ("DeiT", {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}}),
    "dinov2": ("Bit", OVER),
    "dinov3_vit": ("DINOv3ViT", SQUARE),
    "dinov3_vit-gated": ("DINOv3ViT", SQUARE),
    "dinov3_convnext": ("DINOv3ViT", SQUARE),
    "donut-swin": ("Donut", SQUARE),
    "efficientnet": ("EfficientNet", SQUARE | {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
    "focalnet": ("Bit", EDGE | CROP),
    "hiera": ("Bit", EDGE | CROP),
    "levit": ("Levit", {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}),
    "mobilenet_v1": ("MobileNetV1", OVER),
    "mobilenet_v2": ("MobileNetV2", OVER),
    "mobilevit": ("MobileViT", {"size": {"shortest_edge": 136}, "crop_size": {"height": 128, "width": 128}}),
    "mobilevitv2": ("MobileViT", EDGE_64),
    "poolformer": ("PoolFormer", EDGE | CROP),
    "pvt": ("Pvt", {"size": {"height": 64, "width": 64}}),
    "pvt_v2": ("Pvt", {"size": {"height": 64, "width": 64}}),
    "regnet": ("ConvNext", EDGE),
    "resnet": ("ConvNext", EDGE),
    "segformer": ("Segformer", SQUARE),
    "siglip_vision_model": ("Siglip", SQUARE),
    "clip_vision_model": ("CLIP", EDGE | CROP),
}
"""Name in IMAGES -> (prefix of the image processor, settings). All others have a ViTImageProcessor of 32 pixels."""
COMMON_IMAGES = (
    "vit",
    "deit",
    "ijepa",
    "dinov2",
    "dinov3_vit",
    "siglip_vision_model",
    "swin",
    "convnext",
    "cvt",
    "levit",
    "pvt",
)
"""Names in IMAGES that are tested each time; tests of the others are marked slow."""
CONVOLUTIONS = {"conv_dim": [16, 16, 32], "conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "num_feat_extract_layers": 3}
WAVEFORM = SMALL | CONVOLUTIONS | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 8}
GROUP, LAYER = WAVEFORM | {"feat_extract_norm": "group"}, WAVEFORM | {"feat_extract_norm": "layer"}
ADAPTER = {"add_adapter": True, "output_hidden_size": 24, "num_adapter_layers": 1}
PADDED = {"left_max_position_embeddings": 8, "right_max_position_embeddings": 2, "conv_depthwise_kernel_size": 5}
SEW = WAVEFORM | {"squeeze_factor": 2}
SOUNDS = {
    "wav2vec2": ("Wav2Vec2", GROUP),
    "wav2vec2-layer": ("Wav2Vec2", LAYER | {"do_stable_layer_norm": True}),
    "wav2vec2-adapter": ("Wav2Vec2", LAYER | ADAPTER),
    "hubert": ("Hubert", LAYER),
    "hubert-group": ("Hubert", GROUP),
    "hubert-batch-norm": ("Hubert", LAYER | {"conv_pos_batch_norm": True}),
    "wavlm": ("WavLM", LAYER),
    "wavlm-group": ("WavLM", GROUP),
    "unispeech": ("UniSpeech", LAYER | {"do_stable_layer_norm": True}),
    "unispeech-group": ("UniSpeech", GROUP),
    "unispeech-sat": ("UniSpeechSat", GROUP),
    "unispeech-sat-layer": ("UniSpeechSat", LAYER),
    "data2vec-audio": ("Data2VecAudio", WAVEFORM | {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3}),
    "wav2vec2-conformer": ("Wav2Vec2Conformer", LAYER | {"conv_depthwise_kernel_size": 5}),
    "wav2vec2-conformer-rotary": ("Wav2Vec2Conformer", LAYER | {"position_embeddings_type": "rotary"}),
    "sew": ("SEW", SEW | {"feat_extract_norm": "group"}),
    "sew-layer": ("SEW", SEW | {"feat_extract_norm": "layer"}),
    "sew-d": ("SEWD", SEW | {"feat_extract_norm": "layer", "max_position_embeddings": 64, "position_buckets": 16}),
    "wav2vec2-bert": ("Wav2Vec2Bert", SMALL | PADDED | {"feature_projection_input_dim": 160}),
    "wav2vec2-bert-adapter": ("Wav2Vec2Bert", SMALL | PADDED | ADAPTER),
}
"""Name -> (prefix of the classes in transformers, configuration) of small encoders of waveforms."""


COMMON_SOUNDS = ("wav2vec2", "wav2vec2-layer", "hubert", "wavlm", "wav2vec2-bert", "wav2vec2-conformer", "sew")
"""Names in SOUNDS that are tested each time."""


def slow_unless(names: Iterable[str], common: tuple[str, ...]) -> list:
    """Parameters of a test: names, those that are not common marked slow."""
    return [pytest.param(n, marks=[] if n in common else pytest.mark.slow) for n in names]


def extractor_of(kind: str):
    """The feature extractor that goes with an encoder of SOUNDS."""
    import transformers

    if kind.startswith("wav2vec2-bert"):
        return transformers.SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80)
    return transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)


def small(cls: str, config: dict, out):
    """A seeded random model, saved by transformers."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, f"{cls}Model")(getattr(transformers, f"{cls}Config")(**config)).eval()
    for p in model.parameters():
        if p.ndim == 4:  # else activations of deep convolutional nets shrink to nothing
            torch.nn.init.kaiming_normal_(p)
        p.data += 0.05 * torch.randn_like(p)
    model.save_pretrained(out)
    return model


def image_folder(kind: str, out):
    import transformers

    cls, config, pooling, prefix = IMAGES[kind]
    model = small(cls, config, out)
    name, settings = PROCESSORS.get(kind, ("ViT", SQUARE))
    processor = getattr(transformers, f"{name}ImageProcessor")(**settings)
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


def take_two_steps(model, tuned, modality: str, inputs, optimizer: torch.optim.Optimizer) -> None:
    """Move the embeddings of four values towards random targets, as training does, and check that every trained weight has a gradient."""
    target = torch.nn.functional.normalize(torch.randn(4, model.dim, generator=torch.Generator().manual_seed(0)), dim=-1)
    for _ in range(2):
        model.train()
        tuned.set_frozen_to_eval()
        loss = -(model.encode_inputs(modality, inputs) * target).sum()
        optimizer.zero_grad()
        loss.backward()
        tuned.record_gradients()
        optimizer.step()
    tuned.check_gradients()


def beats_file(out, **settings):
    """A small random encoder of the BEATs family, saved by speechbrain's own module in Microsoft's format; returns its path."""
    from speechbrain.lobes.models.beats import BEATs, BEATsConfig

    cfg = {
        "embed_dim": 24,
        "encoder_layers": 2,
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 48,
        "encoder_attention_heads": 4,
    }
    cfg |= {"conv_pos": 8, "conv_pos_groups": 4, "relative_position_embedding": True, "num_buckets": 20, "max_distance": 40}
    cfg |= {
        "gru_rel_pos": True,
        "deep_norm": True,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "encoder_layerdrop": 0.05,
    } | settings
    config = BEATsConfig(cfg)
    torch.manual_seed(0)
    with patch("speechbrain.lobes.models.beats.BEATsConfig", lambda _: config):  # without a file it takes its defaults alone
        model = BEATs()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    path = out.with_suffix(".pt")
    torch.save({"cfg": cfg, "model": model.state_dict()}, path)
    return path
