"""Hard negatives: embed + search -> a table with guards and an audit, and what training does with it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtune.mining.verb import mine

__all__ = ["mine"]


def __getattr__(name: str) -> Any:
    if name == "mine":
        from mmtune.mining.verb import mine

        return mine
    raise AttributeError(f"module 'mmtune.mining' has no attribute {name!r}")
