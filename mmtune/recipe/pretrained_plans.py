"""Which recipe tunes pretrained encoders, by the use case and the number of training pairs.

`mmtune init --encoders` writes these settings, `mmtune bench quality` uses them by default, and recipes/catalog_pretrained.yaml,
recipes/sounds_pretrained.yaml and recipes/few_shot.yaml hold them together with what was measured.
"""

from typing import NamedTuple

from mmtune import modalities

MOST_FEW_SHOT = 16
"""Up to this many training rows in the median group, the recipe for few examples is chosen."""
FEW_PAIRS = 200
"""Up to this many training pairs, the recipe for few examples is chosen whatever the groups are."""


class PretrainedPlan(NamedTuple):
    """One recipe for pretrained encoders.

    file: name of the recipe in recipes/
    what: what it tunes, as one clause
    tunes: "head" or "LoRA"
    body: its settings as YAML, with {signal} and {language} for the two modalities
    """

    file: str
    what: str
    tunes: str
    body: str


FEW_SHOT = PretrainedPlan(
    "few_shot.yaml",
    "only linear heads are tuned, on stored features",
    "head",
    """heads:
  {signal}: {{init: cca, ridge: 0.3}}        # canonical correlation analysis of the training pairs fits both heads before the first step
  {language}: {{init: cca, ridge: 0.3}}
tune:
  {signal}: head                         # on stored features: minutes become seconds
  {language}: head                          # spreads the captions of similar products
objective:
  - {{loss: info_nce, positives: mean, smoothing: 0.1}}
train:
  epochs: 5                   # few steps at a low rate: on few examples longer training loses what the fit has
  batch_size: 64
  lr: 1.0e-5
  warmup: 0.1                 # share of the steps
  ema: 0.98                   # average of the weights over about 50 steps
  metric: map                 # mean average precision (MAP) over retrieval in both directions
""",
)
CATALOG = PretrainedPlan(
    "catalog_pretrained.yaml",
    "low-rank adapters are tuned after the heads",
    "LoRA",
    """heads:
  {signal}: {{init: ridge, ridge: 0.1}}      # head first: ridge regression to the vectors of the captions, before the first step
tune:
  {signal}: {{how: lora, rank: 16}}         # the adapters are merged into the weights at the end
  {language}: head                          # spreads the captions of similar products; frozen keeps the vectors of captions valid
augment:
  {signal}: {{crop: 0.5, flip: true}}        # no flip where left and right differ
objective:
  - {{loss: info_nce, positives: mean, smoothing: 0.1}}
train:
  epochs: 5
  batch_size: 64
  lr: 4.0e-3                  # measured with EfficientNet-Lite0; lower it if validation falls
  warmup: 10                  # steps
  ema: 0.98                   # average of the weights over about 50 steps
  metric: map                 # mean average precision (MAP) over retrieval in both directions
""",
)
SOUNDS = PretrainedPlan(
    "sounds_pretrained.yaml",
    "the encoder stays frozen, and heads are tuned on its stored features",
    "head",
    """heads:
  {signal}: {{init: cca, ridge: 0.1, power: 0.5}}   # head first: canonical correlation analysis of the square roots of the features with the captions
  {language}: {{init: cca, ridge: 0.1}}
tune:
  {signal}: head                         # on stored features; LoRA needs an encoder that can be tuned (hf:, beats:), and was not measured
  {language}: head
objective:
  - {{loss: info_nce, positives: mean, smoothing: 0.1}}
train:
  epochs: 10
  batch_size: 64
  lr: 1.0e-2
  warmup: 10                  # steps
  ema: 0.98                   # average of the weights over about 50 steps
  metric: map                 # mean average precision (MAP) over retrieval in both directions
""",
)
PLANS = {"catalog": CATALOG, "sound": SOUNDS}
"""{use case: its recipe if there are more than few examples}."""


def case_of(signal: str) -> str:
    """The use case of PLANS for a modality that is searched by texts: "catalog" for the first in the table of modalities, else "sound"."""
    return "sound" if modalities.names().index(signal) else "catalog"


class PlanChoice(NamedTuple):
    """plan: the recipe that was chosen; why: the numbers that chose it, and what it tunes, as one clause"""

    plan: PretrainedPlan
    why: str


def pretrained_plan(case: str, pairs: int, per_group: float | None = None) -> PlanChoice:
    """Choose the recipe of a use case of PLANS.

    pairs: number of training pairs
    per_group: training rows in the median group; None: not known
    """
    plan = PLANS[case]
    if pairs <= FEW_PAIRS:
        plan, found = FEW_SHOT, f"{pairs:,} pairs are few (up to {FEW_PAIRS})"
    elif per_group is None:
        found = f"{pairs:,} pairs, and more than {MOST_FEW_SHOT} of them a group are assumed (--per-group N tells)"
    elif per_group <= MOST_FEW_SHOT:
        plan, found = FEW_SHOT, f"{per_group:g} pairs a group are few (up to {MOST_FEW_SHOT})"
    else:
        found = f"{pairs:,} pairs, {per_group:g} a group"
    return PlanChoice(plan, f"{found}: {plan.what}")


def pretrained_recipe(plan: PretrainedPlan, signal: str, language: str) -> dict[str, object]:
    """The settings of a recipe for two modalities, as a document without model, data and run."""
    import yaml

    document: dict[str, object] = yaml.safe_load(plan.body.format(signal=signal, language=language))
    return document
