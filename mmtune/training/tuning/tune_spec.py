"""`tune:` of a recipe -> how each tower of a model is tuned. Names and values are checked by `mmtune.recipe.tune_block`."""

from collections.abc import Sequence

from pydantic import TypeAdapter

from mmtune.errors import RecipeError
from mmtune.recipe.block import check
from mmtune.recipe.tune_block import KINDS, AnyTuning, FrozenTuning, FullTuning, TowerTuning, TuneBlock
from mmtune.runtime.plugins import nearest

_TUNE: TypeAdapter[AnyTuning | dict[str, AnyTuning]] = TypeAdapter(TuneBlock)


def parse_tune(given: object, towers: Sequence[str], trained: Sequence[str]) -> dict[str, AnyTuning]:
    """{modality: how it is tuned} of every tower of the model, from a recipe's `tune`, typed or as plain data.

    Towers that no pair trains are frozen unless everything is full. Raises RecipeError naming the key.
    """
    chosen = check(_TUNE, given, "tune")
    if isinstance(chosen, TowerTuning):
        return {m: chosen if m in trained or chosen == FullTuning() else FrozenTuning() for m in towers}
    for name in chosen:
        if name not in towers:
            known = ["how", *dict.fromkeys(option for kind in KINDS.values() for option in kind.model_fields), *towers]
            raise RecipeError(f"tune.{name}: neither an option beside `how` nor a tower of this model{nearest(name, known)}")
    missing = [m for m in trained if m not in chosen]
    if missing:
        raise RecipeError(
            f"tune: says nothing about {missing[0]}, which the pairs train; add {missing[0]}: frozen, or what you want"
        )
    for m, t in chosen.items():
        if m not in trained and t.how != "frozen":
            raise RecipeError(f"tune.{m}: {m} is not trained here; the pairs train {', '.join(trained)}")
    return {m: chosen.get(m, FrozenTuning()) for m in towers}
