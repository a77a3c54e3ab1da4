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


def add_skip_bad(parser: argparse.ArgumentParser) -> None:
    """Add the option --skip-bad."""
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="decode all values first, skip those that cannot be decoded, and print their number",
    )


@overload
def open_rows(spec: str, skip_bad: bool = False) -> "Data": ...


@overload
def open_rows(spec: None, skip_bad: bool = False) -> None: ...


def open_rows(spec: str | None, skip_bad: bool = False) -> "Data | None":
    """Open the packed data that an option DATA names; None if the option is not given.

    skip_bad: leave out values that cannot be decoded, with a DataWarning
    """
    from mmtune.data.skip_bad import open_rows_to_encode

    return None if spec is None else open_rows_to_encode(spec, skip_bad=skip_bad)
