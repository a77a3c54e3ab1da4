"""Resolve a recipe's `tune` to a tuning method for each tower. `mmtune.recipe.tune_block` has checked names and values."""

from collections.abc import Sequence

from pydantic import TypeAdapter

from mmtune.errors import RecipeError
from mmtune.recipe.block import check
from mmtune.recipe.tune_block import KINDS, AnyTuning, FrozenTuning, FullTuning, TowerTuning, TuneBlock
from mmtune.runtime.plugins import nearest

_TUNE: TypeAdapter[AnyTuning | dict[str, AnyTuning]] = TypeAdapter(TuneBlock)


def parse_tune(given: object, towers: Sequence[str], trained: Sequence[str]) -> dict[str, AnyTuning]:
    """Return {modality: tuning method} for every tower of the model.

    Towers that are in no trained pair are frozen, unless all towers are tuned in full. Raises RecipeError, naming the key, if
    `tune` does not fit the model or the pairs.

    given: the recipe's `tune`, as parsed blocks or plain data
    towers: the modalities of the model
    trained: the modalities of the trained pairs
    """
    chosen = check(_TUNE, given, "tune")
    if isinstance(chosen, TowerTuning):
        return {m: chosen if m in trained or chosen == FullTuning() else FrozenTuning() for m in towers}
    for name in chosen:
        if name not in towers:
            known = ["how", *dict.fromkeys(option for kind in KINDS.values() for option in kind.model_fields), *towers]
            raise RecipeError(
                f"tune.{name}: this is neither an option of `how` nor a tower of this model{nearest(name, known)}"
            )
    missing = [m for m in trained if m not in chosen]
    if missing:
        raise RecipeError(
            f"tune: has no entry for {missing[0]}, which the pairs train; add one, for example {missing[0]}: frozen"
        )
    for m, t in chosen.items():
        if m not in trained and t.how != "frozen":
            raise RecipeError(f"tune.{m}: {m} is not trained by any pair; the pairs train {', '.join(trained)}")
    return {m: chosen.get(m, FrozenTuning()) for m in towers}
