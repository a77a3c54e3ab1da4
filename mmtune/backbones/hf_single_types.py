"""Which architectures of transformers are single encoders of images, sounds or texts."""

SOUND_MODELS = (
    "audio-spectrogram-transformer",
    "data2vec-audio",
    "hubert",
    "sew",
    "sew-d",
    "unispeech",
    "unispeech-sat",
    "wav2vec2",
    "wav2vec2-bert",
    "wav2vec2-conformer",
    "wavlm",
    "whisper",
)
"""`model_type` of the sound encoders that are supported."""
VISION_TOWERS = ("clip_vision_model", "dinov3_convnext", "dinov3_vit", "ijepa", "siglip_vision_model")
"""`model_type` of image encoders that transformers has no image classifier for."""
TEXT_TOWERS = ("clip_text_model", "siglip_text_model")
NOT_SINGLE = (
    *("perceiver", "vit_mae", "siglip", "siglip2", "metaclip_2", "clip", "timm_wrapper", "shieldgemma2", "bit"),
    *("dinat", "hgnet_v2", "imagegpt", "pp_lcnet", "textnet"),
)
"""`model_type`s with an image classifier in transformers that are not supported.

They are no encoders with one input, need other inputs (ImageGPT: colour clusters; TextNet: images of varying size), have no
AutoModel (HGNet, PP-LCNet), or need a library that has no wheels (DiNAT: natten).
"""


def modality_of(kind: str) -> str | None:
    """Return the modality that a single encoder with this `model_type` encodes; None if it is not supported."""
    from transformers.models.auto import modeling_auto as auto

    if kind in SOUND_MODELS:
        return "audio"
    if kind in VISION_TOWERS or kind in auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES and kind not in NOT_SINGLE:
        return "image"
    causal, masked = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    classified, generated = (
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    if kind in TEXT_TOWERS or any(kind in names for names in (causal, masked, classified, generated)):
        return "text"
    return None
