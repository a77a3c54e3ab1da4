"""The recipe of a run: the typed blocks, and what they demand of each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from mmtune.errors import RecipeError
from mmtune.recipe.augment_block import AugmentBlock
from mmtune.recipe.block import RecipeBlock, check, invalid
from mmtune.recipe.data_block import DataConfig
from mmtune.recipe.gate_block import Gate
from mmtune.recipe.mining_block import MiningOptions
from mmtune.recipe.objective_block import AutoTerm, ObjectiveTerms
from mmtune.recipe.prompts_block import PromptsBlock, WindowPooling
from mmtune.recipe.recipe_file import read_document, without_blanks
from mmtune.recipe.teachers_block import Teacher
from mmtune.recipe.train_block import RunConfig, TrainConfig
from mmtune.recipe.training_blocks import Interpolate, MatryoshkaConfig, MemoryConfig
from mmtune.recipe.tune_block import FullTuning, TuneBlock

_EmptyIsNone = BeforeValidator(lambda value: value or None)


class Recipe(RecipeBlock):
    """A whole training run, as data: `Recipe.load` reads it from YAML, `Recipe.parse` from a mapping."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"windows": "window_pooling"}

    model: str | dict[str, str] = Field(description="MODEL string of the base model, or one a tower: {modality: MODEL}")
    data: DataConfig = Field(description="training and validation data")
    pairs: list[tuple[str, str]] | None = Field(
        None, description="pairs of modalities to train; default: every pair that the model and the data share"
    )
    objective: ObjectiveTerms = Field([AutoTerm()], description="weighted losses")
    teachers: dict[str, Teacher] = Field({}, description="name -> teacher of a distillation loss or a guide")
    prompts: PromptsBlock | None = Field(
        None, description="modality -> role -> template(s) around its strings; default: the model's own"
    )
    window_pooling: WindowPooling | None = Field(
        None, description="modality -> how the vectors of a long signal's windows become one; default: the model's own, mean"
    )
    matryoshka: MatryoshkaConfig | None = Field(None, description="train prefixes of the vectors too")
    memory: MemoryConfig | None = Field(None, description="cross-batch memory of negatives")
    augment: AugmentBlock = Field({}, description="modality -> training-time augmentation")
    tune: TuneBlock = Field(FullTuning(), description="how much of each tower is trained")
    interpolate: bool | Interpolate = Field(False, description="WiSE-FT between base and tuned weights; true: the defaults")
    mining: MiningOptions | None = Field(None, description="hard negatives, mined again in rounds during training")
    gate: Annotated[Gate | None, _EmptyIsNone] = Field(
        None, description="what `compare` and `report` demand of the tuned model"
    )
    train: TrainConfig = Field(TrainConfig(), description="the optimisation")
    run: RunConfig = Field(RunConfig(), description="the directory of the run")

    @model_validator(mode="after")
    def _interpolation_has_data(self) -> "Recipe":
        if self.interpolate and not (self.data.val and self.data.retention):
            raise invalid("interpolate: the coefficient is picked on data.val and data.retention; name both")
        return self

    @property
    def interpolation(self) -> Interpolate | None:
        """`interpolate` with its defaults, or None where nothing is interpolated."""
        if isinstance(self.interpolate, Interpolate):
            return self.interpolate
        return Interpolate() if self.interpolate else None

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """The recipe in a YAML file, with `key.sub=value` overrides. Raises RecipeError that names file and key."""
        return cls.parse(read_document(path, overrides), str(path))

    @classmethod
    def parse(cls, document: object, where: str = "recipe") -> "Recipe":
        """A recipe from plain data. Raises RecipeError: one line with the key and what is wrong with it."""
        if not isinstance(document, Mapping):
            raise RecipeError(f"{where}: a recipe is a mapping of keys; this is {type(document).__name__}")
        return check(cls, without_blanks(document), where=where)

    @classmethod
    def read(cls, recipe: "Recipe | Mapping[str, object] | str | Path", overrides: Sequence[str] = ()) -> "Recipe":
        """The recipe that a caller gives as a file (with overrides), as plain data, or as it is."""
        if isinstance(recipe, str | Path):
            return cls.load(recipe, overrides)
        if overrides:
            raise RecipeError("overrides go with a recipe file; change the mapping itself instead")
        return recipe if isinstance(recipe, Recipe) else cls.parse(recipe)

    def to_yaml(self) -> str:
        """The recipe as YAML, every key with its value."""
        import yaml

        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
