"""Small cross-encoders and matchers with seeded random weights, saved as their own libraries save them."""

from pathlib import Path

import torch

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] [DEC] [ENC] a red green blue white round square shoe bag of on".split()
SIZES = dict(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)


def tokenizer(folder: Path):
    from transformers import BertTokenizerFast

    made = BertTokenizerFast(vocab={w: i for i, w in enumerate(WORDS)})
    made.save_pretrained(folder)
    return made


def cross_encoder(folder: Path) -> str:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(num_labels=1, **SIZES)).save_pretrained(folder)
    tokenizer(folder)
    return str(folder)


def matcher(folder: Path) -> str:
    from transformers import BlipConfig, BlipForImageTextRetrieval, BlipImageProcessor, BlipProcessor

    torch.manual_seed(0)
    sight = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16)
    words = dict(SIZES, encoder_hidden_size=16, bos_token_id=5, sep_token_id=3, max_position_embeddings=32)
    config = BlipConfig(text_config=words, vision_config=sight, projection_dim=8, image_text_hidden_size=8)
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer(folder)).save_pretrained(folder)
    return str(folder)
