"""The dual encoders of transformers that can be loaded, and the names that transformers uses in each of them."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor

from mmtune.backbones.checkpoint_files import Untyped

Encode: TypeAlias = Callable[[dict[str, Tensor]], Tensor]
Modules: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]


def pooled_features(module: Untyped, modality: str) -> Encode:
    """Return the encode function of models whose `get_*_features` methods return the projected embedding [U, dim]."""
    method = getattr(module, f"get_{modality}_features")
    return lambda inputs: method(**inputs).pooler_output


def first_token_features(module: Untyped, modality: str) -> Encode:
    """Return the encode function of models whose `get_*_features` methods return projected embeddings of all tokens."""
    method = getattr(module, f"get_{modality}_features")
    return lambda inputs: method(**inputs).pooler_output[:, 0]


def retrieval_head_features(module: Untyped, modality: str) -> Encode:
    """Return the encode function of BlipForImageTextRetrieval: the projection of the first token, without its matching head."""
    encoder, projection = ("vision_model", "vision_proj") if modality == "image" else ("text_encoder", "text_proj")
    # attributes are read at each call, because a tower that is not used is freed after loading
    return lambda inputs: getattr(module, projection)(getattr(module, encoder)(**inputs).last_hidden_state[:, 0])


def projection_dims(config: Untyped) -> tuple[int, int]:
    """Both towers are projected to `projection_dim` dimensions."""
    return int(config.projection_dim), int(config.projection_dim)


def hidden_dims(config: Untyped) -> tuple[int, int]:
    """The towers have no projection, except that a text tower's head may have `projection_size` outputs."""
    width = int(config.vision_config.hidden_size)
    return width, int(getattr(config.text_config, "projection_size", None) or config.text_config.hidden_size)


class DualEncoder(NamedTuple):
    """The names that transformers uses in one of its dual encoders, and how texts are padded for it.

    model: name of the model class
    modalities: modality of the first tower and of the text tower
    modules: attributes of the model that hold the parameters of the first tower, and those of the text tower
    first_token_encoder: attribute of the encoder of which only the first token's output is used; "" if there is none
    features: returns the encode function of one modality
    dims: embedding dimensions of the first tower and of the text tower
    full_length: whether texts are padded to the token limit, as in training; otherwise to the longest text of the batch
    max_tokens: the token limit of the model's processor, if it is lower than that of the model
    causal_text: whether attention over texts has to be made causal: transformers' AIMv2 forgets that if no text of a batch is padded
    unused: (suffixes of) names of inner modules that the embeddings do not depend on; they are removed
    other_architectures: further values of `architectures` in config.json whose checkpoints contain this model
    """

    model: str
    modalities: tuple[str, str] = ("image", "text")
    modules: Modules = (("vision_model", "visual_projection"), ("text_model", "text_projection"))
    first_token_encoder: str = ""
    features: Callable[[Untyped, str], Encode] = pooled_features
    dims: Callable[[Untyped], tuple[int, int]] = projection_dims
    full_length: bool = False
    max_tokens: int | None = None
    causal_text: bool = False
    unused: tuple[str, ...] = ()
    other_architectures: tuple[str, ...] = ()


WITHOUT_PROJECTION: Modules = (("vision_model",), ("text_model",))

DUAL_ENCODERS: dict[str, DualEncoder] = {
    "clip": DualEncoder("CLIPModel", first_token_encoder="vision_model"),
    "siglip": DualEncoder("SiglipModel", modules=WITHOUT_PROJECTION, dims=hidden_dims, full_length=True),
    "clap": DualEncoder(
        "ClapModel",
        ("audio", "text"),
        (("audio_model", "audio_projection"), ("text_model", "text_projection")),
        "text_model",
    ),
    "aimv2": DualEncoder("Aimv2Model", causal_text=True),
    "align": DualEncoder(
        "AlignModel",
        modules=(("vision_model",), ("text_model", "text_projection")),
        dims=lambda config: (int(config.vision_config.hidden_dim), int(config.projection_dim)),
        max_tokens=64,
    ),
    "altclip": DualEncoder("AltCLIPModel"),
    "blip": DualEncoder(
        "BlipForImageTextRetrieval",
        modules=(("vision_model", "vision_proj"), ("text_encoder", "text_proj")),
        features=retrieval_head_features,
        unused=("itm_head", "crossattention"),
        dims=lambda config: (int(config.image_text_hidden_size), int(config.image_text_hidden_size)),
    ),
    "chinese_clip": DualEncoder("ChineseCLIPModel"),
    "clipseg": DualEncoder("CLIPSegModel", other_architectures=("CLIPSegForImageSegmentation",)),
    "flava": DualEncoder(
        "FlavaModel",
        modules=(("image_model", "image_projection"), ("text_model", "text_projection")),
        features=first_token_features,
        unused=("multimodal_model", "image_to_mm_projection", "text_to_mm_projection"),
        other_architectures=("FlavaForPreTraining",),
    ),
    "groupvit": DualEncoder("GroupViTModel"),
    "metaclip_2": DualEncoder("MetaClip2Model"),
    "owlv2": DualEncoder("Owlv2Model", other_architectures=("Owlv2ForObjectDetection",)),
    "owlvit": DualEncoder("OwlViTModel", other_architectures=("OwlViTForObjectDetection",)),
    "siglip2": DualEncoder("Siglip2Model", modules=WITHOUT_PROJECTION, dims=hidden_dims, full_length=True, max_tokens=64),
    "tipsv2": DualEncoder("Tipsv2Model", modules=WITHOUT_PROJECTION, dims=hidden_dims, max_tokens=64),
    "vision-text-dual-encoder": DualEncoder("VisionTextDualEncoderModel"),
}
"""`model_type` in config.json -> the names used in that dual encoder."""
