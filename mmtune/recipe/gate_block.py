"""`gate:` of a recipe: what `compare`, `report` and `promote` demand of a candidate model."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field

from mmtune.recipe.block import RecipeBlock, check, invalid

MEAN = "mean"
"""The name of the mean over all directions between different modalities."""
RETENTION = "retention"
"""The name of the slice that holds the retention data (see `mmtune.comparison.retention`)."""
OLD_NAMES = {"general": RETENTION}
"""Guards of gate files written by earlier versions."""


def _number(value: object) -> object:
    try:
        return float(value)  # type: ignore[arg-type]  # whatever the recipe holds; TypeError is handled
    except (TypeError, ValueError):
        raise invalid(f"min_gain and guards are numbers, e.g. guards: {{retention: -0.01}} (got {value!r})") from None


Bound = Annotated[float, BeforeValidator(_number, json_schema_input_type=float)]


def _present_names(value: object) -> object:
    """The guards with the slice's present name; none where the recipe has an empty key."""
    return {OLD_NAMES.get(k, k): v for k, v in value.items()} if isinstance(value, Mapping) else value or {}


class Gate(RecipeBlock):
    """The candidate passes when `metric` of `direction` gains more than `min_gain` and no guard falls below its bound.

    Gain and bounds are compared with the lower end of the 95% bootstrap interval. A guard is a slice or a direction:
    {retention: -0.01} lets the retention slice lose at most one point.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    metric: str = Field("ndcg@10", description="retrieval metric that decides, e.g. ndcg@10, map, hit@1")
    direction: str = Field(MEAN, description='"a->b", or mean: over all directions between different modalities')
    min_gain: Bound = Field(0.0, description="smallest gain that is worth a change")
    guards: Annotated[dict[str, Bound], BeforeValidator(_present_names)] = Field(
        {}, description="slice or direction -> lowest change that is allowed, e.g. {retention: -0.01}"
    )

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """The nearest key of a gate."""
        import difflib

        known = list(cls.model_fields)
        near = difflib.get_close_matches(key, known, 1)
        return "unknown; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")

    @classmethod
    def read(cls, value: "Mapping[str, object] | Gate | None") -> "Gate | None":
        """A gate from the recipe's `gate:` mapping. Raises RecipeError for unknown keys and for values that are no numbers."""
        return value if value is None or isinstance(value, Gate) else check(cls, value, "gate")

    def to_dict(self) -> dict[str, object]:
        """Plain data, as in a recipe."""
        return self.model_dump()
