"""Re-rankers of two texts from transformers: a sequence classifier with one output, and how its tokenizer joins two texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmtune.backbones.checkpoint_files import Untyped
from mmtune.backbones.cross_encoders import load_pretrained
from mmtune.errors import ModelError, first_line


@dataclass(frozen=True)
class PairTemplate:
    """How a tokenizer joins two texts: special tokens before, between and after them, with the token types of all parts.

    before, between, after: (token ids, token types)
    types: token type of the first and of the second text
    """

    before: tuple[list[int], list[int]]
    between: tuple[list[int], list[int]]
    after: tuple[list[int], list[int]]
    types: tuple[int, int]

    @property
    def special(self) -> int:
        """Number of special tokens."""
        return sum(len(part[0]) for part in (self.before, self.between, self.after))

    @classmethod
    def of(cls, tokenizer: Untyped) -> "PairTemplate":
        """Read the template from the encoding of a pair of short texts."""
        encoded = tokenizer("a", "a", return_token_type_ids=True)
        ids, kinds = encoded["input_ids"], encoded["token_type_ids"]
        sides = encoded.sequence_ids(0)
        first = [n for n, side in enumerate(sides) if side == 0]
        second = [n for n, side in enumerate(sides) if side == 1]
        spans = [slice(0, first[0]), slice(first[-1] + 1, second[0]), slice(second[-1] + 1, len(ids))]
        before, between, after = ((list(ids[s]), list(kinds[s])) for s in spans)
        return cls(before, between, after, (kinds[first[0]], kinds[second[0]]))


class Tokens(NamedTuple):
    """Token ids of a text without special tokens, at most as many as a pair may have, and their number before that cut.

    The number decides which of two long texts is cut by one token more.
    """

    ids: list[int]
    length: int


class SequenceClassifier(nn.Module):
    """A sequence classifier of transformers with one output, which scores a pair of token sequences.

    module, tokenizer: the classifier and its tokenizer
    limit: most tokens of a pair, special tokens included
    """

    def __init__(self, module: nn.Module, tokenizer: Untyped, limit: int) -> None:
        super().__init__()
        self.module, self.tokenizer, self.limit = module, tokenizer, limit
        self.template = PairTemplate.of(tokenizer)
        self.from_left = getattr(tokenizer, "truncation_side", "right") == "left"
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()

    def tokens_of(self, text: str) -> Tokens:
        """Tokens of one text. Data threads may call this at the same time: it does not change the tokenizer, as a call of it would."""
        ids = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        kept = ids[max(0, len(ids) - self.limit) :] if self.from_left else ids[: self.limit]
        return Tokens(list(kept), len(ids))

    def truncated(self, first: Tokens, second: Tokens) -> tuple[list[int], list[int]]:
        """Shorten the longer text, then both, until the pair fits (`truncation="longest_first"` of transformers)."""
        room = self.limit - self.template.special
        if first.length + second.length <= room:
            return first.ids, second.ids
        short, long = sorted((first.length, second.length))
        long = short if short > room else max(short, room - short)
        if short + long > room:
            short, long = room // 2, room // 2 + room % 2
        lengths = (short, long) if first.length <= second.length else (long, short)
        a, b = (
            x.ids[max(0, len(x.ids) - n) :] if self.from_left else x.ids[:n]
            for x, n in zip((first, second), lengths, strict=True)
        )
        return a, b

    def forward(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> Tensor:
        """Score pairs of tokens: float32 [P]."""
        template, device = self.template, next(self.module.parameters()).device
        sequences, types = [], []
        for pair in pairs:
            a, b = self.truncated(*pair)
            sequences.append([*template.before[0], *a, *template.between[0], *b, *template.after[0]])
            kinds = [*template.before[1], *[template.types[0]] * len(a), *template.between[1]]
            types.append([*kinds, *[template.types[1]] * len(b), *template.after[1]])
        inputs: dict[str, list[list[int]]] = {"input_ids": sequences}
        if "token_type_ids" in self.tokenizer.model_input_names:
            inputs["token_type_ids"] = types
        padded = self.tokenizer.pad(inputs, padding=True, return_tensors="pt", verbose=False)
        logits: Tensor = self.module(**padded.to(device)).logits
        return logits[:, 0].float()


def load_sequence_classifier(model: str, most_tokens: int, seed: int) -> SequenceClassifier:
    """Load a classifier with one output; the classification head of a plain encoder is drawn by `seed`.

    model: a directory or hub name, with or without `hf:`
    most_tokens: most tokens of both texts together, special tokens included; a model's own smaller limit counts

    Raises ModelError for a classifier with several outputs, and for a tokenizer that cannot join two texts.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    name = model.removeprefix("hf:")
    config = load_pretrained(AutoConfig, name, "configuration")
    is_classifier = any("ForSequenceClassification" in a for a in config.architectures or [])
    if is_classifier and config.num_labels != 1:
        raise ModelError(f"{model}: this classifier has {config.num_labels} outputs; a re-ranker has one")
    tokenizer = load_pretrained(AutoTokenizer, name, "tokenizer")
    if tokenizer.pad_token_id is None or not tokenizer.is_fast:
        raise ModelError(f"{model}: its tokenizer has no padding token, or is no fast one; a re-ranker needs both")
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            module = AutoModelForSequenceClassification.from_pretrained(name, config=config, trust_remote_code=False)
        except (OSError, ValueError) as e:
            raise ModelError(f"{model}: cannot load a sequence classifier ({first_line(e)})") from None
    own = min(int(tokenizer.model_max_length), int(getattr(config, "max_position_embeddings", most_tokens) or most_tokens))
    limit = min(most_tokens, own)
    tokenizer.model_max_length = limit  # saved with the tokenizer, so that scoring truncates as training does
    return SequenceClassifier(module, tokenizer, limit)
