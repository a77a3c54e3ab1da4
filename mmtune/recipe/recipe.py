"""The recipe of a training run: a typed model of its blocks, and validation across blocks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from mmtune.errors import RecipeError
from mmtune.recipe.augment_block import AugmentBlock
from mmtune.recipe.batches_block import GroupBatches
from mmtune.recipe.block import RecipeBlock, check, invalid, missing_key
from mmtune.recipe.cross_encoder_block import CrossEncoderBlock
from mmtune.recipe.data_block import DataConfig
from mmtune.recipe.gate_block import Gate, with_budget
from mmtune.recipe.heads_block import HeadsBlock
from mmtune.recipe.mining_block import MiningOptions
from mmtune.recipe.objective_block import AutoTerm, ObjectiveTerms
from mmtune.recipe.prompts_block import PromptsBlock, WindowPooling
from mmtune.recipe.recipe_file import FORMAT, FORMAT_KEY, blank_keys, read_document, without_blanks
from mmtune.recipe.retention_block import Retention
from mmtune.recipe.run_block import RunConfig
from mmtune.recipe.runtime_block import RuntimeConfig
from mmtune.recipe.teachers_block import Teacher
from mmtune.recipe.train_block import TrainConfig
from mmtune.recipe.training_blocks import Interpolate, MatryoshkaConfig, MemoryConfig
from mmtune.recipe.tune_block import FullTuning, TuneBlock
from mmtune.runtime.format_number import check_format

_EmptyIsNone = BeforeValidator(lambda value: value or None)


class Recipe(RecipeBlock):
    """All settings of a training run. `Recipe.load` reads them from a YAML file, `Recipe.parse` from a mapping."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"windows": "window_pooling"}

    model: str | dict[str, str] = Field(
        description="base model: an artifact or run directory, hf:NAME, open_clip:NAME/TAG, timm:NAME, st:NAME, beats:FILE, "
        "onnx:FILE or tflite:FILE; or one model per "
        "tower: {MODALITY: MODEL}"
    )
    data: DataConfig = Field(description="training and validation data")
    pairs: list[tuple[str, str]] | None = Field(
        None, description="pairs of modalities to train; null: every pair that both the model and the data have"
    )
    objective: ObjectiveTerms = Field([AutoTerm()], description="losses whose weighted sum is minimised")
    cross_encoder: CrossEncoderBlock | None = Field(
        None, description="train a re-ranker of pairs on the towers of `model`, in place of the dual encoder and of `objective`"
    )
    teachers: dict[str, Teacher] = Field({}, description="name -> teacher, used by distillation losses and as a guide")
    prompts: PromptsBlock | None = Field(
        None,
        description="modality -> role (default, query or zero_shot) -> template or list of templates with {} in place of the text; "
        "null: the prompts of the base model",
    )
    window_pooling: WindowPooling | None = Field(
        None,
        description="modality -> how the embeddings of the windows of a long signal are combined; null: as in the base model, by "
        "default mean",
    )
    matryoshka: MatryoshkaConfig | None = Field(None, description="also train truncated embeddings (Matryoshka)")
    memory: MemoryConfig | None = Field(None, description="use embeddings of earlier batches as negatives (cross-batch memory)")
    augment: AugmentBlock = Field({}, description="modality -> augmentation of its training signals")
    heads: HeadsBlock = Field(
        {},
        description="modality -> the layers between its tower and the shared space; without an entry: as in the base model, with a "
        "linear head where the dimensions differ",
    )
    tune: TuneBlock = Field(FullTuning(), description="which weights of each tower are trained")
    interpolate: bool | Interpolate = Field(
        False, description="interpolate between the weights of the base and the tuned model (WiSE-FT); true: with the defaults"
    )
    retention: Retention | None = Field(None, description="forgetting budget: how much the model may lose on other data")
    mining: MiningOptions | None = Field(None, description="mine hard negatives, repeatedly during training")
    gate: Annotated[Gate | None, _EmptyIsNone] = Field(
        None, description="conditions under which `compare` and `report` accept the tuned model"
    )
    train: TrainConfig = Field(TrainConfig(), description="length, optimizer, precision and checkpoints of training")
    run: RunConfig = Field(RunConfig(), description="run directory, trackers and callbacks")
    runtime: RuntimeConfig = Field(RuntimeConfig(), description="threads of training steps")

    @model_validator(mode="after")
    def _retention_is_measured_and_guarded(self) -> "Recipe":
        """Set data.retention, the interpolation and the gate's guard as the block `retention` says, unless they are given."""
        if self.retention is None:
            return self
        if self.data.retention not in (None, self.retention.data):
            raise invalid(f"retention.data: is not data.retention ({self.data.retention}); leave data.retention out")
        if not self.data.val:
            raise invalid("retention: needs data.val, on which the checkpoint is chosen; set it")
        if self.train.shard and self.retention.weight:
            raise invalid(
                "retention.weight: the embedding-preservation loss needs whole weights, not train.shard; set weight: 0"
            )
        self.data = self.data.model_copy(update={"retention": self.retention.data})
        gate = self.gate or Gate(metric=self.train.metric)
        self.gate = with_budget(gate, self.retention.at_most, self.retention.cluster)
        if "interpolate" not in self.model_fields_set:
            self.interpolate = True
        return self

    @model_validator(mode="after")
    def _interpolation_has_data(self) -> "Recipe":
        if self.interpolate and not (self.data.val and self.data.retention):
            raise invalid("interpolate: needs data.val and data.retention, on which the coefficient is chosen; set them")
        return self

    @model_validator(mode="after")
    def _cross_encoder_fits(self) -> "Recipe":
        if self.cross_encoder is None:
            return self
        if self.objective != [AutoTerm()]:
            raise invalid("cross_encoder: has its own loss (cross_encoder.loss); leave `objective` out")
        for key in ("teachers", "matryoshka", "memory", "retention", "interpolate", "gate"):
            if getattr(self, key):
                raise invalid(f"cross_encoder: {key} is for dual encoders; leave one of the two out")
        for key in ("compile", "shard", "micro_batch_tokens", "length_buckets"):
            if getattr(self.train, key):
                raise invalid(f"cross_encoder: does not work with train.{key}; leave one of the two out")
        if self.data.read == "stream":
            raise invalid("cross_encoder: needs random access to the training data; set data.read: index")
        methods = self.tune.values() if isinstance(self.tune, Mapping) else [self.tune]
        if any(t.head_first for t in methods):
            raise invalid("cross_encoder: does not work with tune.head_first; leave one of the two out")
        if self.cross_encoder.model is not None and any(t.how != "frozen" for t in methods):
            raise invalid(
                "tune: with cross_encoder.model the towers only choose negatives and first candidates; set tune: frozen"
            )
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> "Recipe":
        plan, size = self.data.batches, self.train.batch_size
        if isinstance(plan, GroupBatches):
            if plan.groups is not None and plan.groups * plan.rows != size:
                raise invalid(
                    f"data.batches: {plan.groups} groups x {plan.rows} rows are {plan.groups * plan.rows} rows, but "
                    f"train.batch_size is {size}; set it to {plan.groups * plan.rows}"
                )
            if size // plan.rows < 2:
                raise invalid(
                    f"data.batches.rows: {plan.rows} rows of a group leave no room for a second group in a batch of {size}"
                )
        if plan.keeps_rows_together and self.mining is not None and self.mining.use.confusable:
            raise invalid(
                f"mining.use.confusable: batches of near neighbours do not keep the rows of data.batches ({plan.plan}) together; set "
                "it to 0, or use the plan random, spread or balanced"
            )
        return self

    @model_validator(mode="after")
    def _validation_has_data(self) -> "Recipe":
        if not self.data.val:
            for key, value in (
                ("validate_at_start", self.train.validate_at_start),
                ("validate_every", self.train.validate_every),
            ):
                if value:
                    raise invalid(f"train.{key}: needs data.val, on which to validate; set it")
        return self

    @property
    def interpolation(self) -> Interpolate | None:
        """The options of `interpolate`: the defaults if it is true, None if it is false."""
        if isinstance(self.interpolate, Interpolate):
            return self.interpolate
        return Interpolate() if self.interpolate else None

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """Read a YAML recipe file and apply `key.sub=value` overrides. Raises RecipeError, which names file and key, if invalid."""
        return cls.parse(read_document(path, overrides), str(path))

    @classmethod
    def parse(cls, document: object, where: str = "recipe") -> "Recipe":
        """Validate a recipe given as a mapping. Raises RecipeError, which names the key, if it is invalid.

        where: file that the recipe comes from, at the start of error messages
        """
        if not isinstance(document, Mapping):
            raise RecipeError(f"{where}: a recipe is a mapping of keys; this is {type(document).__name__}")
        document = dict(document)
        check_format(document.pop(FORMAT_KEY, None), FORMAT, where, RecipeError, missing=1)
        checked = check(cls, without_blanks(document), where=where)
        if blanks := blank_keys(document):  # keys that are optional in general, but that this recipe leaves to its user
            raise RecipeError(f"{where}: {missing_key(blanks[0])}")
        return checked

    @classmethod
    def read(cls, recipe: "Recipe | Mapping[str, object] | str | Path", overrides: Sequence[str] = ()) -> "Recipe":
        """Return the recipe from a file path (with overrides), a mapping or a `Recipe`."""
        if isinstance(recipe, str | Path):
            return cls.load(recipe, overrides)
        if overrides:
            raise RecipeError("overrides need a recipe file; change the mapping or the Recipe itself instead")
        return recipe if isinstance(recipe, Recipe) else cls.parse(recipe)

    def to_yaml(self) -> str:
        """The recipe as YAML, including its format number and all keys that have their default value."""
        import yaml

        document = {FORMAT_KEY: FORMAT, **self.model_dump(mode="json")}
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
