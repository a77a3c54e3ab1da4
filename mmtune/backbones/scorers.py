"""Find scorers by name. A scorer (`contracts.Scorer`) rates the similarity of the two values of a pair.

Scorers are used as teachers in distillation and as verifiers of mined negatives. To use your own, write a class with a method
`score(pairs)`. Name it in the recipe as `package.module:Class` (installed packages and the working directory are searched), or
call `register(name, target)` and use that name.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from mmtune.contracts import Scorer
from mmtune.errors import RecipeError
from mmtune.runtime import plugins

TABLE: dict[str, str | Callable[..., Scorer]] = {
    "cross_encoder": "mmtune.backbones.cross_encoders:CrossEncoder",
    "matcher": "mmtune.backbones.cross_encoders:Matcher",
    "trained_cross_encoder": "mmtune.model.cross_encoder_load:load_cross_encoder",
}
"""Name of each scorer -> its class, or where the class is defined ("package.module:Class")."""


def register(name: str, target: str | Callable[..., Scorer]) -> None:
    """Register a scorer under `name`.

    target: its class, or "package.module:Class"
    """
    plugins.register(TABLE, name, target, "scorer")


def load_scorer(name: str, options: Mapping[str, object], key: str) -> tuple[Scorer, str]:
    """Create a scorer. Returns the scorer and its fingerprint.

    The fingerprint is the scorer's attribute `fingerprint` if it has one, else a hash of its name and options.

    name: a name in TABLE, "package.module:Class", or the directory of a cross-encoder that mmtune trained
    options: keyword arguments of the scorer's class
    key: the recipe key that names the scorer, for messages

    Raises RecipeError if the class cannot be found, does not accept the options, or has no method `score`.
    """
    if name not in TABLE and Path(name).is_dir():
        name, options = "trained_cross_encoder", {"directory": name, **options}
    target = TABLE.get(name, name)
    make = plugins.resolve(TABLE, name, "scorer", key=key)
    label = target if isinstance(target, str) else name
    try:
        scorer = make(**options)
    except TypeError as e:
        raise RecipeError(f"{key}: cannot create {label} with these options: {e}") from None
    if not callable(getattr(scorer, "score", None)):
        raise RecipeError(f"{key}: {label} has no method score(pairs)")
    identity = json.dumps([label, options], sort_keys=True, default=str)
    return scorer, getattr(scorer, "fingerprint", None) or hashlib.sha256(identity.encode()).hexdigest()
