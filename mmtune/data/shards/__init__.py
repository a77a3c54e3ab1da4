"""Reading of shards, i.e. tar files of samples.

locate finds the tar files of a directory, pattern or URL. tar_index and tar_members scan a tar file into a
table of its rows, which `pack` writes beside the tar (shard_table); shard_cache caches those of other tars. open_tables and
combine_tables make one memory-mapped table of all shards (row_table). dataset gives access to rows by index. weighted_concat joins several datasets,
with weights, to one training set.
"""

from mmtune.data.shards.dataset import Data, open_data

__all__ = ["Data", "open_data"]
