"""The recipe block `gate:`: the conditions under which `compare`, `report` and `promote` accept a candidate model."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from mmtune.recipe.block import RecipeBlock, check, invalid

FIRST = "first"
"""Value of `metric` that means the first metric of the task."""
MEAN = "mean"
"""Value of `direction` that means the mean over all directions between different modalities."""
RETENTION = "retention"
"""Name of the slice of the retention data, i.e. data on which a new model must not get worse."""
OLD_NAMES = {"general": RETENTION}
"""Old name of a guard -> its current name, for gate files written by earlier versions."""


def _number(value: object) -> object:
    try:
        return float(value)  # type: ignore[arg-type]  # whatever the recipe holds; TypeError is handled
    except (TypeError, ValueError):
        raise invalid(f"min_gain and guards are numbers, e.g. guards: {{retention: -0.01}} (got {value!r})") from None


Bound = Annotated[float, BeforeValidator(_number, json_schema_input_type=float)]


def _present_names(value: object) -> object:
    """Replace old names of guards."""
    return {OLD_NAMES.get(k, k): v for k, v in value.items()} if isinstance(value, Mapping) else value


class Gate(RecipeBlock):
    """The candidate model passes the gate if `metric` in `direction` improves by more than `min_gain` and no guard is violated.

    A guard is a lower bound on the change of `metric` in a slice or direction: {retention: -0.01} allows the retention slice to
    lose at most 0.01. All changes are judged by the lower end of their 95% bootstrap confidence interval.

    With `task`, the models are compared by an evaluation task instead of retrieval: `metric` is one of the task's, `direction` a
    modality, and retention is the only guard; the retention slice is still compared by retrieval (ndcg@10).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    task: str | None = Field(
        None,
        description="evaluation task by which the models are compared, e.g. zero_shot, knn, anomaly, as of `mmtune eval --task`; null: retrieval",
    )
    task_options: dict[str, JsonValue] = Field(
        {}, description="options of the task, as of `mmtune eval --task`, e.g. {label: fault, reference: data/train}"
    )
    metric: str = Field(
        "ndcg@10",
        description="retrieval metric that is compared, e.g. ndcg@10, map, hit@1; with `task` one of the task's, or first (the default then)",
    )
    direction: str = Field(
        MEAN,
        description='retrieval direction "a->b" (queries of modality a, candidates of b), or mean: the mean over all directions '
        "between different modalities; with `task` a modality, which may be left out if there is only one",
    )
    min_gain: Bound = Field(0.0, description="the improvement of `metric` must be larger than this")
    guards: Annotated[dict[str, Bound] | None, BeforeValidator(_present_names)] = Field(
        None,
        description="slice or direction -> lowest allowed change of `metric`, e.g. {retention: -0.01}; {}: none; null: retention -0.01, "
        "confusable 0, where there are these slices, and each direction -0.01 if `direction` is mean",
    )
    cluster: str | None = Field(
        None,
        description="metadata column of the compared data, e.g. the recording or machine, whose values the intervals resample; null: groups "
        "and equal content, with `task` a recording column, if there is one",
    )
    retention_loss: Annotated[float | None, Field(ge=0)] = Field(
        None,
        description="the retention slice may lose at most this, beside the other guards; null: what `guards` says. A recipe with a "
        "forgetting budget sets it to `retention.at_most`",
    )

    retention_cluster: str | None = Field(
        None,
        description="metadata column of the retention data whose values the interval of the retention slice resamples; null: groups. A "
        "recipe with a forgetting budget sets it to `retention.cluster`",
    )

    @model_validator(mode="before")
    @classmethod
    def _first_metric(cls, value: object) -> object:
        """With a task, the default of `metric` is the task's first. The task "retrieval" is none."""
        if not isinstance(value, dict) or value.get("task") is None:
            return value
        return {**value, "task": None} if value["task"] == "retrieval" else {"metric": FIRST, **value}

    @model_validator(mode="after")
    def _of_a_task(self) -> Self:
        """Options need a task, and a task has no guard but retention."""
        if self.task is None and self.task_options:
            raise invalid("task_options: needs a task; set task, e.g. task: knn")
        others = [] if self.task is None else [g for g in self.guards or {} if g != RETENTION]
        if others:
            raise invalid(f"guards.{others[0]}: a comparison by a task has no guard but {RETENTION}; leave it out")
        return self

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """The end of the error message for an unknown key: the most similar key of a gate, or all keys."""
        import difflib

        known = list(cls.model_fields)
        near = difflib.get_close_matches(key, known, 1)
        return "unknown; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}")

    @classmethod
    def read(cls, value: "Mapping[str, object] | Gate | None") -> "Gate | None":
        """Validate the mapping of a recipe's `gate:` and return a Gate; a Gate and None are returned unchanged.

        Raises RecipeError if a key is unknown or a bound is not a number.
        """
        return value if value is None or isinstance(value, Gate) else check(cls, value, "gate")

    def to_dict(self) -> dict[str, object]:
        """The gate as plain data, with the keys of the recipe block."""
        return self.model_dump()


def with_budget(gate: Gate, at_most: float, cluster: str | None) -> Gate:
    """Return the gate with the guard of a forgetting budget, unless it says something else. Its other guards stay as they are.

    at_most: what the retention slice may lose
    cluster: metadata column whose values the interval of the loss resamples; None: groups
    """
    budget = {"retention_loss": at_most, "retention_cluster": cluster}
    return gate.model_copy(update={key: value for key, value in budget.items() if getattr(gate, key) is None})
