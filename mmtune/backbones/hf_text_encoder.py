"""Text encoders of transformers, with the pooling that sentence-transformers' files name (mean without them)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from mmtune.backbones import Backbone, Tower
from mmtune.backbones.checkpoint_files import Untyped, read_saved_files
from mmtune.backbones.hf_tokenizer import TokenPreprocess
from mmtune.backbones.hf_weights import attention_switch, build
from mmtune.errors import ModelError

POOLINGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
"""Pooling -> its key in sentence-transformers' 1_Pooling/config.json."""
MODULES = ("Transformer", "Pooling", "Normalize")
"""Modules of sentence-transformers that can be followed: vectors are normalised in any case."""


class Pooling(NamedTuple):
    """mode: a key of POOLINGS; max_length: tokens, None for the model's own limit; files to keep with the model."""

    mode: str
    max_length: int | None
    files: dict[str, bytes]


def load_text_encoder(directory: Path, config: Untyped, weights: bool) -> Backbone:
    """AutoModel with pooling over its last hidden states."""
    from transformers import AutoModel, AutoTokenizer

    pooling = _read_pooling(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    module = build(AutoModel, directory, config, weights)
    tokens = TokenPreprocess(tokenizer, config, limit=pooling.max_length)
    tower = Tower("text", config.hidden_size, tokens, _pooled(module, pooling.mode), [module])
    return Backbone(
        "hf",
        module,
        {"text": tower},
        [],
        read_saved_files(config, tokenizer) | pooling.files,
        select_attention=attention_switch(module),
        use_cpu_kernels=True,
        info={"pooling": pooling.mode},
    )


def _read_pooling(directory: Path) -> Pooling:
    """From `modules.json`, `1_Pooling/config.json` and `sentence_bert_config.json`, if there. ModelError for modules and modes
    that are not supported: without them the vectors would be others."""
    mode, max_length, files = "mean", None, {}
    file = directory / "modules.json"
    if file.is_file():
        kinds = [str(m.get("type", "")).rpartition(".")[2] for m in json.loads(file.read_text())]
        if unknown := [k for k in kinds if k not in MODULES]:
            raise ModelError(
                f"hf:{directory}: modules.json has a {unknown[0]} module, which is not supported; fold it into the encoder first"
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
        raise ModelError(f"hf:{directory}: a Dense module after pooling is not supported; fold it into the encoder first")
    file = directory / "sentence_bert_config.json"
    if file.is_file():
        max_length, files[file.name] = json.loads(file.read_text()).get("max_seq_length"), file.read_bytes()
    return Pooling(mode, max_length, files)


def _pooled(module: nn.Module, mode: str) -> Callable[[dict[str, Tensor]], Tensor]:
    def encode(inputs: dict[str, Tensor]) -> Tensor:
        hidden_BTC = module(**inputs).last_hidden_state
        if mode == "cls":
            return hidden_BTC[:, 0]
        mask_BT1 = inputs["attention_mask"].unsqueeze(-1).to(hidden_BTC.dtype)
        if mode == "max":
            return hidden_BTC.masked_fill(mask_BT1 == 0, float("-inf")).amax(1)
        return (hidden_BTC * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1e-9)

    return encode
