"""Open the collection and the data that the arguments of `mmtune index` name."""

import argparse
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.index.collection import Collection


def open_collection(args: argparse.Namespace, create: bool = False) -> "Collection":
    """Open the collection that the argument COLLECTION names. create: create it if it does not exist."""
    from mmtune.index.collection import Collection

    return Collection(args.collection, create=create)


@overload
def open_rows(spec: str) -> "Data": ...


@overload
def open_rows(spec: None) -> None: ...


def open_rows(spec: str | None) -> "Data | None":
    """Open the packed data that an option DATA names; None if the option is not given."""
    from mmtune.data.shards.dataset import open_data

    return None if spec is None else open_data(spec)
