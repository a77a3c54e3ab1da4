"""The recipe block `run:`: the run directory, trackers, and callbacks. None of its keys changes the result of a run."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, field_validator

from mmtune.recipe.block import RecipeBlock, invalid
from mmtune.runtime.plugins import is_target, nearest, register

CALLBACKS: dict[str, object] = {}
"""Registered name -> class of a callback, or "package.module:Class"."""


def register_callback(name: str, target: object) -> None:
    """Register a class of callbacks for `run.callbacks`, or "package.module:Class"."""
    register(CALLBACKS, name, target, "callback")


class CallbackBlock(RecipeBlock):
    """A callback. Keys other than `name` are keyword arguments of its class."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": True})
    __pydantic_extra__: dict[str, JsonValue]

    name: str = Field(description="package.module:Class, or a name registered with `mmtune.register_callback`")

    @field_validator("name")
    @classmethod
    def _exists(cls, name: str) -> str:
        if not is_target(name) and name not in CALLBACKS:
            raise invalid(f"no callback {name!r}{nearest(name, CALLBACKS)} (or package.module:Class)")
        return name

    @property
    def options(self) -> dict[str, JsonValue]:
        """The keyword arguments of the class."""
        return dict(self.__pydantic_extra__)


def _named(value: object) -> object:
    """Expand a bare string to {name: string}."""
    if isinstance(value, Mapping) and "name" not in value:
        raise invalid("needs the key `name`: package.module:Class or a registered name")
    return {"name": value} if isinstance(value, str) else value


class RunConfig(RecipeBlock):
    """The run directory, trackers and callbacks."""

    dir: str = Field("runs/run", description="directory for recipe.yaml, metrics.jsonl, checkpoints/ and artifact/")
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        ["tensorboard"],
        description="experiment trackers that get the metrics, pictures and the recipe: tensorboard (RUN/tensorboard), wandb, mlflow, "
        "trackio (extra `trackers`); []: none",
    )
    project: str = Field("mmtune", min_length=1, description="project (wandb, trackio) or experiment (mlflow) of the trackers")
    name: str | None = Field(None, min_length=1, description="name of the run in the trackers; null: name of the run directory")
    pictures: int = Field(
        0,
        ge=0,
        description="queries of data.val whose best results are sent to the trackers as a picture at each validation, and as many "
        "mined negatives after mining; 0: none",
    )
    figures: bool = Field(
        False,
        description="whether to send figures to the trackers at each validation: loss terms over the steps, histograms of the scores of "
        "matching and of other pairs, similarities of some rows, and, with groups, a heatmap of confusions",
    )
    callbacks: list[Annotated[CallbackBlock, BeforeValidator(_named, json_schema_input_type=str | CallbackBlock)]] = Field(
        [], description="callbacks of your own: package.module:Class, or {name: package.module:Class, OPTION: VALUE}"
    )
