"""Load one tower of a dual encoder of transformers that was saved alone, with its projection (`...ModelWithProjection`).

SiglipTextModel is among them: its projection is a part of the text tower.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from mmtune.backbones import Backbone, Preprocess, Tower
from mmtune.backbones.checkpoint_files import Untyped, read_source_files
from mmtune.backbones.hf_audio_preprocess import ClapPreprocess
from mmtune.backbones.hf_image_preprocess import ImagePreprocess
from mmtune.backbones.hf_tokenizer import TokenPreprocess
from mmtune.backbones.hf_weights import attention_setter, build
from mmtune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class ProjectedTower(NamedTuple):
    """A model class of transformers with one tower and its projection.

    modality: what it encodes
    output: attribute of its output that holds the embeddings
    dim: key of its configuration with their dimension
    full_length: whether texts are padded to the token limit, as in training
    """

    modality: str
    output: str
    dim: str = "projection_dim"
    full_length: bool = False


PROJECTED_TOWERS = {
    "CLIPTextModelWithProjection": ProjectedTower("text", "text_embeds"),
    "CLIPVisionModelWithProjection": ProjectedTower("image", "image_embeds"),
    "ClapAudioModelWithProjection": ProjectedTower("audio", "audio_embeds"),
    "ClapTextModelWithProjection": ProjectedTower("text", "text_embeds"),
    "SiglipTextModel": ProjectedTower("text", "pooler_output", "projection_size", full_length=True),
}
"""Model class (`architectures` in config.json) -> its tower."""


def load_projected_tower(directory: Path, name: str, config: "PretrainedConfig", load_weights: bool) -> Backbone:
    """Build a tower with its projection.

    directory: the checkpoint
    name: its model class, a key of PROJECTED_TOWERS
    config: its configuration
    load_weights: False means to build the architecture only, with uninitialised weights
    """
    import transformers

    known = PROJECTED_TOWERS[name]
    if not hasattr(transformers, name):
        raise ModelError(f"hf:{directory}: transformers {transformers.__version__} has no {name}; install a newer transformers")
    module: Untyped = build(getattr(transformers, name), directory, config, load_weights)

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        embeddings: Tensor = getattr(module(**inputs), known.output)
        return embeddings

    return Backbone(
        "hf",
        module,
        {
            known.modality: Tower(
                known.modality, int(getattr(config, known.dim)), _preprocess(directory, known, config), encode, [module]
            )
        },
        [],
        read_source_files(directory),
        select_attention=attention_setter(module),
        use_cpu_kernels=True,
        info={"pooling": "projection"},
    )


def _preprocess(directory: Path, known: ProjectedTower, config: Untyped) -> Preprocess:
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

    if known.modality == "image":
        return ImagePreprocess(AutoImageProcessor.from_pretrained(directory, trust_remote_code=False))
    if known.modality == "audio":
        extractor: Untyped = AutoFeatureExtractor.from_pretrained(directory, trust_remote_code=False)
        return ClapPreprocess(extractor, bool(config.enable_fusion))
    tokenizer: Untyped = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    return TokenPreprocess(tokenizer, config, full_length=known.full_length)
