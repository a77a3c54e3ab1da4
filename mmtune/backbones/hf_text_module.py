"""Load the transformer and the tokenizer of a text encoder: BERT-like encoders, the encoders of T5, and decoders."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from mmtune.backbones.checkpoint_files import Untyped
from mmtune.backbones.hf_weights import build

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
}
"""`model_type` of encoder-decoder models -> the class that holds the encoder alone."""


class TextModule(NamedTuple):
    """A transformer with its configuration and tokenizer."""

    module: nn.Module
    config: "PretrainedConfig"
    tokenizer: "PreTrainedTokenizerBase"


def load_text_module(
    directory: Path, family: str, load_weights: bool, unused: Sequence[str] = (), optional: Sequence[str] = ()
) -> TextModule:
    """Load the transformer and the tokenizer in `directory`.

    family: the model family, for error messages
    load_weights: False means to build the architecture only, with uninitialised weights
    unused, optional: attributes of the transformer to remove, as in `build`
    """
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    cls: Untyped = getattr(transformers, ENCODERS.get(config.model_type, "AutoModel"))
    module: Untyped = build(cls, directory, config, load_weights, unused=unused, optional=optional, family=family)
    module = getattr(module, "text_model", module)  # earlier versions of transformers nest CLIP's tower in another module
    module.config.use_cache = False  # decoders would return the keys and values of all their layers
    return TextModule(module, config, tokenizer)


def is_decoder(config: "PretrainedConfig") -> bool:
    """Whether a text model is a causal decoder, whose last token is the only one that has seen the whole text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def lower_cased(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make a tokenizer lower-case its texts first, in place, as `do_lower_case` of sentence-transformers does."""
    from tokenizers.normalizers import Lowercase
    from tokenizers.normalizers import Sequence as NormalizerSequence

    backend: Untyped = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError("do_lower_case needs a fast tokenizer (tokenizer.json)")
    given: Untyped = backend.normalizer
    parts: list[Untyped] = [given] if given is not None else []
    if isinstance(given, NormalizerSequence):
        parts = [given[i] for i in range(len(given))]
    if not any(isinstance(p, Lowercase) for p in parts):
        backend.normalizer = NormalizerSequence([Lowercase(), *parts])
