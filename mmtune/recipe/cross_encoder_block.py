"""The recipe block `cross_encoder:`: train a re-ranker of pairs instead of a dual encoder.

cross_encoder: {layers: 2, width: 256, negatives: 7, depth: 50}
"""

from typing import Literal

from pydantic import Field, model_validator

from mmtune.recipe.block import RecipeBlock, invalid
from mmtune.recipe.class_label_block import Positive


class CrossEncoderBlock(RecipeBlock):
    """A cross-encoder: a small transformer over the token states of both values of a pair, on top of the towers of `model`.

    Its score is the model's own logit (logit scale x cosine) plus the transformer's output, which is 0 before training, so that
    re-ranking starts from the order of the dual encoder.
    """

    model: str | None = Field(
        None,
        description="for pairs of two texts: directory or hub name of a sequence classifier of transformers with one output, or of a plain "
        "encoder such as BERT, which gets such a head. It is trained at `train.lr` in place of joint layers; the towers of the recipe's "
        "`model` are frozen and only choose negatives and first candidates",
    )
    layers: int = Field(2, ge=1, description="transformer layers over the tokens of both values")
    width: int = Field(256, ge=8, description="dimension of these layers; a multiple of `attention_heads`")
    attention_heads: int = Field(4, ge=1, description="attention heads of each layer")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in these layers")
    max_tokens: int = Field(
        128,
        ge=2,
        description="tokens of each value: longer texts are truncated, and the tokens of larger images and sounds are averaged; with "
        "`model` both texts together have at most twice as many",
    )
    loss: Literal["softmax", "binary"] = Field(
        "softmax",
        description="softmax: cross-entropy over the positive and its negatives (listwise); binary: each pair on its own (pointwise)",
    )
    negatives: int = Field(
        7,
        ge=1,
        description="negatives of each positive pair: first the mined and given ones of the query, then the most similar of the batch",
    )
    lr: Positive = Field(5e-4, description="peak learning rate of the new layers; `train.lr` is that of the towers")
    depth: int = Field(50, ge=1, description="candidates of the base model that are re-ranked in validation")

    @model_validator(mode="after")
    def _no_joint_layers(self) -> "CrossEncoderBlock":
        fields = type(self).model_fields  # a stored recipe has all keys, with their defaults
        unused = [k for k in ("layers", "width", "attention_heads", "dropout", "lr") if getattr(self, k) != fields[k].default]
        if self.model is not None and unused:
            raise invalid(f"{unused[0]} is of the joint layers, which a cross-encoder with `model` does not have; leave it out")
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> "CrossEncoderBlock":
        if self.width % self.attention_heads:
            raise invalid(f"width {self.width} is not a multiple of attention_heads, {self.attention_heads}")
        return self
