"""Save the model as it is before the first step, when its heads were fitted to the training pairs: RUN/fitted_heads.

The base model of composed towers has random heads and retrieves by chance. What training adds is the gain over the fitted heads,
so `mmtune report` compares with them. Only the heads are stored; the towers are those of the recipe's `model`.
"""

from pathlib import Path

import numpy as np

from mmtune.model.artifact.format import FITTED_HEADS
from mmtune.model.artifact.trained_rows import trained_on, union
from mmtune.recipe.recipe import Recipe
from mmtune.training.finish import base_and_data, seen_pairs
from mmtune.training.training_inputs import TrainingInputs
from mmtune.training.tuning.adapter_files import save_heads
from mmtune.training.validation_rows import training_labels


def save_fitted_heads(recipe: Recipe, inputs: TrainingInputs) -> None:
    """Write RUN/fitted_heads if the recipe fits heads to the training pairs. `inputs.model` must have them and be untrained."""
    if all(head.init == "random" for head in recipe.heads.values()):
        return
    info = {**base_and_data(inputs), "seen": seen_pairs(inputs)}
    own = None if inputs.is_streamed else training_labels(inputs)  # those of all streamed rows are never in memory
    rows: dict[str, np.ndarray] = union([own, trained_on(inputs.model)])
    save_heads(inputs.model, Path(recipe.run.dir) / FITTED_HEADS, recipe.model, inputs.base_fingerprint, info, rows)
