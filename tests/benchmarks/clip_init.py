"""A small random CLIP (9.9M parameters, 64 px, Hugging Face format), always the same; `MMTUNE_BENCH_INIT` names another."""

import gzip
import os
from pathlib import Path


def clip_init(directory: Path) -> Path:
    """Write it to `directory` (once) and return where it is."""
    if given := os.environ.get("MMTUNE_BENCH_INIT"):
        return Path(given)
    if (directory / "config.json").exists():
        return directory
    import open_clip
    import torch
    from open_clip.tokenizer import bytes_to_unicode
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast

    lines = gzip.open(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz").read().decode().split("\n")
    merges = [tuple(m.split()) for m in lines[1 : 49152 - 256 - 2 + 1]]
    chars = list(bytes_to_unicode().values())
    names = [*chars, *(c + "</w>" for c in chars), *("".join(m) for m in merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {t: i for i, t in enumerate(names)}
    tokenizer = CLIPTokenizerFast(vocab=vocab, merges=merges, model_max_length=48)
    start, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
    words = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, vocab_size=len(vocab))
    words |= dict(max_position_embeddings=48, bos_token_id=start, eos_token_id=end, pad_token_id=end, projection_dim=128)
    sight = dict(hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6, image_size=64)
    sight |= dict(patch_size=8, projection_dim=128)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(projection_dim=128, text_config=words, vision_config=sight)).save_pretrained(directory)
    side = {"height": 64, "width": 64}
    processor = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=side)
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(directory)
    return directory
