"""Load Hugging Face text encoders (AutoModel) with the pooling that their sentence-transformers config files specify.

Without such files, mean pooling is used.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from mmtune.backbones import Backbone, Tower
from mmtune.backbones.checkpoint_files import read_saved_files
from mmtune.backbones.hf_tokenizer import TokenPreprocess
from mmtune.backbones.hf_weights import attention_setter, build
from mmtune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

POOLINGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
"""Pooling mode -> its key in the 1_Pooling/config.json of sentence-transformers."""
MODULES = ("Transformer", "Pooling", "Normalize")
"""Module types accepted in modules.json. Normalize needs no handling: embeddings are always L2-normalised."""


class Pooling(NamedTuple):
    """The settings in the sentence-transformers files of a checkpoint.

    mode: pooling mode, a key of POOLINGS
    max_length: limit of a text in tokens; None means the model's own limit
    files: contents of the files that the settings were read from, to be stored with the model
    """

    mode: str
    max_length: int | None
    files: dict[str, bytes]


def load_text_encoder(directory: Path, config: "PretrainedConfig", load_weights: bool) -> Backbone:
    """Build a text encoder that pools the last hidden states of an AutoModel.

    directory: the checkpoint
    config: its configuration
    load_weights: False means to build the architecture only, with uninitialised weights
    """
    from transformers import AutoModel, AutoTokenizer

    pooling = _read_pooling(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    module = build(AutoModel, directory, config, load_weights)
    tokens = TokenPreprocess(tokenizer, config, limit=pooling.max_length)
    tower = Tower("text", config.hidden_size, tokens, _pooled(module, pooling.mode), [module])
    return Backbone(
        "hf",
        module,
        {"text": tower},
        [],
        read_saved_files(config, tokenizer) | pooling.files,
        select_attention=attention_setter(module),
        use_cpu_kernels=True,
        info={"pooling": pooling.mode},
    )


def _read_pooling(directory: Path) -> Pooling:
    """Read modules.json, 1_Pooling/config.json and sentence_bert_config.json, as far as they exist.

    Raises ModelError for an unsupported module or pooling mode, because ignoring it would change the embeddings.
    """
    mode, max_length, files = "mean", None, {}
    file = directory / "modules.json"
    if file.is_file():
        kinds = [str(m.get("type", "")).rpartition(".")[2] for m in json.loads(file.read_text())]
        if unknown := [k for k in kinds if k not in MODULES]:
            raise ModelError(
                f"hf:{directory}: modules.json lists a {unknown[0]} module, which is not supported; use a checkpoint without it"
            )
    file = directory / "1_Pooling" / "config.json"
    if file.is_file():
        document = json.loads(file.read_text())
        keys = [k for k, v in document.items() if k.startswith("pooling_mode_") and v is True]
        names = {key: m for m, key in POOLINGS.items()}
        chosen = [names.get(k, k) for k in keys] or [document.get("pooling_mode", "mean")]
        if len(chosen) != 1 or chosen[0] not in POOLINGS:
            raise ModelError(f"{file}: pooling {chosen} is not supported; known: {', '.join(POOLINGS)}")
        mode, files["1_Pooling/config.json"] = chosen[0], file.read_bytes()
    if (directory / "2_Dense").is_dir():
        raise ModelError(
            f"hf:{directory}: a Dense module after pooling (2_Dense) is not supported; use a checkpoint without one"
        )
    file = directory / "sentence_bert_config.json"
    if file.is_file():
        max_length, files[file.name] = json.loads(file.read_text()).get("max_seq_length"), file.read_bytes()
    return Pooling(mode, max_length, files)


def _pooled(module: nn.Module, mode: str) -> Callable[[dict[str, Tensor]], Tensor]:
    """Return the function from tokenized inputs to pooled embeddings [U, C]."""

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        hidden_BTC = module(**inputs).last_hidden_state
        if mode == "cls":
            return hidden_BTC[:, 0]
        mask_BT1 = inputs["attention_mask"].unsqueeze(-1).to(hidden_BTC.dtype)
        if mode == "max":
            return hidden_BTC.masked_fill(mask_BT1 == 0, float("-inf")).amax(1)
        return (hidden_BTC * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1e-9)

    return encode
