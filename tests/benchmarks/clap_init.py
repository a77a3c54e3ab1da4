"""A small random CLAP (2.0M parameters, 12 kHz, one second, Hugging Face format), always the same; `MMTUNE_BENCH_CLAP` names
another."""

import os
from pathlib import Path


def clap_init(directory: Path) -> Path:
    """Write it to `directory` (once) and return where it is."""
    if given := os.environ.get("MMTUNE_BENCH_CLAP"):
        return Path(given)
    if (directory / "config.json").exists():
        return directory
    import torch
    from open_clip.tokenizer import bytes_to_unicode
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizerFast

    names = ["<s>", "<pad>", "</s>", "<unk>", *bytes_to_unicode().values(), "<mask>"]
    tokenizer = RobertaTokenizerFast(vocab={n: i for i, n in enumerate(names)}, merges=[], model_max_length=96)
    words = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, vocab_size=len(names))
    words |= dict(max_position_embeddings=100, pad_token_id=1, projection_dim=128)
    sound = dict(hidden_size=192, patch_embeds_hidden_size=48, depths=[2, 2, 2], num_attention_heads=[2, 4, 8])
    sound |= dict(num_hidden_layers=3, spec_size=128, num_mel_bins=64, window_size=4, patch_size=4, patch_stride=[4, 4])
    sound |= dict(enable_fusion=False, projection_dim=128, num_classes=4)
    torch.manual_seed(0)
    ClapModel(ClapConfig(projection_dim=128, text_config=words, audio_config=sound)).save_pretrained(directory)
    extractor = ClapFeatureExtractor(
        feature_size=64,
        sampling_rate=12000,
        hop_length=60,
        max_length_s=1,
        fft_window_size=512,
        frequency_min=0,
        frequency_max=6000,
        truncation="rand_trunc",
        padding="repeatpad",
    )
    ClapProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(directory)
    return directory
