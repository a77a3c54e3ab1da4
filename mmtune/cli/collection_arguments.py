"""The collection and the rows that an action of `mmtune index` names."""

import argparse
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.index.collection import Collection


def open_collection(args: argparse.Namespace, create: bool = False) -> "Collection":
    """The collection at COLLECTION. create: make it where there is none."""
    from mmtune.index.collection import Collection

    return Collection(args.collection, create=create)


@overload
def open_rows(spec: str) -> "Data": ...


@overload
def open_rows(spec: None) -> None: ...


def open_rows(spec: str | None) -> "Data | None":
    """The rows of DATA; None where none are named."""
    from mmtune.data.shards.dataset import open_data

    return None if spec is None else open_data(spec)
