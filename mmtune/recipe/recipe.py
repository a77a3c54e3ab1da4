"""The recipe: typed, strict, YAML plus dotted overrides. An unknown key names the nearest valid one."""

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mmtune.errors import RecipeError
from mmtune.recipe.mining_options import MiningOptions
from mmtune.runtime import sizes

Size = int | str


def parse_size(value: Size, key: str) -> int:
    """Bytes of a size such as "256MB", "1GiB" or 0 (see `runtime.sizes`). RecipeError names `key`."""
    try:
        return sizes.parse_size(value, minimum=0)
    except ValueError as e:
        raise RecipeError(f"{key}: {e}") from None


class Strict(BaseModel):
    """A block of the recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class Source(Strict):
    """One training set. weight 2: every row twice an epoch; 0.5: half of the rows, other ones each epoch."""

    path: str
    weight: float = Field(1.0, gt=0)


class DataConfig(Strict):
    """What is trained on, what is validated on, and how rows are read."""

    train: str | list[str | Source]
    val: str | None = None
    general: str | None = Field(None, description="other data whose skill must stay: scored beside val after each epoch")
    workers: int = Field(2, ge=1, description="threads that decode and preprocess ahead of the step")
    cache: Size = Field("2GB", description="memory for decoded or preprocessed items, reused in later epochs; 0 = off")
    batches: Literal["random", "spread"] = Field("random", description="spread: rows of one group go to different batches")

    def sources(self) -> list[Source]:
        """`train` as a list of weighted sources."""
        entries = self.train if isinstance(self.train, list) else [self.train]
        return [e if isinstance(e, Source) else Source(path=e) for e in entries]

    @field_validator("train")
    @classmethod
    def _some(cls, value: Any) -> Any:
        if value in ("", []):
            raise ValueError("name your packed training data: data.train=DIR")
        return value


class TrainConfig(Strict):
    """How a step is taken and how long."""

    epochs: float = Field(10, gt=0)
    batch_size: int = Field(64, ge=2)
    micro_batch_size: int | None = Field(None, ge=1, description="gradient caching: rows in memory at once")
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.05, ge=0, description="not on norms, biases, embeddings of position, temperatures")
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = Field(0.05, ge=0, description="below 1: share of all steps; else a number of steps")
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: float | None = Field(1.0, gt=0)
    scale_lr: float = Field(1.0, ge=0, description="factor on lr for the temperatures")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = Field(False, description="torch.compile the towers' blocks; the first steps wait for it")
    recompute: bool = Field(False, description="activation checkpointing: a block's insides are computed twice, not kept")
    seed: int = 0
    checkpoint_every: int | None = Field(None, ge=1, description="steps; always also after each epoch")
    keep: int = Field(3, ge=1, description="best checkpoints kept, beside the last")
    metric: str = Field("map", description="validation metric, averaged over the trained directions")
    patience: int | None = Field(None, ge=1, description="stop after this many epochs without a better metric")
    ema: float | None = Field(None, gt=0, lt=1, description="what is validated and saved is a running mean, e.g. 0.999 a step")
    shard: bool = Field(False, description="of several processes each holds a share of the blocks' weights and state (FSDP2)")
    l2_start: float = Field(0.0, ge=0, description="pull towards the starting weights, a share of lr a step (L2-SP)")


class Tuning(Strict):
    """How much of one tower is trained."""

    how: Literal["full", "head", "lora", "qlora", "partial", "frozen"] = "full"
    rank: int = Field(16, ge=1, description="lora, qlora")
    alpha: float | None = Field(None, gt=0, description="lora, qlora: the delta's factor is alpha / rank; default 2 * rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="lora, qlora")
    targets: list[str] | None = Field(None, description="lora, qlora: ends of layer names; default: all in the blocks")
    blocks: int | None = Field(None, ge=1, description="partial: the last n, and what follows them; default 2")
    norms: bool = Field(False, description="partial: the normalisation layers (and no block, unless `blocks` says so)")
    layer_decay: float = Field(1.0, gt=0, le=1, description="each layer's lr is this share of the next one's")
    head_first: float = Field(0.0, ge=0, description="epochs in which only a head learns, before those of `train` (LP-FT)")
    head_lr: float | None = Field(None, gt=0, description="the learning rate of these; default: train.lr")


class Interpolate(Strict):
    """Weights between base and tuned (WiSE-FT): coefficient 0 is the base, 1 the tuned model."""

    coefficients: list[Annotated[float, Field(ge=0, le=1)]] = Field([i / 10 for i in range(11)], min_length=2)
    general_weight: float = Field(1.0, ge=0, description="picked: the highest domain + general_weight * general")
    keep: float | None = Field(None, gt=0, le=1, description="picked: the best domain that keeps this share of the general")


class MatryoshkaConfig(Strict):
    """Prefixes of the vectors that are trained to be vectors of their own; the full width always is."""

    dims: list[int] = Field(min_length=1)
    weights: list[float] | None = Field(None, description="one a dim; default 1 each, as the full width")


class MemoryConfig(Strict):
    """Cross-batch memory: vectors of earlier batches as further negatives."""

    size: int = Field(ge=1, description="items of each modality that are remembered")
    start: int = Field(0, ge=0, description="steps before they are used")


class RunConfig(Strict):
    """Where the run lives."""

    dir: str = "runs/run"


class Recipe(Strict):
    """A whole run. `model` is a MODEL string or {modality: MODEL}."""

    model: str | dict[str, str]
    data: DataConfig
    pairs: list[tuple[str, str]] | None = Field(None, description="default: every pair the model and the data share")
    objective: list[dict[str, Any]] = [{"loss": "auto"}]
    teachers: dict[str, dict[str, Any]] = Field({}, description="name -> model: MODEL, scorer: NAME, or scores: FILE")
    prompts: dict[str, Any] | None = Field(None, description="{NAME: {ROLE: template}} around words; default: the model's own")
    windows: dict[str, Literal["mean", "max"]] | None = Field(
        None, description="{NAME: how the windows of a long signal become one vector}; default: the model's own, mean"
    )
    matryoshka: MatryoshkaConfig | None = None
    memory: MemoryConfig | None = None
    augment: dict[str, dict[str, Any]] = {}
    tune: str | dict[str, Any] = Field(
        "full", description="full, head, lora, qlora, partial, frozen; or {MODALITY: one of them}"
    )
    interpolate: bool | Interpolate = False
    mining: MiningOptions | None = Field(None, description="hard negatives, mined anew in rounds with the weights of then")
    gate: dict[str, Any] | None = Field(None, description="what `compare` and `report` demand of the tuned model")
    train: TrainConfig = TrainConfig()
    run: RunConfig = RunConfig()


def _blocks(annotation: Any) -> list[type[BaseModel]]:
    """The recipe blocks inside a type such as `str | list[str | Source]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return [b for a in typing.get_args(annotation) for b in _blocks(a)]
    return []


def _check_keys(block: type[BaseModel], value: Any, where: str, path: str) -> None:
    """RecipeError for the first unknown key, with the nearest valid one, before pydantic's longer story."""
    for key, inner in value.items():
        name = f"{path}{key}"
        if key not in block.model_fields:
            near = difflib.get_close_matches(str(key), block.model_fields, 1, 0.5)
            hint = f"did you mean {path}{near[0]}?" if near else f"known: {', '.join(block.model_fields)}"
            raise RecipeError(f"{where}: unknown key {name}; {hint}")
        for nested in _blocks(block.model_fields[key].annotation):
            for item in inner if isinstance(inner, list) else [inner]:
                if isinstance(item, dict):
                    _check_keys(nested, item, where, f"{name}.")


def _without_blanks(value: Any) -> Any:
    """Keys whose value is still "???" (to be filled in) count as missing."""
    if isinstance(value, dict):
        return {k: _without_blanks(v) for k, v in value.items() if v != "???"}
    return value


def _deepest(problems: list[Any]) -> Any:
    """The first key's problem; where a value may be of several types, that of the type it came nearest to."""
    first = [p for p in problems if p["loc"][0] == problems[0]["loc"][0]]
    return max(first, key=lambda p: len(p["loc"]))


def _is_type(part: str) -> bool:
    """Whether a part of pydantic's path is the alternative of a union ("str", "Source", "list[...]"), no key."""
    return part[0].isupper() or "[" in part or part in ("str", "bool", "int", "float")


def parse(document: Any, where: str = "recipe") -> Recipe:
    """A checked Recipe from plain data. RecipeError: one line with the key and what is wrong."""
    if not isinstance(document, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of keys; this is {type(document).__name__}")
    document = _without_blanks(document)
    _check_keys(Recipe, document, where, "")
    try:
        return Recipe.model_validate(document)
    except ValidationError as e:
        problem = _deepest(e.errors())
        key = ".".join(str(p) for p in problem["loc"] if not _is_type(str(p)))
        absent = f"is missing: give it in the recipe, or as {key}=VALUE after it"
        what = absent if problem["type"] == "missing" else problem["msg"]
        given = "" if problem["type"] == "missing" or isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
        raise RecipeError(f"{where}: {key}: {what}{given}") from None


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply `key.sub=value` overrides (values are YAML). RecipeError names file and key."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for item in overrides:
        if "=" not in item:
            raise RecipeError(f"{item!r} is not an override; write key.sub=value, e.g. train.epochs=12")
    try:
        merged = OmegaConf.load(path)
        for item in overrides:  # one by one, so that a mapping replaces a string and the error names its own override
            key, _, text = item.partition("=")
            value = OmegaConf.from_dotlist([f"value={text}"]).get("value") if text else ""
            OmegaConf.update(merged, key, value, force_add=True)
        document = OmegaConf.to_container(merged, resolve=True)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (YAMLError, OmegaConfBaseException, OSError) as e:
        raise RecipeError(f"{path}: {' '.join(str(e).split())}") from None
    return parse(document, str(path))


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    import yaml

    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
