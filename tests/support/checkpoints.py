"""Small checkpoints in upstream's own formats, written by upstream's own libraries, with seeded random weights."""

import json
from pathlib import Path

import torch


def tokenizer_roberta(limit: int = 40):
    from tokenizers import pre_tokenizers
    from transformers import RobertaTokenizerFast

    vocab = {
        t: i for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "<mask>"])
    }
    return RobertaTokenizerFast(vocab=vocab, merges=[], model_max_length=limit), len(vocab)


def tokenizer_clip(limit: int = 24):
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {t: i for i, t in enumerate(names)}
    return CLIPTokenizerFast(vocab=vocab, merges=[], model_max_length=limit), vocab


def tokenizer_plain(limit: int = 16):
    """A word-level tokenizer that pads with 0 and gives no attention mask, as SigLIP's."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *"a red blue green dog cat bag with stitch photo of".split()]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=limit,
        model_input_names=["input_ids"],
    ), len(words)


def clip(out: Path, seed: int = 0) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    tokenizer, vocab = tokenizer_clip()
    torch.manual_seed(seed)
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": len(vocab),
        "max_position_embeddings": 24,
        "bos_token_id": vocab["<|startoftext|>"],
        "eos_token_id": vocab["<|endoftext|>"],
        "pad_token_id": vocab["<|endoftext|>"],
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(out)
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(out)
    return out


def siglip(out: Path, seed: int = 0) -> Path:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    tokenizer, words = tokenizer_plain()
    torch.manual_seed(seed)
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": words,
        "max_position_embeddings": 16,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 1,
        "projection_size": 32,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        model.logit_scale.fill_(2.3), model.logit_bias.fill_(-10.0)
    model.save_pretrained(out)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(out)
    tokenizer.save_pretrained(out)
    processor = out / "tokenizer_config.json"
    config = json.loads(processor.read_text())
    processor.write_text(json.dumps(config | {"processor_class": "SiglipProcessor"}))
    return out


def clap(out: Path, fused: bool = False, seed: int = 0) -> Path:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor

    tokenizer, words = tokenizer_roberta()
    torch.manual_seed(seed)
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": words,
        "max_position_embeddings": 44,
        "pad_token_id": 1,
        "projection_dim": 24,
    }
    audio = {
        "hidden_size": 32,
        "patch_embeds_hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "spec_size": 64,
        "num_mel_bins": 32,
        "window_size": 4,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "enable_fusion": fused,
        "fusion_type": "aff_2d" if fused else None,
        "projection_dim": 24,
        "num_classes": 4,
    }
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=24)).eval()
    model.save_pretrained(out)
    extractor = ClapFeatureExtractor(
        feature_size=32,
        sampling_rate=8000,
        hop_length=125,
        max_length_s=1,
        fft_window_size=256,
        frequency_min=50,
        frequency_max=4000,
        truncation="fusion" if fused else "rand_trunc",
        padding="repeatpad",
    )
    ClapProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(out)
    return out


def text_encoder(out: Path, pooling: str | None = None, seed: int = 0) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocab = {
        w: i
        for i, w in enumerate(
            [
                "[PAD]",
                "[UNK]",
                "[CLS]",
                "[SEP]",
                "[MASK]",
                *"abcdefghijklmnopqrstuvwxyz",
                *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
            ]
        )
    }
    torch.manual_seed(seed)
    BertModel(
        BertConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=len(vocab),
            max_position_embeddings=32,
        )
    ).save_pretrained(out)
    BertTokenizerFast(vocab=vocab, model_max_length=32).save_pretrained(out)
    if pooling:
        (out / "1_Pooling").mkdir()
        modes = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
        (out / "1_Pooling" / "config.json").write_text(
            json.dumps({"word_embedding_dimension": 32} | {v: k == pooling for k, v in modes.items()})
        )
    return out


OPEN_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.25],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "size": [32, 32],
}


def open_clip_dir(out: Path, seed: int = 0, **model_cfg: object) -> Path:
    import open_clip
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": OPEN_CLIP | model_cfg, "preprocess_cfg": PREPROCESS}
    (out / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{out}", load_weights=False)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / "open_clip_model.safetensors")
    return out
