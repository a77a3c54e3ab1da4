"""Objectives' arithmetic: pure functions on tensors. A new loss is one new function and one line in TABLE.

What a function's first parameter is annotated with says which facts it is given:

- `contrast.Block`: some queries against all candidates, with what is positive and what is negative; returns one loss a query.
  Such a loss is dense, tiled or fed from a memory queue without knowing it.
- `graded.Scored`: the cosines of the batch's own pairs beside a numeric column; returns a scalar.
- `distill.Taught`: student and teacher, as vectors and as scores; returns a scalar.

Keyword-only parameters are the options a recipe may set.
"""

TABLE = {
    "info_nce": "mmtune.losses.info_nce:info_nce",
    "sigmoid": "mmtune.losses.sigmoid:sigmoid",
    "triplet": "mmtune.losses.triplet:triplet",
    "mse": "mmtune.losses.graded:mse",
    "cosine": "mmtune.losses.graded:cosine",
    "cosent": "mmtune.losses.graded:cosent",
    "kl": "mmtune.losses.distill:kl",
    "score_mse": "mmtune.losses.distill:score_mse",
    "margin_mse": "mmtune.losses.distill:margin_mse",
    "feature": "mmtune.losses.distill:feature",
}
