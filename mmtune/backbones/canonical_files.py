"""Reduce the files of a backbone to what its embeddings depend on, for the fingerprint.

The result is computed from the files alone, without transformers, so that it is the same under each of its versions. It is also
the same if another version has written the files anew, with other formatting, a key for each default, or keys of its own:

- `config.json` without keys that have no effect on embeddings, and without values that are the architecture's defaults
- `preprocessor_config.json` and `processor_config.json` together, in the same way
- `tokenizer.json` without what is set again for each text (truncation, padding)
- `tokenizer_config.json` and `special_tokens_map.json` together, without keys that have no effect
- any other JSON file without its formatting, and any other file as it is

The defaults are those of `config_defaults.json`. They must never change, because fingerprints depend on them.
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from mmtune.contracts import JsonObject

NO_EFFECT = frozenset(
    """_name_or_path _commit_hash transformers_version architectures auto_map dtype torch_dtype use_bfloat16 return_dict torchscript
    output_attentions output_hidden_states use_return_dict use_cache problem_type task_specific_params id2label label2id num_labels
    finetuning_task prefix tokenizer_class tie_word_embeddings tie_encoder_decoder is_encoder_decoder add_cross_attention
    cross_attention_hidden_size chunk_size_feed_forward pruned_heads tf_legacy_loss gradient_checkpointing remove_invalid_values
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens decoder_start_token_id attn_implementation _attn_implementation _attn_implementation_autoset
    experts_implementation text_config_dict vision_config_dict audio_config_dict label_smoothing drop_path_rate drop_connect_rate
    layerdrop batch_norm_momentum""".split()
)
"""Keys of a configuration that embeddings do not depend on: they concern training, generation, other heads and output types."""
NO_EFFECT_PATTERN = re.compile(r"dropout|initializer|logit_scale_init|temperature_init|_loss|^mask_(time|feature)_")
PROCESSOR_NO_EFFECT = frozenset(
    """processor_class feature_extractor_type image_processor_type _processor_class _valid_processor_keys do_convert_rgb
    data_format input_data_format device return_tensors return_metadata disable_grouping auto_map""".split()
)
"""Keys of a processor that embeddings do not depend on. Images are always RGB. The type is kept as `type`."""
TOKENIZER_NO_EFFECT = frozenset(
    """name_or_path _name_or_path special_tokens_map_file tokenizer_file processor_class clean_up_tokenization_spaces is_local
    local_files_only backend chat_template use_fast added_tokens_decoder auto_map return_token_type_ids
    token_type_ids_pattern max_length stride truncation_strategy pad_to_multiple_of padding truncation""".split()
)
"""Keys of a tokenizer's configuration that embeddings do not depend on, or that tokenizer.json has, too."""
PROCESSOR_FILES: tuple[str, ...] = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES: tuple[str, ...] = ("tokenizer_config.json", "special_tokens_map.json")
NO_LIMIT = 1 << 20  # a tokenizer without a limit has a model_max_length of 1e30


def canonical_files(files: Mapping[str, bytes]) -> JsonObject:
    """Return what the embeddings depend on in `files`, {relative path: content}, as a JSON object."""
    found: JsonObject = {}
    folders: dict[str, dict[str, bytes]] = {}
    for name, data in files.items():
        path = PurePosixPath(name)
        folders.setdefault("" if path.parent == PurePosixPath() else f"{path.parent}/", {})[path.name] = data
    for folder, inside in folders.items():
        found |= {folder + key: value for key, value in _canonical_folder(inside).items()}
    return found


def normal(value: object) -> object:
    """Return a JSON value with tuples as lists, and whole numbers as integers."""
    if isinstance(value, dict):
        return {str(k): normal(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [normal(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def has_no_effect(key: str) -> bool:
    """Whether embeddings do not depend on a key of a configuration."""
    return key in NO_EFFECT or NO_EFFECT_PATTERN.search(key) is not None


def _canonical_folder(files: Mapping[str, bytes]) -> JsonObject:
    found: JsonObject = {}
    documents = {name: _document(data) for name, data in files.items() if name.endswith(".json") and name != "tokenizer.json"}
    for name, data in files.items():
        if name == "tokenizer.json":
            found[name] = _tokenizer(data)
        elif documents.get(name) is None:
            found[name] = hashlib.sha256(data).hexdigest()
    objects = {name: document for name, document in documents.items() if isinstance(document, dict)}
    found |= {name: normal(document) for name, document in documents.items() if isinstance(document, list)}
    if "model_type" in (config := objects.get("config.json", {})):
        del objects["config.json"]
        found["config.json"] = _config(config, str(config["model_type"]))
    processors = {n: objects.pop(n) for n in PROCESSOR_FILES if n in objects}
    if processors:
        found |= _processors(processors)
    settings = {n: objects.pop(n) for n in TOKENIZER_FILES if n in objects}
    if settings:
        found["tokenizer"] = _tokenizer_settings(settings)
    return found | {name: normal(document) for name, document in objects.items()}


def _document(data: bytes) -> "JsonObject | list[object] | None":
    """Return a JSON object or list; None for anything else."""
    try:
        document = json.loads(data)
    except ValueError:
        return None
    return document if isinstance(document, dict | list) else None


@functools.cache
def _defaults() -> dict[str, dict[str, JsonObject]]:
    document: dict[str, dict[str, JsonObject]] = json.loads((Path(__file__).parent / "config_defaults.json").read_text())
    return document


def _without_defaults(settings: JsonObject, defaults: JsonObject) -> JsonObject:
    """Leave out null, values that are the default, and False, 0 and empty values of keys without a known default."""
    kept = {}
    for key, value in settings.items():
        known = key in defaults
        if value is None or value == defaults.get(key) and known or not known and value in (False, 0, "", [], {}):
            continue
        kept[key] = value
    return kept


def _config(config: JsonObject, kind: str) -> JsonObject:
    """Reduce a configuration of the `model_type` `kind`, including those of inner models."""
    values: JsonObject = {}
    for key, value in config.items():
        if has_no_effect(key):
            continue
        if key.endswith("_config") and isinstance(value, dict):
            implied = f"{kind}_{key.removesuffix('_config')}_model"
            inner_kind = str(value.get("model_type") or implied)
            inner = _config(value, inner_kind)
            if inner["model_type"] == implied:
                del inner["model_type"]
            values[key] = inner
        else:
            values[key] = normal(value)
    return _without_defaults(values | {"model_type": kind}, _defaults()["configurations"].get(kind, {}))


def _processors(documents: dict[str, JsonObject]) -> JsonObject:
    """Reduce the image processor, feature extractor, ... of the two files that may contain them."""
    combined = dict(documents.get("processor_config.json", {}))
    if plain := documents.get("preprocessor_config.json"):
        sound = "ImageProcessor" not in str(plain.get("image_processor_type")) and "sampling_rate" in plain
        combined.setdefault("feature_extractor" if sound else "image_processor", plain)
    found: JsonObject = {}
    for key, value in combined.items():
        if key in ("image_processor", "feature_extractor") and isinstance(value, dict):
            found[key] = _processor(value)
        elif key not in PROCESSOR_NO_EFFECT and value not in (None, {}, []):
            found[f"processor.{key}"] = normal(value)
    return found


def _processor(settings: JsonObject) -> JsonObject:
    named = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    if "sampling_rate" not in settings:  # the feature extractors of earlier versions are today's image processors
        named = named.replace("FeatureExtractor", "ImageProcessor")
    named = named.removesuffix("Fast").removesuffix("Pil")
    values = {k: normal(v) for k, v in settings.items() if k not in PROCESSOR_NO_EFFECT}
    for key in ("size", "crop_size"):
        if isinstance(side := values.get(key), int):
            edge = key == "size" and named.startswith("CLIP")
            values[key] = {"shortest_edge": side} if edge else {"height": side, "width": side}
        elif isinstance(sides := values.get(key), dict):
            values[key] = {k: v for k, v in sides.items() if v is not None}
    return _without_defaults(values | {"type": named}, _defaults()["processors"].get(named, {}))


@functools.lru_cache(maxsize=16)
def _tokenizer(data: bytes) -> str:
    """Return the hash of what a tokenizer.json does to a text."""
    document = _document(data)
    if not isinstance(document, dict):
        return hashlib.sha256(data).hexdigest()
    for key in ("version", "truncation", "padding"):
        document.pop(key, None)
    model = document.get("model")
    if isinstance(model, dict):
        merges = [" ".join(m) if isinstance(m, list) else m for m in model.get("merges") or []]
        document["model"] = {k: v for k, v in model.items() if v not in (None, False, "")} | {"merges": merges}
    if isinstance(added := document.get("added_tokens"), list):
        document["added_tokens"] = sorted(added, key=lambda token: (token["id"], token["content"]))
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _tokenizer_settings(documents: dict[str, JsonObject]) -> JsonObject:
    """Reduce the settings of a tokenizer and its special tokens, which earlier versions of transformers keep in two files."""
    values: JsonObject = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in documents.get(name, {}).items():
            if key not in TOKENIZER_NO_EFFECT and value is not None:
                values[key] = value.get("content", normal(value)) if isinstance(value, dict) else normal(value)
    values["tokenizer_class"] = str(values.get("tokenizer_class", "")).removesuffix("Fast")
    limit = values.get("model_max_length")
    if isinstance(limit, int) and limit > NO_LIMIT:
        del values["model_max_length"]
    return _without_defaults(values, {"padding_side": "right", "truncation_side": "right"})
