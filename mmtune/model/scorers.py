"""Scorers of pairs: the cross-encoders that teach a student, and that verify mined negatives. One table for both.

A scorer is an object with `score(pairs) -> floats` (see `mmtune.contracts.Scorer`). A class of one's own is named as
`package.module:Class`, or by a name after `register_scorer(name, target)`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from mmtune import backbones
from mmtune.contracts import Scorer
from mmtune.errors import MmtuneError, RecipeError
from mmtune.runtime import plugins

TABLE: dict[str, str | Callable[..., Scorer]] = {
    "cross_encoder": "mmtune.backbones.cross_encoders:CrossEncoder",
    "matcher": "mmtune.backbones.cross_encoders:Matcher",
}
"""Name of a scorer -> the class, or where it is defined; it is called with the options of the recipe."""


def register_scorer(name: str, target: str | Callable[..., Scorer]) -> None:
    """Make a scorer known by `name` in recipes of this process. target: the class, or "package.module:Class"."""
    plugins.register(TABLE, name, target, "scorer")


def is_scorer(spec: str) -> bool:
    """Whether `spec` names a scorer, and not a MODEL such as "tiny:clip"."""
    return spec in TABLE or (plugins.is_target(spec) and spec.partition(":")[0] not in backbones.TABLE)


def make_scorer(spec: str, options: Mapping[str, Any], key: str) -> Scorer:
    """The scorer that `spec` names. RecipeError, beginning with `key`, when it cannot be made or has no `score`."""
    make = plugins.resolve(TABLE, spec, "scorer", key=key)
    try:
        scorer = make(**options)
    except MmtuneError:
        raise
    except TypeError as e:
        raise RecipeError(f"{key}: cannot make {spec}: {e}") from None
    if not callable(getattr(scorer, "score", None)):
        raise RecipeError(f"{key}: {spec} has no method score(pairs)")
    return scorer


def scorer_fingerprint(scorer: Scorer, spec: str, options: Mapping[str, Any]) -> str:
    """The scorer's own attribute `fingerprint`, else a hash of where it is defined and its options."""
    target = TABLE.get(spec, spec)
    given = json.dumps([target, options], sort_keys=True, default=str)
    return getattr(scorer, "fingerprint", None) or hashlib.sha256(given.encode()).hexdigest()
