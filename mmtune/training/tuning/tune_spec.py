"""`tune:` of a recipe -> a checked `Tuning` for every tower.

tune: lora                                       every trained tower: full, head, lora, qlora, partial, frozen
tune: {how: partial, blocks: 2}                  with options
tune: {NAME: lora, OTHER: frozen}                one for each tower
"""

from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from mmtune.errors import RecipeError
from mmtune.recipe.recipe import Tuning
from mmtune.runtime.plugins import nearest

METHODS = ("full", "head", "lora", "qlora", "partial", "frozen")
LOW_RANK = ("lora", "qlora")
METHODS_OF_OPTION = {
    **dict.fromkeys(("rank", "alpha", "dropout", "targets"), LOW_RANK),
    **dict.fromkeys(("blocks", "norms"), ("partial",)),
    "layer_decay": ("full", "partial", *LOW_RANK),
}
"""Option -> the methods that it belongs to (`head_first` and `head_lr`: see `lp_ft`)."""


def parse_tune(given: "str | Mapping[str, object]", towers: Sequence[str], trained: Sequence[str]) -> dict[str, Tuning]:
    """{modality: Tuning} of every tower of the model; those that no pair trains are frozen unless all are tuned in full.

    Raises RecipeError naming the key.
    """
    if isinstance(given, str) or "how" in given:
        one = _tuning(given, "tune")
        return {m: one if m in trained or one == Tuning() else Tuning(how="frozen") for m in towers}
    for name in given:
        if name not in towers:
            known = nearest(str(name), [*Tuning.model_fields, *towers])
            raise RecipeError(f"tune.{name}: neither an option beside `how` nor a tower of this model{known}")
    missing = [m for m in trained if m not in given]
    if missing:
        raise RecipeError(
            f"tune: says nothing about {missing[0]}, which the pairs train; add {missing[0]}: frozen, or what you want"
        )
    chosen = {m: _tuning(given.get(m, "frozen"), f"tune.{m}") for m in towers}
    for m, t in chosen.items():
        if m not in trained and t.how != "frozen":
            raise RecipeError(f"tune.{m}: {m} is not trained here; the pairs train {', '.join(trained)}")
    return chosen


def _tuning(given: object, key: str) -> Tuning:
    """One tower's entry: the name of a method, or a mapping of its options."""
    if isinstance(given, str):
        given = {"how": given}
        if given["how"] not in METHODS:
            raise RecipeError(f"{key}: {given['how']!r}{nearest(given['how'], METHODS)}")
    if not isinstance(given, Mapping):
        raise RecipeError(f"{key}: {given!r} is none of {', '.join(METHODS)}")
    for option in given:
        if option not in Tuning.model_fields:
            raise RecipeError(f"{key}.{option}: unknown{nearest(str(option), list(Tuning.model_fields))}")
    try:
        tuning = Tuning.model_validate(dict(given))
    except ValidationError as e:
        problem = e.errors()[0]
        raise RecipeError(f"{key}.{problem['loc'][0]}: {problem['msg']} (got {problem['input']!r})") from None
    for option in given:
        methods = METHODS_OF_OPTION.get(option, METHODS)
        if tuning.how not in methods:
            raise RecipeError(f"{key}.{option}: goes with {', '.join(methods)}; it does nothing for how: {tuning.how}")
    if tuning.head_lr and not tuning.head_first:
        raise RecipeError(f"{key}.head_lr: is the rate of the epochs of head_first; add that, or set train.lr")
    return tuning
