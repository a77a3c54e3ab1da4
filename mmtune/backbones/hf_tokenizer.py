"""Tokenize texts with a transformers tokenizer, one text at a time."""

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class TokenPreprocess:
    """Turn one text into {"input_ids": [T]}, truncated to the token limit; `collate` pads the texts of a batch.

    With an attention mask, padding is on the right, whatever the tokenizer's side: so the embedding of a text depends neither on the
    side nor on the other texts of its batch. Padding stays where the tokenizer has it in towers that were trained with it: those that
    have no mask, or that pad every text to the limit.

    tokenizer: the checkpoint's tokenizer
    config: configuration of the text model
    limit: maximum number of tokens; None means the number of the model's position embeddings
    full_length: whether to pad every batch to the limit (SigLIP was trained so) instead of to its longest text
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        config: "PretrainedConfig",
        limit: int | None = None,
        full_length: bool = False,
    ):
        self.tokenizer, self.full_length = tokenizer, full_length
        positions = int(getattr(config, "max_position_embeddings", 512))
        if "roberta" in str(config.model_type) or config.model_type in ("clap_text_model", "xlm-roberta", "mpnet"):
            positions -= int(config.pad_token_id) + 1  # in these models, positions are counted from pad_token_id + 1
        # a tokenizer without a limit has a huge float as its model_max_length, which does not fit into an integer
        self.limit = min(positions, int(min(tokenizer.model_max_length, 1 << 20)), limit or positions)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.has_mask = "attention_mask" in tokenizer.model_input_names
        self.pad_left = tokenizer.padding_side == "left" and (full_length or not self.has_mask)

    def __call__(self, signal: str, rng: random.Random | None = None) -> dict[str, Tensor]:
        ids = self.tokenizer(signal, truncation=True, max_length=self.limit)["input_ids"]
        return {"input_ids": torch.tensor(ids, dtype=torch.long)}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        length = self.limit if self.full_length else max(len(i["input_ids"]) for i in items)
        ids = torch.full((len(items), length), self.pad, dtype=torch.long)
        mask = torch.zeros((len(items), length), dtype=torch.long)
        for row, item in enumerate(items):
            n = len(item["input_ids"])
            used = slice(length - n, length) if self.pad_left else slice(n)
            ids[row, used], mask[row, used] = item["input_ids"], 1
        return {"input_ids": ids} | ({"attention_mask": mask} if self.has_mask else {})

    def lengths(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """Number of tokens of each row (see `Preprocess`); None for towers whose embeddings depend on padding."""
        mask = inputs.get("attention_mask")
        return None if mask is None or self.full_length or self.pad_left else mask.sum(1)

    def cut(self, inputs: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
        """The inputs without the positions after `length`."""
        return {k: v[:, :length] if k in ("input_ids", "attention_mask") else v for k, v in inputs.items()}
