"""Scorers: what scores a pair of signals together (`contracts.Scorer`), by name. Teachers and verifiers are such.

A scorer of your own is a class with a method `score(pairs)`; it is named as `package.module:Class` (found among the installed
packages and in the working directory), or by a name after `register(name, target)`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping

from mmtune.contracts import Scorer
from mmtune.errors import RecipeError
from mmtune.runtime import plugins

TABLE: dict[str, str | Callable[..., Scorer]] = {
    "cross_encoder": "mmtune.backbones.cross_encoders:CrossEncoder",
    "matcher": "mmtune.backbones.cross_encoders:Matcher",
}
"""Name -> class of a scorer, or where it is defined."""


def register(name: str, target: str | Callable[..., Scorer]) -> None:
    """Make a scorer known by `name`. target: its class, or "package.module:Class"."""
    plugins.register(TABLE, name, target, "scorer")


def load_scorer(name: str, options: Mapping[str, object], key: str) -> tuple[Scorer, str]:
    """(the scorer called `name`, made with `options`; its fingerprint).

    The fingerprint is the scorer's own attribute `fingerprint`, else a hash of its name and options. key: the recipe key that
    names the scorer, for messages. Raises RecipeError.
    """
    target = TABLE.get(name, name)
    make = plugins.resolve(TABLE, name, "scorer", key=key)
    label = target if isinstance(target, str) else name
    try:
        scorer = make(**options)
    except TypeError as e:
        raise RecipeError(f"{key}: cannot make {label}: {e}") from None
    if not callable(getattr(scorer, "score", None)):
        raise RecipeError(f"{key}: {label} has no method score(pairs)")
    identity = json.dumps([label, options], sort_keys=True, default=str)
    return scorer, getattr(scorer, "fingerprint", None) or hashlib.sha256(identity.encode()).hexdigest()
