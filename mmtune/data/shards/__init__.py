"""Reading of shards, i.e. tar files of samples.

locate finds the tar files of a directory, pattern or URL and downloads remote ones. tar_index and tar_members scan a tar file into a
table of its rows; shard_cache caches these tables. dataset gives access to rows by index. weighted_concat joins several datasets,
with weights, to one training set.
"""

from mmtune.data.shards.dataset import Data, open_data

__all__ = ["Data", "open_data"]
