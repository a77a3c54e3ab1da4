"""The recipe block `objective:`, a list of losses whose weighted sum is minimised. Every loss has its own options.

objective:
  - {loss: info_nce, positives: mask, smoothing: 0.1}
  - {loss: kl, teacher: big, weight: 0.5}
  - {loss: "package.module:function", height: 3}      # a loss of your own; its keyword-only parameters are its options
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Tag, field_validator

from mmtune.errors import RecipeError
from mmtune.losses import TABLE
from mmtune.losses.metric_learning import is_library_name
from mmtune.recipe.block import Number, RecipeBlock, invalid
from mmtune.recipe.class_label_block import ClassLabelTerm, Positive, TermWeight
from mmtune.runtime.plugins import is_target, nearest

AUTO = "auto"
"""Name of the loss that the base model was pretrained with; see `AutoTerm`."""


class TermBlock(RecipeBlock):
    """One loss (term) of the objective. Every loss has the keys in this table."""

    own_keys: ClassVar[frozenset[str]] = frozenset()
    """Names of the fields that are keyword arguments of the loss function."""

    loss: str = Field(description="name of the loss, or package.module:function")
    weight: TermWeight = Field(1.0, description="factor of this loss in the sum of all losses")
    pairs: list[tuple[str, str]] | None = Field(
        None, description="pairs of modalities to which this loss applies; null: all pairs of the recipe"
    )
    directions: Literal["both", "forward", "backward"] = Field(
        "both",
        description="directions that are trained; forward: queries of the pair's first modality, candidates of its second; "
        "backward: the reverse; for contrastive and distillation losses",
    )
    scale: Positive | None = Field(None, description="fixed logit scale; null: the model's learned logit scale")
    weights: str | None = Field(
        None,
        description="metadata column of relevance grades: each row's pair is weighted by its grade, and only pairs from the same "
        "row are positives; null: no grades",
    )
    queries: Literal["rows", "items"] = Field(
        "rows",
        description="weight of a query that occurs in several rows of a batch; rows: its number of rows; items: 1",
    )
    guide: str | None = Field(
        None, description="teacher (a key of `teachers`) that finds likely false negatives in the batch, which are then ignored"
    )
    guide_margin: Number = Field(
        0.0, description="ignore a negative if the guide scores it above the positive's score minus this margin"
    )
    tile: Literal["auto", "always", "never"] = Field(
        "auto", description="compute the logits tile by tile to limit memory; auto: only for large batches"
    )
    teacher: str | None = Field(None, description="teacher of a distillation loss (a key of `teachers`)")
    views: dict[str, Literal["dropout", "augmentation"]] = Field(
        {},
        description="modality -> how two views of each item are made: dropout (SimCSE) or augmentation (SimCLR); the loss, a contrastive "
        "one, then compares these views and not the pairs, so that rows without a partner are trained, too; `scale` is 20 by default",
    )

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """The end of the error message for an unknown key, with the most similar option of the loss."""
        return f"{cls.model_fields['loss'].default} has no such option{nearest(key, list(cls.model_fields)[1:])}"

    @property
    def options(self) -> dict[str, JsonValue]:
        """The keyword arguments for the loss function."""
        return {name: getattr(self, name) for name in sorted(self.own_keys)}


class AutoTerm(TermBlock):
    """The loss that the base model was pretrained with: sigmoid (SigLIP) if the model has a logit bias, otherwise InfoNCE."""

    loss: Literal["auto"] = Field("auto", description="name of the loss")


class InfoNCETerm(TermBlock):
    """InfoNCE: softmax cross-entropy over the candidates in the batch (as in CLIP, MultipleNegativesRankingLoss and SupCon)."""

    own_keys = frozenset({"positives", "smoothing", "hardness", "robustness"})

    loss: Literal["info_nce"] = Field("info_nce", description="name of the loss")
    positives: Literal["mean", "mask", "sum"] = Field(
        "mean",
        description="how several positives of a query are used; mean: average the loss over them (SupCon); mask: only the pair of "
        "the same row is a positive, the other positives are ignored; sum: sum their probabilities (UniCL)",
    )
    smoothing: Number = Field(0.0, description="label smoothing: fraction of the target that is spread over all candidates")
    hardness: Number = Field(
        0.0, description="weight negatives by e^(hardness x logit), so that hard ones count more; 0: equally"
    )
    robustness: float = Field(
        0.0,
        ge=0,
        le=1,
        description="q of generalised cross-entropy, (1 - p^q) / q in place of -log p, so that wrong captions count less; 0: -log p",
    )


class SigmoidTerm(TermBlock):
    """Pairwise sigmoid loss (SigLIP)."""

    own_keys = frozenset({"bias"})

    loss: Literal["sigmoid"] = Field("sigmoid", description="name of the loss")
    bias: Number = Field(-10.0, description="initial value of the logit bias, if the model has no logit bias")


class TripletTerm(TermBlock):
    """Triplet margin loss with the hardest or semi-hard negatives of the batch."""

    own_keys = frozenset({"margin", "distance", "mining"})

    loss: Literal["triplet"] = Field("triplet", description="name of the loss")
    margin: Number = Field(0.2, description="by how much the distance to the negative should exceed that to the positive")
    distance: Literal["cosine", "euclidean"] = Field(
        "cosine", description="distance between two embeddings; cosine: 1 - cosine"
    )
    mining: Literal["hard", "semi_hard"] = Field(
        "hard",
        description="choice of the negative; hard: the nearest of the batch; semi_hard: the nearest that is farther away than the "
        "positive",
    )


class MseTerm(TermBlock):
    """Mean squared error between the cosine similarity of a pair and its score, which must be in [-1, 1]."""

    own_keys = frozenset({"column"})

    loss: Literal["mse"] = Field("mse", description="name of the loss")
    column: str = Field("score", description="numeric metadata column with the score of each pair")


class CosineTerm(TermBlock):
    """Loss of torch's CosineEmbeddingLoss: 1 - cosine for similar pairs, max(0, cosine - margin) for dissimilar pairs."""

    own_keys = frozenset({"column", "margin", "threshold"})

    loss: Literal["cosine"] = Field("cosine", description="name of the loss")
    column: str = Field("score", description="numeric metadata column with the score of each pair")
    margin: Number = Field(0.0, description="dissimilar pairs with a cosine up to this have loss 0")
    threshold: Number = Field(0.5, description="pairs with at least this score are similar, the others dissimilar")


class CosentTerm(TermBlock):
    """CoSENT: trains the cosine similarities of the pairs to have the same order as their scores."""

    own_keys = frozenset({"column", "scale"})

    loss: Literal["cosent"] = Field("cosent", description="name of the loss")
    column: str = Field("score", description="numeric metadata column with the score of each pair")
    scale: Positive = Field(20.0, description="factor on differences of cosines")


class KlTerm(TermBlock):
    """Distillation by KL divergence between the teacher's and the student's softmax distribution over each query's candidates."""

    own_keys = frozenset({"temperature"})

    loss: Literal["kl"] = Field("kl", description="name of the loss")
    temperature: Number = Field(0.05, description="temperature of the teacher's softmax")


class ScoreMseTerm(TermBlock):
    """Distillation by the squared difference between the student's cosine and the teacher's score."""

    loss: Literal["score_mse"] = Field("score_mse", description="name of the loss")


class MarginMseTerm(TermBlock):
    """MarginMSE distillation: squared difference between student and teacher in the margin (positive score - negative score)."""

    own_keys = frozenset({"factor"})

    loss: Literal["margin_mse"] = Field("margin_mse", description="name of the loss")
    factor: Number = Field(
        1.0, description="factor on the teacher's margins that scales them to the range of cosine differences"
    )


class FeatureTerm(TermBlock):
    """Distillation by the squared distance between the student's and the teacher's embeddings."""

    own_keys = frozenset({"projection"})

    loss: Literal["feature"] = Field("feature", description="name of the loss")
    projection: bool = Field(
        False,
        description="learn a linear projection for the comparison even if both have the same dimension; with different "
        "dimensions it is always learned",
    )


class CustomTerm(TermBlock):
    """A loss of your own: `package.module:function`, or a name registered with `mmtune.register_loss`.

    Keys other than the common ones are its options. They must be keyword-only parameters of the function.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": True})
    __pydantic_extra__: dict[str, JsonValue]

    loss: str = Field(
        description="package.module:function, or a registered name",
        json_schema_extra={"not": {"anyOf": [{"enum": [AUTO, *TABLE]}, {"pattern": "^pml:"}]}},
    )

    @field_validator("loss")
    @classmethod
    def _exists(cls, name: str) -> str:
        if not is_target(name) and name not in TABLE:
            raise invalid(f"no loss {name!r}{nearest(name, [AUTO, *TABLE])} ({CLASS_LABEL} or package.module:function)")
        return name

    @property
    def options(self) -> dict[str, JsonValue]:
        """The keys other than the common ones, as keyword arguments for the loss function."""
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
    | ClassLabelTerm
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
CLASS_LABEL = "pml:NAME"


def _kind(value: object) -> str:
    name = value.get("loss") if isinstance(value, Mapping) else getattr(value, "loss", None)
    if isinstance(name, str) and is_library_name(name):
        return CLASS_LABEL
    return name if isinstance(name, str) and name in BUILT_IN else CUSTOM


def _named(value: object) -> object:
    """Expand a bare string to {loss: string}. Raises an error that lists the known losses if the key `loss` is missing."""
    if isinstance(value, str):
        value = {"loss": value}
    if isinstance(value, TermBlock | ClassLabelTerm):
        return value
    known = list(dict.fromkeys([AUTO, *TABLE]))
    if not isinstance(value, Mapping) or "loss" not in value:
        raise invalid(f"needs the key `loss`, one of: {', '.join(known)}, {CLASS_LABEL}, or package.module:function")
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
    | Annotated[ClassLabelTerm, Tag(CLASS_LABEL)]
    | Annotated[CustomTerm, Tag(CUSTOM)],
    Discriminator(_kind),
    BeforeValidator(_named),
]
"""Type of one term of an objective; the key `loss` decides which class validates it."""


def _something_to_train(terms: list[AnyTerm]) -> list[AnyTerm]:
    if not terms:
        raise invalid("is empty; name at least one loss, e.g. [{loss: info_nce}]")
    if not any(term.weight for term in terms):
        raise invalid("every weight is 0, so nothing would be trained")
    return terms


def _views_of(term: AnyTerm) -> Mapping[str, str]:
    return term.views if isinstance(term, TermBlock) else {}


def compares_only_views(terms: list[AnyTerm]) -> bool:
    """Whether every term compares two views of an item, so that no pair of modalities is trained."""
    return all(_views_of(term) for term in terms)


def viewed_modalities(terms: list[AnyTerm]) -> dict[str, str]:
    """{modality: how its two views are made} of all terms. Raises an error if two terms differ."""
    found: dict[str, str] = {}
    for term in terms:
        for m, how in _views_of(term).items():
            if found.setdefault(m, how) != how:
                raise RecipeError(
                    f"objective: two terms make the views of {m} differently ({found[m]} and {how}); use one of them"
                )
    return found


ObjectiveTerms = Annotated[list[Term], AfterValidator(_something_to_train)]
"""Type of the recipe block `objective:`."""
