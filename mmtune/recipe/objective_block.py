"""`objective:` of a recipe: a list of weighted losses, each with the options of its own.

objective:
  - {loss: info_nce, positives: mask, smoothing: 0.1}
  - {loss: kl, teacher: big, weight: 0.5}
  - {loss: "package.module:function", height: 3}      a loss of your own: its keyword-only parameters are its options
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Tag, field_validator

from mmtune.losses import TABLE
from mmtune.recipe.block import Number, RecipeBlock, invalid
from mmtune.runtime.plugins import is_target, nearest

AUTO = "auto"
"""The checkpoint's own loss: sigmoid where the model has a bias, InfoNCE elsewhere."""


def _not_negative(value: float) -> float:
    if value < 0:
        raise invalid(f"{value} is negative; weights are 0 or more")
    return value


def _positive(value: float) -> float:
    if value <= 0:
        raise invalid(f"{value} is not positive")
    return value


class TermBlock(RecipeBlock):
    """One weighted loss of an objective; the keys that every loss has."""

    own_keys: ClassVar[frozenset[str]] = frozenset()
    """Fields that are keyword arguments of the loss function."""

    loss: str = Field(description="name of the loss, or package.module:function")
    weight: Annotated[Number, AfterValidator(_not_negative)] = Field(1.0, description="factor of this loss in the sum")
    pairs: list[tuple[str, str]] | None = Field(None, description="only these of the recipe's pairs; default: all")
    directions: Literal["both", "forward", "backward"] = Field(
        "both", description="forward: queries of the pair's first modality; contrastive losses only"
    )
    scale: Annotated[Number, AfterValidator(_positive)] | None = Field(
        None, description="fixed logit scale instead of the model's learned one"
    )
    weights: str | None = Field(
        None, description="metadata column of graded relevance: the weight of each row's own pair, the only positive then"
    )
    queries: Literal["rows", "items"] = Field(
        "rows", description="rows: a query item that occurs in several rows weighs as much as its rows; items: as one"
    )
    guide: str | None = Field(None, description="teacher whose similarities mask in-batch negatives (a key of `teachers`)")
    guide_margin: Number = Field(0.0, description="margin of the guide: how much above the positive a masked negative scores")
    tile: Literal["auto", "always", "never"] = Field(
        "auto", description="compute the logits in tiles, in bounded memory; auto: above a size"
    )
    teacher: str | None = Field(None, description="teacher of a distillation loss (a key of `teachers`)")

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """The loss has no such option; the nearest that it has."""
        return f"{cls.model_fields['loss'].default} has no such option{nearest(key, list(cls.model_fields)[1:])}"

    @property
    def options(self) -> dict[str, JsonValue]:
        """Keyword arguments of the loss function."""
        return {name: getattr(self, name) for name in sorted(self.own_keys)}


class AutoTerm(TermBlock):
    """The checkpoint's own loss: sigmoid where the model has a bias, InfoNCE elsewhere."""

    loss: Literal["auto"] = Field("auto", description="name of the loss")


class InfoNCETerm(TermBlock):
    """Softmax cross-entropy over the batch's candidates (CLIP, multiple-negatives ranking, SupCon)."""

    own_keys = frozenset({"positives", "smoothing", "hardness"})

    loss: Literal["info_nce"] = Field("info_nce", description="name of the loss")
    positives: Literal["mean", "mask", "sum"] = Field(
        "mean", description="several positives: mean over them (SupCon), mask all but the own pair, or sum (UniCL)"
    )
    smoothing: Number = Field(0.0, description="label smoothing: share of the target spread over all candidates")
    hardness: Number = Field(0.0, description="weight negatives by e^(hardness x logit); 0 = evenly")


class SigmoidTerm(TermBlock):
    """Pairwise sigmoid loss (SigLIP)."""

    own_keys = frozenset({"bias"})

    loss: Literal["sigmoid"] = Field("sigmoid", description="name of the loss")
    bias: Number = Field(-10.0, description="initial bias where the model has none of its own")


class TripletTerm(TermBlock):
    """Triplet margin loss with the batch's hardest or semi-hard negatives."""

    own_keys = frozenset({"margin", "distance", "mining"})

    loss: Literal["triplet"] = Field("triplet", description="name of the loss")
    margin: Number = Field(0.2, description="margin between the distances of positive and negative")
    distance: Literal["cosine", "euclidean"] = Field("cosine", description="distance of two vectors")
    mining: Literal["hard", "semi_hard"] = Field("hard", description="which negative of the batch")


class MseTerm(TermBlock):
    """Squared error of cosine and score; scores lie in [-1, 1]."""

    own_keys = frozenset({"column"})

    loss: Literal["mse"] = Field("mse", description="name of the loss")
    column: str = Field("score", description="numeric metadata column of the pair's similarity")


class CosineTerm(TermBlock):
    """CosineEmbeddingLoss: 1 - cosine above the threshold, the cosine above a margin below it."""

    own_keys = frozenset({"column", "margin", "threshold"})

    loss: Literal["cosine"] = Field("cosine", description="name of the loss")
    column: str = Field("score", description="numeric metadata column of the pair's similarity")
    margin: Number = Field(0.0, description="cosine up to which a dissimilar pair costs nothing")
    threshold: Number = Field(0.5, description="score from which a pair is similar")


class CosentTerm(TermBlock):
    """CoSENT: the order of the pairs' cosines follows the order of their scores."""

    own_keys = frozenset({"column", "scale"})

    loss: Literal["cosent"] = Field("cosent", description="name of the loss")
    column: str = Field("score", description="numeric metadata column of the pair's similarity")
    scale: Annotated[Number, AfterValidator(_positive)] = Field(20.0, description="factor on cosine differences")


class KlTerm(TermBlock):
    """KL divergence of the teacher's and the student's distribution over each query's candidates."""

    own_keys = frozenset({"temperature"})

    loss: Literal["kl"] = Field("kl", description="name of the loss")
    temperature: Number = Field(0.05, description="of the teacher's softmax")


class ScoreMseTerm(TermBlock):
    """Squared difference of the student's cosine and the teacher's score."""

    loss: Literal["score_mse"] = Field("score_mse", description="name of the loss")


class MarginMseTerm(TermBlock):
    """MarginMSE: squared difference of score margins between positive and negative."""

    own_keys = frozenset({"factor"})

    loss: Literal["margin_mse"] = Field("margin_mse", description="name of the loss")
    factor: Number = Field(1.0, description="factor on the teacher's margins, to a cosine's size")


class FeatureTerm(TermBlock):
    """Squared distance of the student's and the teacher's vectors."""

    own_keys = frozenset({"projection"})

    loss: Literal["feature"] = Field("feature", description="name of the loss")
    projection: bool = Field(False, description="learn a linear map before the comparison even where the widths agree")


class CustomTerm(TermBlock):
    """A loss of your own: `package.module:function`, or a name given to `mmtune.register_loss`.

    Further keys are its options. They are checked against the function's keyword-only parameters when the objective is built.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": True})
    __pydantic_extra__: dict[str, JsonValue]

    loss: str = Field(
        description="package.module:function, or a registered name",
        json_schema_extra={"not": {"enum": [AUTO, *TABLE]}},
    )

    @field_validator("loss")
    @classmethod
    def _exists(cls, name: str) -> str:
        if not is_target(name) and name not in TABLE:
            raise invalid(f"no loss {name!r}{nearest(name, [AUTO, *TABLE])} (or package.module:function)")
        return name

    @property
    def options(self) -> dict[str, JsonValue]:
        """The keys beside the common ones: keyword arguments of the function."""
        return dict(self.__pydantic_extra__)


AnyTerm: TypeAlias = (
    AutoTerm
    | InfoNCETerm
    | SigmoidTerm
    | TripletTerm
    | MseTerm
    | CosineTerm
    | CosentTerm
    | KlTerm
    | ScoreMseTerm
    | MarginMseTerm
    | FeatureTerm
    | CustomTerm
)
BUILT_IN: dict[str, type[TermBlock]] = {
    term.model_fields["loss"].default: term
    for term in (
        AutoTerm,
        InfoNCETerm,
        SigmoidTerm,
        TripletTerm,
        MseTerm,
        CosineTerm,
        CosentTerm,
        KlTerm,
        ScoreMseTerm,
        MarginMseTerm,
        FeatureTerm,
    )
}
CUSTOM = "package.module:function"


def _kind(value: object) -> str:
    name = value.get("loss") if isinstance(value, Mapping) else getattr(value, "loss", None)
    return name if isinstance(name, str) and name in BUILT_IN else CUSTOM


def _named(value: object) -> object:
    """A bare name stands for {loss: name}. A term without a known loss is refused here, with the nearest one."""
    if isinstance(value, str):
        value = {"loss": value}
    if isinstance(value, TermBlock):
        return value
    known = list(dict.fromkeys([AUTO, *TABLE]))
    if not isinstance(value, Mapping) or "loss" not in value:
        raise invalid(f"needs the key `loss`, one of: {', '.join(known)}, or package.module:function")
    return value


Term = Annotated[
    Annotated[AutoTerm, Tag("auto")]
    | Annotated[InfoNCETerm, Tag("info_nce")]
    | Annotated[SigmoidTerm, Tag("sigmoid")]
    | Annotated[TripletTerm, Tag("triplet")]
    | Annotated[MseTerm, Tag("mse")]
    | Annotated[CosineTerm, Tag("cosine")]
    | Annotated[CosentTerm, Tag("cosent")]
    | Annotated[KlTerm, Tag("kl")]
    | Annotated[ScoreMseTerm, Tag("score_mse")]
    | Annotated[MarginMseTerm, Tag("margin_mse")]
    | Annotated[FeatureTerm, Tag("feature")]
    | Annotated[CustomTerm, Tag(CUSTOM)],
    Discriminator(_kind),
    BeforeValidator(_named),
]
"""One term of an objective, typed by its `loss`."""


def _something_to_train(terms: list[AnyTerm]) -> list[AnyTerm]:
    if not terms:
        raise invalid("is empty; name at least one loss, e.g. [{loss: info_nce}]")
    if not any(term.weight for term in terms):
        raise invalid("every weight is 0, so nothing would be trained")
    return terms


ObjectiveTerms = Annotated[list[Term], AfterValidator(_something_to_train)]
"""`objective:` of a recipe."""
