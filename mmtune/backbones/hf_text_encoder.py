"""Load Hugging Face text encoders (AutoModel) with the pooling that their sentence-transformers config files specify.

Without such files, a causal decoder is pooled by its last token, and any other model by the mean of its tokens.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from mmtune.backbones import Backbone, Tower
from mmtune.backbones.checkpoint_files import read_saved_files, read_source_files
from mmtune.backbones.hf_text_module import is_decoder, load_text_module
from mmtune.backbones.hf_tokenizer import TokenPreprocess
from mmtune.backbones.hf_weights import attention_setter
from mmtune.backbones.token_pooling import check_modes, pool, read_modes
from mmtune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DROPPED = "dropped_layers.json"
"""File of an artifact that lists the layers that the checkpoint has no weights for and that no pooling uses."""


class Pooling(NamedTuple):
    """The settings in the sentence-transformers files of a checkpoint.

    modes: pooling modes, keys of POOLINGS; the results of several are concatenated
    max_length: limit of a text in tokens; None means the model's own limit
    files: contents of the files that the settings were read from, to be stored with the model
    """

    modes: list[str]
    max_length: int | None
    files: dict[str, bytes]


def load_text_encoder(directory: Path, config: "PretrainedConfig", load_weights: bool, pooling: str | None = None) -> Backbone:
    """Build a text encoder that pools the last hidden states of an AutoModel.

    directory: the checkpoint
    config: its configuration
    load_weights: False means to build the architecture only, with uninitialised weights
    pooling: a key of POOLINGS; None means the pooling of the checkpoint's files, without them "lasttoken" for a causal decoder,
        and "mean" for any other model
    """
    settings = _read_pooling(directory, config, pooling)
    dropped = ("pooler",) if (directory / DROPPED).is_file() else ()
    text = load_text_module(directory, "hf", load_weights, unused=dropped, optional=("pooler",))
    tokens = TokenPreprocess(text.tokenizer, config, limit=settings.max_length)
    tokens.has_mask = True  # pooling needs the mask, even if the tokenizer does not name it among the model's inputs
    modes = settings.modes

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        return pool(text.module(**inputs).last_hidden_state, inputs["attention_mask"], modes)

    files = read_source_files(directory) | settings.files
    if getattr(text.module, "pooler", text) is None:
        files[DROPPED] = b'["pooler"]\n'
    return Backbone(
        "hf",
        text.module,
        {"text": Tower("text", config.hidden_size * len(modes), tokens, encode, [text.module])},
        [],
        files,
        select_attention=attention_setter(text.module),
        use_cpu_kernels=True,
        files_of_format_1=lambda: read_saved_files(config, text.tokenizer) | settings.files,
        info={"pooling": "+".join(modes)},
    )


def _read_pooling(directory: Path, config: "PretrainedConfig", pooling: str | None) -> Pooling:
    """Read 1_Pooling/config.json and sentence_bert_config.json, as far as they exist.

    Raises ModelError for an unsupported pooling mode or module, because ignoring it would change the embeddings.
    """
    max_length, files = None, {}
    file = directory / "1_Pooling" / "config.json"
    if pooling is not None:
        check_modes([pooling], f"hf:{directory}")
        modes, files["1_Pooling/config.json"] = [pooling], (json.dumps({"pooling_mode": pooling}) + "\n").encode()
    elif file.is_file():
        modes, files["1_Pooling/config.json"] = read_modes(json.loads(file.read_text()), str(file)), file.read_bytes()
    else:
        modes = ["lasttoken" if is_decoder(config) else "mean"]
    if (directory / "2_Dense").is_dir() and not (directory / "modules.json").is_file():
        raise ModelError(
            f"hf:{directory}: a Dense module (2_Dense) without modules.json; copy modules.json from the checkpoint"
        )
    file = directory / "sentence_bert_config.json"
    if file.is_file():
        max_length, files[file.name] = json.loads(file.read_text()).get("max_seq_length"), file.read_bytes()
    return Pooling(modes, max_length, files)
